"""The decision of a network as ten logits, and as two: the largest of the others, and the target's.

    ADVCORE_DATA=... OMP_NUM_THREADS=1 python benchmarks/bench_two_logits.py [--images N]

Each way to write the maximum takes random targets. Figures go to
``benchmarks/results/bench_two_logits.json``: mean distortion, success and mean evaluations, with
the smoothing of maxima and without it. docs/decisions.md quotes them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import machine, networks

import advcore
from advcore.oracles import largest

NETWORKS = ("embedded", "tanh", "relu", "abc_mnist_6_100_nat", "smallcnn_fmn_regular")
LARGEST: dict[str, Callable[[Any], Any]] = {
    "amax": lambda z: z.amax(1),
    "max": lambda z: z.max(1).values,
    "topk": lambda z: z.topk(1).values[:, 0],
    "sort": lambda z: z.sort(1).values[:, -1],
    "maximum": lambda z: functools.reduce(torch.maximum, z.unbind(1)),
}


def two_logits(model: Any, target: int, name: str) -> Callable[[Any], Any]:
    """The largest of the other logits, by the function ``name``, and that of the target."""
    others = [j for j in range(networks.CLASSES) if j != target]

    def call(x: Any) -> Any:
        z = model(x)
        return torch.stack([LARGEST[name](z[:, others]), z[:, target]], 1)

    return call


def measure(case: Any, name: str | None) -> dict[str, float]:
    """Figures of the ten logits (None), or of a way to write the maximum."""
    model = case.model
    model = model if isinstance(model, torch.nn.Module) else model.to_torch()
    distortion, evaluations = [], []
    for target in np.unique(case.classes):
        images = case.images[case.classes == target]
        ten = name is None
        attacked = model if ten else two_logits(model, int(target), str(name))
        result = advcore.minimize_distortion(
            attacked, images, np.full(len(images), target if ten else 1)
        )
        distortion.append(result.distortion)
        evaluations.append(result.evaluations)
    found = np.concatenate(distortion)
    return {
        "mean": float(found[np.isfinite(found)].mean()),
        "success": float(np.isfinite(found).mean()),
        "evaluations": float(np.concatenate(evaluations).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    args = parser.parse_args()
    rows: dict[str, Any] = {}
    functions = dict(largest._REDUCTIONS)
    for network in args.networks:
        case = networks.case(network, targeted=True, images=args.images)
        row = rows[network] = {"ten": measure(case, None)}
        row |= {name: measure(case, name) for name in LARGEST}
        largest._REDUCTIONS.clear()
        row["amax, exact"] = measure(case, "amax")
        largest._REDUCTIONS.update(functions)
        for name, figures in row.items():
            print(network, name, *(f"{key} {value:.4g}" for key, value in figures.items()))
    print(machine.save("bench_two_logits", {"images": args.images, "networks": rows}))


if __name__ == "__main__":
    main()
