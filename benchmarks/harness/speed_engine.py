"""The engine by itself: throughput and memory by number of images, latency, threads, rates.

Propagation counts 2 x weights flops a row and direction: an evaluation is a forward and a backward.
Its rate alone and the peak of multiply-adds come from ``benchmarks/native/propagation.cpp``, built
here with CMake; both, and the solve beside them, are measured in CPU time on one thread.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import advcore
from advcore.data import random_targets
from advcore.solve.native import NATIVE_SLOTS, NativeBackend

from . import envelope, networks

ROOT = Path(__file__).resolve().parents[2]
LATENCY_CALLS = 200


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def attack(case: networks.Case, threads: int) -> advcore.Result:
    """The call that is measured."""
    return advcore.minimize_distortion(case.model, case.images, case.classes, threads=threads)


def check_distances(case: networks.Case, adversarial: Any, claims: Any = None) -> envelope.Floats:
    """||r||_2 of each image that the network's float32 forward confirms, else infinite.

    Raises ValueError where an image leaves [0, 1] (by more than the rounding of x + r, for attacks
    that claim nothing) or a claimed distortion, infinite without success, is not what comes out.
    """
    low, high = float(adversarial.min()), float(adversarial.max())
    slack = 1e-6 if claims is None else 0.0
    if low < -slack or high > 1 + slack:
        raise ValueError(f"images must be in [0, 1], got {low} to {high}")
    distances = envelope.distances(case, adversarial)
    if claims is not None and not np.allclose(distances, claims, rtol=1e-5, atol=0):
        worst = int(np.argmax(~np.isclose(distances, claims, rtol=1e-5, atol=0)))
        raise ValueError(f"image {worst}: {claims[worst]} claimed, {distances[worst]} found")
    return distances


def repeat_digits(case: networks.Case, count: int) -> networks.Case:
    """``count`` images: the digits of the case again and again, in random order, other targets.

    The classes of the case are not used: its images are classified correctly, so that the network's
    prediction is the label.
    """
    with torch.inference_mode():
        labels = case.model(torch.from_numpy(case.images)).argmax(dim=1).numpy()
    orders, targets = [], []
    for cycle in range(-(-count // len(labels))):
        orders.append(np.random.default_rng(cycle).permutation(len(labels)))
        targets.append(random_targets(labels[orders[-1]], classes=networks.CLASSES, seed=cycle))
    rows = np.concatenate(orders)[:count]
    return dataclasses.replace(
        case, images=case.images[rows], classes=np.concatenate(targets)[:count]
    )


def throughput(
    case: networks.Case, sizes: Sequence[int], threads: int, seconds: float = 4.0
) -> list[dict[str, Any]]:
    """Rates and memory of each size, upwards and down again, twice, each in a fresh process."""
    runs: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
    for size in (*sizes, *reversed(sizes)) * 2:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            runs[size].append(pool.submit(_throughput, case, size, threads, seconds).result())
        rates = runs[size][-1]
        print(f"{size:9,} images: {statistics.median(rates['rates']):8,.0f} /s", flush=True)
    return [
        {
            "images": size,
            "images_per_second": spread([rate for run in of_size for rate in run["rates"]]),
            "extra_bytes": statistics.median(run["extra_bytes"] for run in of_size),
            **of_size[0]["result"],
        }
        for size, of_size in runs.items()
    ]


def _throughput(case: networks.Case, count: int, threads: int, seconds: float) -> dict[str, Any]:
    """Rates of repeated calls and the memory of the first, in the process that runs this."""
    torch.set_num_threads(threads)
    attack(dataclasses.replace(case, images=case.images[:100], classes=case.classes[:100]), threads)
    digits = repeat_digits(case, count)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now
    memory_before = _status("VmRSS")
    result = attack(digits, threads)
    arrays = sum(a.nbytes for a in vars(result).values() if isinstance(a, np.ndarray))
    extra = _status("VmHWM") - memory_before - arrays
    distances = check_distances(digits, result.adversarial, result.minimum_distortion())
    rates = [count / result.seconds]
    while sum(count / rate for rate in rates) < seconds:
        rates.append(count / attack(digits, threads).seconds)
    return {
        "rates": rates,
        "extra_bytes": extra,
        "result": {
            "success": float(np.isfinite(distances).mean()),
            "mean_distortion": float(distances[np.isfinite(distances)].mean()),
            "evaluations": float(result.evaluations.mean()),
        },
    }


def _status(key: str) -> int:
    """A size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def through_torch(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as a function that does more than call it, so that it is not lowered."""
    return lambda x: 1 * torch.as_tensor(model(x))


def latency(
    case: networks.Case, threads: int, calls: int = LATENCY_CALLS
) -> dict[str, dict[str, float]]:
    """Milliseconds of a call with a single image, by kind of model."""
    models = {
        "advcore.Network": advcore.Network.from_torch(case.model, case.images.shape[1:]),
        "torch module, lowered": case.model,
        "torch module, through torch": through_torch(case.model),
    }
    out = {}
    for name, model in models.items():
        ms = []
        for call in range(calls):
            row = [call % len(case.images)]
            x, y = case.images[row], case.classes[row]
            begin = time.perf_counter()
            advcore.minimize_distortion(model, x, y, threads=threads)
            ms.append(1e3 * (time.perf_counter() - begin))
        out[name] = spread(ms) | {"p99": float(np.percentile(ms, 99))}
    return out


def scaling(case: networks.Case, threads: int, repeats: int = 9) -> dict[str, Any]:
    """Milliseconds an image on one thread and on ``threads``, in turn, and their ratio."""
    ms: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(repeats):
        for count, times in ms.items():
            times.append(1e3 * attack(case, count).seconds / len(case.images))
    out: dict[str, Any] = {"images": len(case.images), "threads": threads, "one": spread(ms[1])}
    if threads > 1:
        out["all"] = spread(ms[threads])
        out["speedup"] = spread([a / b for a, b in zip(ms[1], ms[threads], strict=True)])
    return out


def build_propagation(folder: Path) -> Path | None:
    """The program, built in ``folder``; None where there is no CMake."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return None
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-DADVCORE_BENCHMARKS=ON"]
    configure += ["-DADVCORE_MODULE=OFF", "-DADVCORE_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (configure, [cmake, "--build", str(folder), "--target", "propagation"]):
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            raise RuntimeError(f"{command}:\n{process.stdout}{process.stderr}")
    return folder / "propagation"


def rates(program: Path, widths: Sequence[int], seconds: float) -> dict[str, Any]:
    """Gflop/s that the program prints, best and median, of the peak and of the directions."""
    command = [str(program), str(seconds), str(NATIVE_SLOTS), *map(str, widths)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    gflops: dict[str, Any] = json.loads(process.stdout)
    return gflops


def propagation(
    program: Path, case: networks.Case, repeats: int = 7, seconds: float = 1.5
) -> dict[str, Any]:
    """Rates of the propagation alone and in the solve, and their shares of the peak around it."""
    network = advcore.Network.from_torch(case.model, case.images.shape[1:])
    widths = [network.inputs, *(layer.weight.shape[0] for layer in network.layers)]
    rates_before = rates(program, widths, seconds)
    engine, call, flops = solve_rates(case, network, repeats)
    both_rates = [rates_before, rates(program, widths, seconds)]
    peak = statistics.mean(r["peak"][1] for r in both_rates)
    out: dict[str, Any] = {"widths": widths, "images": len(case.images), "isa": rates_before["isa"]}
    out |= {"peak": peak, "peak_best": max(r["peak"][0] for r in both_rates), "solve_flops": flops}
    for key in ("forward", "backward", "both"):
        out[key] = statistics.mean(r[key][1] for r in both_rates) / peak
    out["engine"] = spread([rate / peak for rate in engine])
    out["call"] = spread([rate / peak for rate in call])
    return out


def solve_rates(
    case: networks.Case, network: advcore.Network, repeats: int
) -> tuple[list[float], list[float], float]:
    """Useful Gflop/s of the compiled solve and of the whole call, one thread; flops an image."""
    solve_seconds: list[float] = []

    run = NativeBackend.run

    def timed(*arguments: Any) -> Any:
        seconds, results = _cpu_seconds(lambda: run(*arguments))
        solve_seconds.append(seconds)
        return results

    call_seconds = []
    with mock.patch.object(NativeBackend, "run", timed):
        for _ in range(repeats + 1):
            seconds, result = _cpu_seconds(lambda: attack(case, 1))
            call_seconds.append(seconds)
    check_distances(case, result.adversarial, result.minimum_distortion())
    rows = int(2 * result.evaluations.sum() + result.forwards.sum())
    flops = 2.0 * sum(layer.weight.size for layer in network.layers) * rows
    engine, call = (
        [1e-9 * flops / seconds for seconds in times[1:]] for times in (solve_seconds, call_seconds)
    )
    return engine, call, flops / len(case.images)


def _cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    value = run()
    return time.process_time() - begin, value
