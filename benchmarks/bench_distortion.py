"""Distortion against the per-image envelope of the rival attacks, on one network after another.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_distortion.py [--images 200]
        [--networks embedded,relu,tanh,...] [--untargeted]

Networks: the package's; 784-100-100-10 with ReLU and tanh and 784-200-200-10 with sigmoids, and the
linear 784-10, trained here on MNIST (seeded, cached in the temporary folder). Targets are random
(seed 0). Successes of every attack are counted by one independent float32 forward of the network;
an attack that misses an image counts as infinitely far there. Evaluations are rows propagated
forward. Figures go to benchmarks/results/bench_distortion.json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from numpy.typing import NDArray
from rivals import Counted, attacks

import advcore
from advcore import data, models, training


def trained(name: str) -> torch.nn.Module:
    """A network of that name, in eval mode."""
    if name == "embedded":
        return data.embedded_network().to_torch()
    widths = {"linear": [10], "sigmoid200": [200, 200, 10]}.get(name, [100, 100, 10])
    model = models.fully_connected(widths)
    if name in ("relu", "tanh"):
        kind = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[name]
        parts = [kind() if isinstance(m, torch.nn.Sigmoid) else m for m in model]
        model = torch.nn.Sequential(*parts)
    path = Path(tempfile.gettempdir()) / f"advcore_bench_{name}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
    else:
        images, labels = data.mnist("train")
        rate = {"sigmoid200": 1e-2, "linear": 3e-3}.get(name, 3e-3)
        training.train(model, images, labels, weight_decay=1e-5, epochs=10, learning_rate=rate)
        torch.save(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def distances(
    model: torch.nn.Module,
    clean: torch.Tensor,
    found: torch.Tensor,
    classes: torch.Tensor,
    targeted: bool,
) -> NDArray[np.float64]:
    """||r|| of each image, infinite where the network's own forward does not confirm it."""
    found = found.detach().float().clamp(0, 1)
    with torch.inference_mode():
        seen = model(found).argmax(dim=1)
    ok = (seen == classes) if targeted else (seen != classes)
    r = (found.double() - clean.double()).flatten(1).norm(dim=1)
    return torch.where(ok, r, torch.inf).numpy()


def row(name: str, d: NDArray[np.float64], envelope: NDArray[np.float64], evaluations: float,
        seconds: float) -> dict[str, Any]:  # fmt: skip
    both = np.isfinite(d) & np.isfinite(envelope)
    if not both.any():
        print(f"  {name:16} success   0.0%", flush=True)
        return {"success": 0.0, "evaluations": evaluations}
    ratio = d[both] / envelope[both]
    figures = {
        "success": float(np.isfinite(d).mean()),
        "mean": float(d[np.isfinite(d)].mean()),
        "mean_over_envelope": float(d[both].mean() / envelope[both].mean()),
        "mean_ratio": float(ratio.mean()),
        "within_0.1%": float((ratio <= 1.001).mean()),
        "more_than_1%_above": float((ratio > 1.01).mean()),
        "evaluations": evaluations,
        "ms_per_image": 1e3 * seconds / len(d),
    }
    print(
        f"  {name:16} success {figures['success']:6.1%}  mean {figures['mean']:.4f}  "
        f"/envelope {figures['mean_over_envelope']:.4f}  ratio {figures['mean_ratio']:.4f}  "
        f">1% above {figures['more_than_1%_above']:5.1%}  evaluations {evaluations:8.1f}  "
        f"{figures['ms_per_image']:9.3f} ms",
        flush=True,
    )
    return figures


def run(name: str, count: int, targeted: bool) -> dict[str, Any]:
    model = trained(name)
    images, labels = data.mnist("test") if count > 1000 else data.embedded_digits()
    with torch.inference_mode():
        right = model(torch.from_numpy(images)).argmax(dim=1).numpy() == labels
    x = torch.from_numpy(images[right][:count])
    y = labels[right][:count]
    classes = data.random_targets(y, classes=10, seed=0) if targeted else y
    wanted = torch.from_numpy(classes)
    print(f"{name}: {len(x)} images, {'random targets' if targeted else 'untargeted'}", flush=True)
    found: dict[str, tuple[NDArray[np.float64], float, float]] = {}
    for attack, call in attacks(untargeted_only=not targeted).items():
        counted = Counted(model)
        begin = time.perf_counter()
        result = call(counted, x, wanted, targeted)
        seconds = time.perf_counter() - begin
        d = distances(model, x, result, wanted, targeted)
        found[attack] = (d, counted.rows / len(x), seconds)
    envelope = np.min([d for d, _, _ in found.values()], axis=0)
    for effort in ("fast", "default", "thorough"):
        options: Any = {"targets": wanted} if targeted else {"labels": wanted}
        advcore.minimize_distortion(
            model, x[:2], effort=effort, **{k: v[:2] for k, v in options.items()}
        )
        begin = time.perf_counter()
        ours = advcore.minimize_distortion(model, x, effort=effort, **options)
        seconds = time.perf_counter() - begin
        d = distances(model, x, ours.adversarial, wanted, targeted)
        rows = float((ours.evaluations + ours.forwards).mean())
        found[f"advcore {effort}"] = (d, rows, seconds)
    return {attack: row(attack, d, envelope, n, s) for attack, (d, n, s) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--networks", default="embedded,sigmoid200,tanh,relu,linear")
    parser.add_argument("--untargeted", action="store_true")
    options = parser.parse_args()
    figures = {
        name: run(name, options.images, not options.untargeted)
        for name in options.networks.split(",")
    }
    kind = "untargeted" if options.untargeted else "targeted"
    print(machine.save(f"bench_distortion_{kind}", {"images": options.images, "networks": figures}))


if __name__ == "__main__":
    main()
