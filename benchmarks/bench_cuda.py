"""The solver on a GPU: ceilings of the device, agreement with the CPU, time and share of a round.

    python benchmarks/bench_cuda.py

The rung "profile" of gpu.sh is one of its runs. Images: the MNIST test set where ADVCORE_DATA has
it, else the package's digits. The convolutional network is smallcnn_fmn_regular of ADVCORE_DATA,
else one of its shape trained here. Each part that fails is named and the others go on. Figures go
to benchmarks/results/bench_cuda.json and .md.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import advcore
from advcore import _core, data
from advcore.data import random_targets
from advcore.models import training
from advcore.network import Normalize
from advcore.solve import cuda_rounds as cuda

ROUND_VECTORS = 19
"""Fewest passes over n floats of a round of the c-search with five pairs: the gradient, x0, x, the
trial, the old gradient and ten of the ring are read, gradient, s, y and trial written."""


def median_ms(run: Callable[[], object], repeats: int = 20) -> float:
    """Median milliseconds of a call, by events, after three calls."""
    times = []
    for repeat in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def ceilings() -> dict[str, Any]:
    """Copy bandwidth, bytes read plus written, and the rate of float32 and bf16 products."""
    source = torch.randn(1 << 29, device="cuda")  # 2 GiB
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / median_ms(partial(target.copy_, source)) / 1e9
    del source, target
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        rates[name] = 2 * 8192**3 / median_ms(partial(torch.mm, a, b)) / 1e9
    return {"copy_TB_s": copy, "product_TFLOP_s": rates}


def digits() -> tuple[Any, Any]:
    """Images (N, 784) and labels."""
    try:
        if not os.environ.get("ADVCORE_DATA"):
            raise FileNotFoundError
        images, labels = data.mnist("test")
    except OSError:
        images, labels = data.embedded_digits()
    return images.reshape(len(images), -1), labels


def small_cnn() -> nn.Module:
    """Four convolutions and three layers, 312,202 parameters, images (B, 784)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28)), Normalize(0.5, 0.5)]
    for inputs, outputs, pool in ((1, 32, False), (32, 32, True), (32, 64, False), (64, 64, True)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
    layers += [nn.Flatten(), nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(200, 10))
    weights_file = Path(os.environ.get("ADVCORE_DATA", "")) / "models/smallcnn_fmn_regular.npz"
    if weights_file.is_file():
        with np.load(weights_file) as weights:
            names = [f"{part}{i}" for part, count in (("conv", 4), ("fc", 3))
                     for i in range(1, count + 1)]  # fmt: skip
            parts = [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))]
            with torch.no_grad():
                for name, part in zip(names, parts, strict=True):
                    part.weight.copy_(torch.from_numpy(weights[f"{name}.weight"]))
                    part.bias.copy_(torch.from_numpy(weights[f"{name}.bias"]))
    else:
        images, labels = data.embedded_digits()
        images = images.reshape(len(images), -1)
        training.train(model, images, labels, epochs=10, learning_rate=1e-3)
    return model.eval().requires_grad_(False)


def agreement(images: Any, labels: Any) -> dict[str, Any]:
    """The package's network: the CPU's native engine against the GPU's solver through torch."""
    network, targets = data.embedded_network(), random_targets(labels, classes=10, seed=0)
    cpu = advcore.minimize_distortion(network, images, targets)
    model = network.to_torch().to("cuda")
    advcore.minimize_distortion(by_host(model), images[:64], targets[:64], device="cuda")
    gpu = advcore.minimize_distortion(by_host(model), images, targets, device="cuda")
    compared = gpu.success & cpu.success & (cpu.distortion > 0)
    gap = np.abs(gpu.distortion[compared] / cpu.distortion[compared] - 1)
    return {
        "images": len(images),
        "same_success": float((gpu.success == cpu.success).mean()),
        "same_status": float((gpu.status == cpu.status).mean()),
        "within_1e-3": float((gap < 1e-3).mean()),
        "mean_distortion": {"cpu": float(cpu.distortion[compared].mean()),
                            "gpu": float(gpu.distortion[compared].mean())},
        "seconds": {"cpu": cpu.seconds, "gpu": gpu.seconds},
    }  # fmt: skip


def by_host(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    """The module as a callable that is not lowered: its rounds are the host's."""

    def call(x: torch.Tensor) -> Any:
        return 1 * model(x)  # a function that only calls a module stands for the module

    return call


class Watched:
    """Times of the solver's calls while it is in force: events, read at the end."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[Any, Any, int]]] = {}

    def __enter__(self) -> Watched:
        self.originals = {
            name: getattr(cuda.CudaSession, name) for name in ("margin_loss", "advance")
        }
        for name, method in self.originals.items():
            setattr(cuda.CudaSession, name, self.timed(name, method))
        return self

    def timed(self, name: str, method: Any) -> Any:
        def call(session: Any, *arguments: Any) -> Any:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            out = method(session, *arguments)
            end.record()
            self.events.setdefault(name, []).append((begin, end, len(session._x)))
            return out

        return call

    def __exit__(self, *_: object) -> None:
        for name, method in self.originals.items():
            setattr(cuda.CudaSession, name, method)

    def times(self, name: str) -> list[tuple[float, int]]:
        """Milliseconds and rows of each call."""
        torch.cuda.synchronize()
        return [(begin.elapsed_time(end), rows) for begin, end, rows in self.events[name]]


def run_watched(model: nn.Module, images: Any, labels: Any, slots: int) -> dict[str, Any]:
    """One untargeted run with all slots full: times of its parts, and the solver's share."""
    fixed = {"labels": labels.astype(np.int64), "device": "cuda"}
    call = by_host(model)
    advcore.minimize_distortion(call, images[:64], labels=labels[:64], device="cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with Watched() as watched:
        result = advcore.minimize_distortion(call, images, batch_size=slots, **fixed)
    seconds = time.perf_counter() - begin
    advance = watched.times("advance")
    full = [ms for ms, rows in advance if rows >= 0.9 * slots]
    solver = sum(ms for name in ("margin_loss", "advance") for ms, _ in watched.times(name)) / 1e3
    return {
        "images": len(images),
        "slots": slots,
        "success": float(result.success.mean()),
        "mean_distortion": float(result.distortion[result.success].mean()),
        "seconds": seconds,
        "rounds": len(advance),
        "advance_full_ms": statistics.median(full) if full else None,
        "solver_share": solver / seconds,
    }


def table(figures: dict[str, Any]) -> str:
    """Figures as Markdown, a line each."""
    lines = [f"## {figures['device']}", "", "| figure | value |", "|---|---|"]

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, entry in value.items():
                add(f"{name}.{key}", entry)
        elif isinstance(value, float):
            lines.append(f"| {name} | {value:.4g} |")
        else:
            lines.append(f"| {name} | {value} |")

    for name, value in figures.items():
        if name != "device":
            add(name, value)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Every part."""
    if not torch.cuda.is_available() or not _core.cuda_status()[1]:
        sys.exit(f"no GPU: {_core.cuda_status()[2] or 'torch sees none'}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    from harness import machine

    properties = torch.cuda.get_device_properties(0)
    figures: dict[str, Any] = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }
    images, labels = digits()
    dense = data.embedded_network().to_torch().to("cuda")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ceilings": ceilings,
        "agreement": lambda: agreement(images, labels),
        "fully_connected": lambda: run_watched(dense, images, labels, len(images)),
        "convolutional": lambda: run_watched(
            small_cnn().to("cuda"), images[:2000], labels[:2000], min(1000, len(images))
        ),
    }
    for name, part in parts.items():
        print(f"bench_cuda: {name}", flush=True)
        try:
            figures[name] = part()
        except Exception:
            traceback.print_exc()
            figures[name] = {"failed": traceback.format_exc(limit=1).splitlines()[-1]}
        machine.save("bench_cuda", figures)  # a later part may hang
    copy = figures["ceilings"].get("copy_TB_s")
    took = figures["fully_connected"].get("advance_full_ms")
    if copy and took:
        moved_bytes = figures["fully_connected"]["slots"] * ROUND_VECTORS * 784 * 4
        figures["fully_connected"]["share_of_copy_bandwidth"] = moved_bytes / (took * 1e9 * copy)
    path = machine.save("bench_cuda", figures)
    path.with_suffix(".md").write_text(table(figures))
    print(table(figures))
    if any("failed" in figures[name] for name in parts):
        sys.exit("bench_cuda: a part failed")


if __name__ == "__main__":
    main()
