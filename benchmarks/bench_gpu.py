"""Native networks on a GPU: time, distortions and bound, beside the CPU, torch and other attacks.

    python benchmarks/bench_gpu.py [--device cuda] [--images 10000] [--parts every_target,resnet50]

The network is 784-100-100-10 with sigmoids, trained on MNIST (`networks.RECIPES`). The images are
MNIST's test set, every image with each of its 9 wrong classes, and with one of them. Where MNIST is
not at hand, the package's network and its digits are used, with small noise to make up the number.

The other attacks, adv-lib's at the settings swept for this network, run on the same device in
float32, each in batches of the size that was fastest. Every distortion is checked in float32 by
the network itself before a time counts. Figures go to benchmarks/results/bench_gpu.json after
every part, beside those of other parts that were measured before; `make_pages.py gpu` makes the
tables in docs/benchmarks.md from them. The part resnet50 is a ResNet-50 on noise of the size of
pictures, untargeted, with the effort "fast". With --device cpu the same parts run without a GPU, to
try the script itself, and nothing is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import machine, networks, rivals
from harness.gpu_cases import resnet50

import advcore
from advcore import data
from advcore.network import Network
from advcore.solve import verify

NETWORK = "fc100_100_10"
ROUND_BYTES = 30 * 4
"""Bytes of a variable, image and round by the design's count: 5 pairs of history are read twice,
and there are ten passes over vectors. 784 variables make 100 KB."""
RIVALS = ("PDGD-500", "DDN-1000", "ALMA-1000")
BATCHES = (2_500, 10_000, 45_000)
SLOTS = (1024, 2048, 4096, 8192, 16384)
PRECISIONS = ("ieee", "tf32x3")


class Problem:
    """Images (N, 784), every wrong class of each, and the network in both forms."""

    def __init__(self, images: int, device: str) -> None:
        if os.environ.get("ADVCORE_DATA"):
            self.name, self.source = NETWORK, "MNIST test images"
            self.network = Network.from_torch(networks.network(NETWORK), (784,))
            self.images = data.mnist("test")[0].reshape(-1, 784)[:images]
        else:
            self.name, self.source = "embedded", "the package's digits with noise"
            self.network = data.embedded_network()
            self.images = _noisy_digits(images)
        labels = self.network.forward(self.images).argmax(axis=1)
        self.one = data.random_targets(labels, classes=10, seed=0)
        self.device = device
        self.every = np.concatenate([(labels + shift) % 10 for shift in range(1, 10)])
        self.module = self.network.to_torch().to(device)

    def tiled(self) -> Any:
        """The images of `every`, (9 N, 784)."""
        return np.tile(self.images, (9, 1))

    def attack(self, images: Any, targets: Any, **options: Any) -> advcore.Result:
        return advcore.minimize_distortion(
            self.network, images, targets, device=self.device, **options
        )


def _noisy_digits(count: int) -> Any:
    digits, _ = data.embedded_digits()
    digits = digits.reshape(len(digits), -1)
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (count, digits.shape[1]))
    return np.clip(digits[np.arange(count) % len(digits)] + noise, 0, 1).astype(np.float32)


def check_distances(problem: Problem, images: Any, targets: Any, adversarial: Any) -> Any:
    """||r||_2 of every image that the network in float32 takes for its target, else infinite."""
    adversarial = np.clip(np.asarray(adversarial, dtype=np.float32), 0, 1)
    logits = verify.batched(problem.network.forward, adversarial, 8192)
    hits = logits.argmax(axis=1) == targets
    return np.where(hits, verify.distances(adversarial, images), np.inf)


def figures(problem: Problem, images: Any, targets: Any, adversarial: Any, seconds: Any) -> Any:
    """Success, mean distortion and seconds (median of several)."""
    distances = check_distances(problem, images, targets, adversarial)
    out = {"images": len(distances), "success": float(np.isfinite(distances).mean())}
    out["mean_distortion"] = float(distances[np.isfinite(distances)].mean())
    out["seconds"] = statistics.median(seconds)
    out["seconds_all"] = list(seconds)
    return out


def engine(problem: Problem, images: Any, targets: Any, repeats: int, **options: Any) -> Any:
    """Whole calls, after a first one that compiles and warms up; and what the engine said."""
    begin = time.perf_counter()
    problem.attack(images[:64], targets[:64], **options)
    first_seconds = time.perf_counter() - begin
    calls, results = [], []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        results.append(problem.attack(images, targets, **options))
        calls.append(time.perf_counter() - begin)
    result = results[-1]
    out = figures(problem, images, targets, result.adversarial, calls[1:])
    out |= {
        "first_call_seconds": first_seconds,
        "second_call_seconds": calls[0],
        "engine": result.engine,
    }
    out["evaluations"] = float(result.evaluations.mean())
    rounds = [float(r.engine["round_seconds"]) for r in results[1:] if "round_seconds" in r.engine]
    if rounds:
        out["round_seconds"] = statistics.median(rounds)
    return out


def bound(problem: Problem, run: Any, bandwidth: float) -> None:
    """Share of the time that the bytes of the design's count take at the bandwidth of a copy."""
    if "round_seconds" not in run:
        return
    moved_bytes = run["images"] * run["evaluations"] * ROUND_BYTES * problem.images.shape[1]
    run["bound_seconds"] = moved_bytes / bandwidth
    run["share_of_bound"] = run["bound_seconds"] / run["round_seconds"]


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read plus written."""
    if device == "cpu":
        return 1e10
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        target.copy_(source)
    torch.cuda.synchronize()
    return 20 * 2 * source.nbytes / (time.perf_counter() - begin)


def agreement(problem: Problem) -> Any:
    """Against the CPU's native engine, an image each."""
    images, targets = problem.images, problem.one
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        cpu = advcore.minimize_distortion(problem.network, images, targets)
        seconds.append(time.perf_counter() - begin)
    gpu = problem.attack(images, targets)
    compared = cpu.success & gpu.success & (cpu.distortion > 0)
    ratio = gpu.distortion[compared] / cpu.distortion[compared]
    return {
        "images": len(images),
        "threads": cpu.engine["threads"],
        "cpu_seconds": statistics.median(seconds[1:]),
        "same_success": float((cpu.success == gpu.success).mean()),
        "same_status": float((cpu.status == gpu.status).mean()),
        "within_1e-3": float((np.abs(ratio - 1) < 1e-3).mean()),
        "mean_ratio": float(gpu.distortion[compared].mean() / cpu.distortion[compared].mean()),
        "evaluations": {"cpu": float(cpu.evaluations.mean()), "gpu": float(gpu.evaluations.mean())},
    }


def torch_path(problem: Problem) -> Any:
    """The same network as a callable that is not lowered: rounds by the host, torch's kernels."""
    model = problem.module

    def call(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(x)
        return logits

    images, targets = problem.images, problem.one
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        result = advcore.minimize_distortion(call, images, targets, device=problem.device)
        seconds.append(time.perf_counter() - begin)
    return figures(problem, images, targets, result.adversarial, seconds[1:])


def pictures(device: str, count: int, side: int) -> Any:
    """ResNet-50 on random pictures, after a call that warms up: time, rounds and memory."""
    model = resnet50().to(device)
    images = np.random.default_rng(0).random((count, 3, side, side), dtype=np.float32)
    calls = []
    for _ in range(2):
        begin = time.perf_counter()
        result = advcore.minimize_distortion(model, images, effort="fast", device=device)
        calls.append(time.perf_counter() - begin)
    out: dict[str, Any] = {
        "images": count,
        "side": side,
        "first_call_seconds": calls[0],
        "seconds": calls[1],
        "success": float(result.success.mean()),
        "mean_distortion": float(result.distortion[result.success].mean()),
        "evaluations": float(result.evaluations.mean()),
        "engine": result.engine,
    }
    if device != "cpu":
        out["peak_bytes"] = torch.cuda.max_memory_allocated()
    return out


def rival(problem: Problem, name: str) -> Any:
    """One attack on every image and target; the batch is what was fastest on 10 steps."""
    entry = rivals.RIVALS[name]
    settings = rivals.chosen_settings(problem.name, targeted=True).get(name, entry.default)
    images, targets = problem.tiled(), problem.every
    x = torch.from_numpy(images).to(problem.device)
    t = torch.from_numpy(targets).to(problem.device)

    def run(count: int, batch: int, changes: dict[str, Any]) -> tuple[float, Any]:
        adversarial = []
        synchronize(problem.device)
        begin = time.perf_counter()
        for begin_row in range(0, count, batch):
            end_row = min(begin_row + batch, count)
            some, classes = x[begin_row:end_row], t[begin_row:end_row]
            adversarial.append(
                entry.call(problem.module, some, classes, True, {**settings, **changes})
            )
        synchronize(problem.device)
        return time.perf_counter() - begin, torch.cat(adversarial)

    speeds = {}
    for batch in BATCHES:
        count = min(batch, len(images))
        run(count, batch, {"steps": 10})
        speeds[batch] = run(count, batch, {"steps": 10})[0] / count
    batch = min(speeds, key=lambda size: speeds[size])
    seconds, adversarial = run(len(images), batch, {})
    out = figures(problem, images, targets, adversarial.detach().cpu().numpy(), [seconds])
    return {**out, "batch": batch, "settings": settings}


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def with_precision(name: str, run: Callable[[], Any]) -> Any:
    """The run with the kernels' products in this precision."""
    os.environ["ADVCORE_PRECISION"] = name
    try:
        return run()
    finally:
        del os.environ["ADVCORE_PRECISION"]


def main() -> None:
    """Every part; one that fails is named and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--side", type=int, default=224, help="of a picture")
    parser.add_argument("--parts", help="names, separated by commas; all others stay as they are")
    options = parser.parse_args()
    device = options.device
    if device != "cpu" and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use")
    torch.backends.cuda.matmul.allow_tf32 = False
    problem = Problem(options.images, device)
    bandwidth = copy_bandwidth(device)
    record: dict[str, Any] = {
        "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "network": problem.name,
        "images": problem.source,
        "copy_TB_s": bandwidth / 1e12,
    }

    def all_targets() -> Any:
        out = engine(problem, problem.tiled(), problem.every, 3)
        bound(problem, out, bandwidth)
        return out

    def single_target() -> Any:
        out = engine(problem, problem.images, problem.one, 5)
        bound(problem, out, bandwidth)
        return out

    parts: dict[str, Callable[[], Any]] = {
        "every_target": all_targets,
        "one_target": single_target,
        "agreement": lambda: agreement(problem),
        "torch_path": lambda: torch_path(problem),
    }
    if rivals.is_installed():
        for name in RIVALS:
            parts[name] = lambda name=name: rival(problem, name)
    else:
        record["rivals"] = "adv-lib is not installed"
    parts |= {
        "resnet50": lambda: pictures(device, options.pictures, options.side),
        "slots": lambda: {
            str(slots): engine(problem, problem.tiled(), problem.every, 1, batch_size=slots)
            for slots in SLOTS
        },
        "precision": lambda: {
            name: with_precision(name, lambda: engine(problem, problem.images, problem.one, 1))
            for name in PRECISIONS
        },
    }
    chosen = list(parts)
    if options.parts:
        chosen = options.parts.split(",")
        if unknown := set(chosen) - set(parts):
            sys.exit(
                f"bench_gpu: no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
            )
        if device != "cpu" and machine.figures_file("bench_gpu").is_file():
            stored = machine.load("bench_gpu")
            del stored["machine"]  # it may have changed
            record = stored | record
    for name in chosen:
        part = parts[name]
        print(f"bench_gpu: {name}", flush=True)
        try:
            record[name] = part()
            print(json.dumps(record[name], default=str), flush=True)
        except Exception:
            traceback.print_exc()
            record[name] = {"failed": traceback.format_exc(limit=1).splitlines()[-1]}
        if device != "cpu":
            machine.save("bench_gpu", record)  # a later part may hang
    seconds = [f"{name} {record[name]['seconds']:.3g} s" for name in chosen
               if "seconds" in record[name]]  # fmt: skip
    print(f"verdict: {', '.join(seconds) or 'no part has seconds'}")
    if any("failed" in record[name] for name in chosen):
        sys.exit("bench_gpu: a part failed")


if __name__ == "__main__":
    main()
