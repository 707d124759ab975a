"""Counts successes that the model itself refutes, over 230,000 results with bounds of every kind.

    OMP_WAIT_POLICY=passive python benchmarks/count_false_successes.py [--images 320]

Random dense networks, among them some whose sums cancel, attacked as networks, lowered modules,
through torch and in NumPy. The judge is the model's own forward at the returned image: of a module
in batches of 1, 7, 64 and all. *float64* counts successes that exact arithmetic refutes, which
nobody promises. Every group is kept in ``benchmarks/results/count_false_successes.json`` as it is
finished, and a repeated command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np
import torch
from harness import machine
from numpy.typing import NDArray

import advcore
from advcore import Layer, Network

NAME = "count_false_successes"
SIZES = ((48, 2), (48, 10), (256, 2), (256, 5), (784, 10))
MEANS = (0.0, 0.02, 0.05)
FORMS = ("network", "module", "torch", "NumPy")
BOUNDS = (
    "0 to 1",
    "0 to 255",
    "-1024 to 3071",
    "0 to 65535",
    "none",
    "each image",
    "each value",
    "subnormal",
)
LEVELS = {"0 to 1": 256, "0 to 255": 256, "-1024 to 3071": 4096, "0 to 65535": 65536}
BATCHES = (1, 7, 64)

Floats = NDArray[np.float32]


class AsNumpy:
    """A network as a NumPy model."""

    def __init__(self, network: Network) -> None:
        self.forward, self.backward = network.forward, network.backward


def network(inputs: int, classes: int, mean: float, rng: np.random.Generator) -> Network:
    """A ReLU network with one hidden layer whose weights have a mean."""
    sizes = ((64, inputs), (classes, 64))
    return Network(
        [
            Layer(
                (mean + rng.standard_normal(size) / np.sqrt(size[1])).astype(np.float32),
                (0.02 * rng.standard_normal(size[0])).astype(np.float32),
                activation=activation,
            )
            for size, activation in zip(sizes, ("relu", "identity"), strict=True)
        ]
    )


def problem(kind: str, count: int, inputs: int, rng: np.random.Generator) -> tuple[Floats, Any]:
    """Images (N, n) and their bounds."""
    unit = rng.random((count, inputs), dtype=np.float32)
    if kind == "none":
        return 8 * unit - 4, (-np.inf, np.inf)
    if kind == "each image":
        x = 255 * unit
        return x, (np.maximum(x - 16, 0), np.minimum(x + 16, 255))
    if kind == "each value":
        low = rng.uniform(-3, 0, inputs).astype(np.float32)
        high = low + rng.uniform(0, 4, inputs).astype(np.float32)
        return (low + unit * (high - low)).clip(low, high), (low, high)
    if kind == "subnormal":
        return unit, (np.float32(1e-41), 1.0)
    low_end, high_end = map(float, kind.split(" to "))
    x = (low_end + unit * (high_end - low_end)).astype(np.float32)
    if high_end > 1:
        x = np.rint(x)
    return x, (low_end, high_end)


def cell(
    net: Network, form: str, kind: str, levels: int | None, count: int, rng: np.random.Generator
) -> dict[str, int]:
    """Results, successes, and how many are refuted or outside of their bounds."""
    x, bounds = problem(kind, count, net.layers[0].weight.shape[1], rng)
    if kind == "subnormal":
        x = np.maximum(x, bounds[0])
    module = net.to_torch()
    model: Any = {
        "network": net,
        "module": module,
        "torch": lambda images: 1 * module(images),
        "NumPy": AsNumpy(net),
    }[form]
    labels = net.forward(x).argmax(axis=1)
    result = advcore.minimize_distortion(
        model,
        x,
        labels=labels,
        bounds=bounds,
        levels=levels,
        effort="fast",
        confidence=float(rng.choice([0.0, 1e-4])),
        threads=1,
    )
    success, images = result.success, result.adversarial
    refuted = np.zeros(count, bool)
    if form in ("network", "NumPy"):
        refuted |= net.forward(images).argmax(axis=1) == labels
    else:
        with torch.no_grad():
            for size in (*BATCHES, count):
                parts = [module(part) for part in torch.from_numpy(images).split(size)]
                refuted |= torch.cat(parts).numpy().argmax(axis=1) == labels
    exact = images.astype(np.float64)
    for layer in net.layers:
        exact = exact @ layer.weight.T.astype(np.float64) + layer.bias
        if layer.activation == "relu":
            exact = exact.clip(0)
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), x.shape) for bound in bounds)
    outside = ((images < low) | (images > high)).any(axis=1)
    return {
        "results": count,
        "successes": int(success.sum()),
        "refuted": int((refuted & success).sum()),
        "outside": int(outside.sum()),
        "float64": int(((exact.argmax(axis=1) == labels) & success).sum()),
    }


def main() -> None:
    """Counts, prints and stores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=320, help="images of a cell (default 320)")
    count = parser.parse_args().images
    torch.set_num_threads(1)
    commit = machine.describe()["commit"]
    groups: dict[str, dict[str, int]] = {}
    if machine.figures_file(NAME).exists():
        stored = machine.load(NAME)
        if (stored["of"], stored["images"]) == (commit, count):
            groups = stored["groups"]
    for number, (size, mean, form) in enumerate(itertools.product(SIZES, MEANS, FORMS)):
        name = f"{size[0]} values, {size[1]} classes, mean {mean}, {form}"
        if name in groups:
            continue
        rng = np.random.default_rng(number)
        net = network(*size, mean, rng)
        cells = [(kind, None) for kind in BOUNDS] + list(LEVELS.items())
        counts = [cell(net, form, kind, levels, count, rng) for kind, levels in cells]
        groups[name] = {key: sum(part[key] for part in counts) for key in counts[0]}
        total = {key: sum(group[key] for group in groups.values()) for key in groups[name]}
        machine.save(NAME, {"of": commit, "images": count, "groups": groups, "total": total})
        print(name, groups[name], flush=True)
    print(machine.load(NAME)["total"])


if __name__ == "__main__":
    main()
