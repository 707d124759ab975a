"""Convolutional networks: the engine beside torch, and beside other attacks.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_convolutions.py
        [--networks rays_smallcnn_bn,...] [--images N]

For each network that `Network.from_torch` lowers: seconds of a forward and an input gradient of a
batch of 64 images on one thread, exact and smoothed, of the engine and of the torch oracle in turn
(median of rounds, after a check that both give the same); and of a whole targeted run with two
threads each, after a check that the distortions agree. Then networks with random weights, chains
and residual ones, evaluation by evaluation alone: where the engine stops being faster.

On the networks for CIFAR-10 and one for MNIST then whole targeted runs of advcore and the rivals
(adv-lib, at the defaults and at the settings that `sweep_rivals.py` chose, the better of both),
each timed in turn on 2 threads with all images in one batch, every success confirmed by a forward
of the network.

Figures go to ``benchmarks/results/bench_convolutions.json``, where those of networks not named
stay; `make_pages.py convolutions` makes the tables of docs/models.md from that file.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import envelope, machine, networks, rivals
from numpy.typing import NDArray
from torch import nn

import advcore
from advcore.network import Network
from advcore.oracles import TorchOracle

NATIVE = (*networks.CONVOLUTIONAL, *networks.CIFAR)
BESIDE_RIVALS = (*networks.CIFAR, "smallcnn_fmn_regular")
ROUNDS = 9
Floats = NDArray[np.float32]


def vgg(widths: Sequence[int], side: int, hidden: int, classes: int) -> nn.Sequential:
    """3x3 convolutions with ReLUs, 0 for max-pooling, then two layers; random weights, seed 0."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes)).eval().requires_grad_(False)


class ResidualBlock(nn.Module):
    """relu(x + two 3x3 convolutions of x); x through a 1x1 convolution where shapes differ."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, height, width) to (B, width, height / stride, width / stride)."""
        return torch.relu(self.shortcut(x) + self.second(torch.relu(self.first(x))))


def resnet(width: int, blocks: int) -> nn.Sequential:
    """Three stages of `blocks` residual blocks on 32x32, widths 1, 2 and 4 times; seed 0."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(channels, width << stage, stride))
            channels = width << stage
    layers += [nn.AvgPool2d(8), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers).eval().requires_grad_(False)


RANDOM_SHAPE = (3, 32, 32)
RANDOM: dict[str, tuple[partial[nn.Sequential], int]] = {  # with the images of a batch
    "random, 6 convolutions, narrow": (
        partial(vgg, [32, 32, 0, 64, 64, 0, 128, 128, 0], 32, 100, 10), 32,
    ),
    "random, 6 convolutions, 32x32": (
        partial(vgg, [64, 64, 0, 128, 128, 0, 256, 256, 0], 32, 256, 10), 16,
    ),
    "random, 9 convolutions, small maps": (
        partial(vgg, [32, 0, 64, 0, 128, 128, 0, 256, 256, 0, *([512] * 3), 0], 32, 512, 10), 16,
    ),
    "random, 13 convolutions, 32x32": (
        partial(vgg, [64, 64, 0, 128, 128, 0, *([256] * 3), 0, *([512] * 3), 0, *([512] * 3), 0],
                32, 512, 10), 16,
    ),
} | {
    f"random, residual, {6 * blocks + 1} convolutions of width {width} and more": (
        partial(resnet, width, blocks), 32,
    )
    for width, blocks in ((4, 1), (8, 1), (12, 1), (16, 1), (16, 3), (32, 1), (32, 3), (64, 1))
}  # fmt: skip


def evaluations(module: nn.Module, x: Floats, shape: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds of an evaluation of one image, by smoothing and engine."""
    network, oracle = Network.from_torch(module, shape), TorchOracle(module, shape)
    core, rows = network.core, len(x)
    slots = np.arange(rows, dtype=np.int32)
    oracle.forward(x, np.zeros(rows, np.float32), slots, np.ones(rows, np.bool_), grad=False)
    scales = np.zeros((rows, core.scales), np.float32)
    core.forward(x, None, scales, True)
    seed = np.random.default_rng(0).standard_normal((rows, network.classes)).astype(np.float32)
    weights = network.convolution_weights
    out: dict[str, Any] = {"convolution_weights": weights}
    for name, k in (("exact", 0.0), ("smoothed", 0.3)):
        ks = np.full(rows, k, np.float32)

        def native(ks: Floats = ks) -> tuple[Floats, Floats]:
            return core.forward(x, ks, scales, False), core.backward(seed)

        def by_torch(ks: Floats = ks) -> tuple[Floats, Floats]:
            return oracle.forward(x, ks, slots), oracle.backward(seed)

        for native_values, torch_values in zip(native(), by_torch(), strict=True):
            gaps = np.abs(native_values - torch_values).max(axis=1)
            differing = gaps > 1e-4 * float(np.abs(torch_values).max())
            if differing.mean() > 0.1:  # of a few rows by rounding on the other side of a kink
                raise RuntimeError(f"the engine and torch differ ({name})")
        times = np.array([[_seconds(native), _seconds(by_torch)] for _ in range(ROUNDS)])
        ms = 1e3 * np.median(times, axis=0) / rows
        ratio = float(np.median(times[:, 1] / times[:, 0]))
        out[name] = {"engine_ms": ms[0], "torch_ms": ms[1], "ratio": ratio}
    return out


def _seconds(call: Callable[[], Any]) -> float:
    """Seconds of the one thread that runs a call, in which no other program's time counts."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def whole_run(case: networks.Case, threads: int) -> dict[str, Any]:
    """Seconds of a run through the engine and through torch, and their mean distortions."""
    torch.set_num_threads(threads)
    runs: dict[str, list[float]] = {"native": [], "torch": []}
    mean_distortion: dict[str, float] = {}
    for _ in range(3):
        for path, model in (("native", case.model), ("torch", lambda x: case.model(x))):
            begin = time.perf_counter()
            result = advcore.minimize_distortion(model, case.images, case.classes, threads=threads)
            runs[path].append(time.perf_counter() - begin)
            if result.engine["path"] != path or not result.success.all():
                raise RuntimeError(f"{case.name}: {result.engine}, {result.success.mean():.1%}")
            mean_distortion[path] = float(np.mean(result.distortion))
            evaluated = float(np.mean(result.evaluations))
    torch.set_num_threads(1)
    if abs(mean_distortion["native"] / mean_distortion["torch"] - 1) > 0.01:
        raise RuntimeError(f"{case.name}: mean distortions {mean_distortion}")
    seconds = {path: float(np.median(times)) for path, times in runs.items()}
    ratio = float(np.median(np.array(runs["torch"]) / np.array(runs["native"])))
    return {
        "images": len(case.images),
        "threads": threads,
        "evaluations": evaluated,
        "seconds": seconds,
        "ratio": ratio,
        "mean_distortion": mean_distortion,
    }


def beside_rivals(case: networks.Case, threads: int) -> dict[str, Any]:
    """Seconds, success and mean distortion of advcore and of each rival, in turn."""
    torch.set_num_threads(threads)
    x, y = torch.from_numpy(case.images), torch.from_numpy(case.classes)
    out: dict[str, Any] = {}
    tuned = rivals.chosen_settings(case.name, targeted=True)

    def measure(run: Callable[[], Any]) -> dict[str, Any]:
        torch.manual_seed(0)
        begin = time.perf_counter()
        adversarial = run()
        seconds = time.perf_counter() - begin
        distances = envelope.distances(case, adversarial)
        return {
            "seconds": seconds,
            "success": float(np.isfinite(distances).mean()),
            "mean": float(distances[np.isfinite(distances)].mean()),
            "reached": distances,
        }

    for effort in ("fast", "default"):
        out[f"advcore {effort}"] = measure(
            lambda effort=effort: (
                advcore.minimize_distortion(
                    case.model, case.images, case.classes, threads=threads, effort=effort
                ).adversarial
            )
        )
    for name in ("DDN-100", "DDN-1000", "ALMA-1000", "PDGD-500", "FMN-1000"):
        rival = rivals.RIVALS[name]
        settings = [rival.default]
        if tuned.get(name, rival.default) != rival.default:
            settings.append(tuned[name])
        rows = [
            measure(lambda rival=rival, s=s: rival.call(case.model, x, y, True, s))
            | {"settings": s}
            for s in settings
        ]
        # The better of both by the mean, with what it missed as far as the farthest of either.
        run_distances = np.concatenate([row["reached"] for row in rows])
        farthest = run_distances[np.isfinite(run_distances)].max()
        out[name] = min(rows, key=lambda row: np.minimum(row["reached"], farthest).mean())
    for row in out.values():
        del row["reached"]
    torch.set_num_threads(1)
    return {"images": len(x), "threads": threads, "attacks": out}


def main() -> None:
    """Measures, prints and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join((*NATIVE, *RANDOM, *BESIDE_RIVALS)))
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = machine.describe()["commit"]
    figures: dict[str, Any] = {}
    names = [name for name in dict.fromkeys((*NATIVE, *RANDOM, *BESIDE_RIVALS))
             if name in options.networks]  # fmt: skip
    for name in names:
        if name in RANDOM:
            build, rows = RANDOM[name]
            x = np.random.default_rng(0).random((rows, math.prod(RANDOM_SHAPE)), dtype=np.float32)
            figures[name] = evaluations(build(), x, RANDOM_SHAPE)
        else:
            case = networks.case(name, targeted=True, images=options.images)
            figures[name] = {}
            if name in NATIVE:
                x = np.ascontiguousarray(case.images[:64].reshape(min(64, len(case.images)), -1))
                figures[name] = evaluations(case.model, x, case.images.shape[1:])
                figures[name]["run"] = whole_run(case, threads=2)
            if name in BESIDE_RIVALS and rivals.is_installed():
                figures[name]["rivals"] = beside_rivals(case, threads=2)
        print(name, figures[name], flush=True)
        figures[name]["commit"] = commit
    name = "bench_convolutions"
    previous = machine.load(name)["networks"] if machine.figures_file(name).exists() else {}
    print(machine.save(name, {"networks": previous | figures}))


if __name__ == "__main__":
    main()
