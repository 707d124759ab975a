"""Time of the engine beside the paper's SciPy loop and rival attacks, all in one run.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_speed.py
        [--threads T] [--images 1000] [--numpy-images 200] [--torch-images 32]
        [--sizes 1000,3000,10000,30000,100000]

The network is 784-100-100-10 with sigmoids, the images are correctly classified MNIST test digits
with random targets. All have T threads (default: all CPUs of the process): advcore T, the rivals T
of torch, the loops T processes. Results are checked before they count: inside [0, 1], adversarial
by a float32 forward of the torch module, distortions computed anew. advcore is timed several times
before and after every competitor. A ratio is the competitor's median over the median of these runs,
and its spread that of both.

The rivals (adv-lib; left out where it is not installed) run at the settings that `sweep_rivals.py`
chose on held-out images, in batches of the size that is fastest in a short run. The loops, which
are slow, take the first images only. `harness/speed_engine.py` then measures throughput and memory
by number of images, latency of one image, threads, and rates beside the machine's peak of
multiply-adds.

Figures go to ``benchmarks/results/bench_speed.json``; `make_pages.py speed` makes
``docs/benchmarks.md`` from them. A run takes seven minutes on two cores, two of them for C&W; the
first run trains two networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine, networks, rivals, speed_engine, speed_loops
from harness.speed_engine import attack, check_distances, spread
from numpy.typing import NDArray

from advcore.solve.native import default_threads

NETWORK = "fc100_100_10"
RIVALS = ("DDN-100", "DDN-1000", "ALMA-1000", "PDGD-500", "C&W 9x1000")
BATCHES = (100, 250, 500, 1000)
PROPAGATED = {"fc100_100_10": 1000, "fc200_200_10": 1000, "fc1000_1000_10": 200}
"""Images of each network whose rates are measured."""

ENGINE_REPEATS = 7
RIVAL_SECONDS = 5.0
"""A rival is run again, at most five times, until its runs take this long together."""

EQUAL = 0.01
"""A rival is as good as ours if it succeeds on as large a share of the images, less this, and its
mean distortion over the images that both succeed on is at most this above ours."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Images that a competitor returned for the first images of a case, and its time."""

    adversarial: NDArray[np.float32]
    claims: NDArray[np.float64] | None  # distortions, infinite without success
    ms: list[float]  # an image, of each repeat
    evaluations: float
    forwards: float
    extra: dict[str, Any]


def take_first(case: networks.Case, count: int) -> networks.Case:
    """The case with its first ``count`` images."""
    return dataclasses.replace(case, images=case.images[:count], classes=case.classes[:count])


def engine_ms(case: networks.Case, threads: int, repeats: int = ENGINE_REPEATS) -> list[float]:
    """Milliseconds an image of repeated calls."""
    return [1e3 * attack(case, threads).seconds / len(case.images) for _ in range(repeats)]


def loop_run(case: networks.Case, name: str, threads: int) -> Run:
    """The SciPy loop of that name in as many processes."""
    loop = speed_loops.LOOPS[name]
    solution = speed_loops.run(loop, case, threads)
    return Run(
        solution.adversarial,
        solution.distortion,
        [1e3 * float(solution.seconds.mean()) / threads],
        float(solution.evaluations.mean()),
        float(solution.forwards.mean()),
        {"settings": loop.options},
    )


def rival_run(case: networks.Case, name: str, settings: rivals.Settings, batch: int) -> Run:
    """The attack in batches, several times if it is quick."""
    counter = rivals.Counted(case.model)
    x, y = _tensors(case)
    call = rivals.RIVALS[name].call
    seconds: list[float] = []
    while not seconds or (sum(seconds) < RIVAL_SECONDS and len(seconds) < 5):
        torch.manual_seed(0)
        begin = time.perf_counter()
        parts = zip(torch.split(x, batch), torch.split(y, batch), strict=True)
        outputs = [call(counter, xs, ys, case.targeted, settings) for xs, ys in parts]
        adversarial = torch.cat(outputs)
        seconds.append(time.perf_counter() - begin)
    runs = len(seconds) * len(x)
    return Run(
        adversarial.detach().numpy(),
        None,
        [1e3 * s / len(x) for s in seconds],
        counter.evaluations / runs,
        counter.forwards / runs,
        {"settings": settings, "batch": batch},
    )


def batch_times(case: networks.Case, name: str, settings: rivals.Settings) -> dict[int, float]:
    """Milliseconds an image of a short run by batch size, the better of two."""
    brief_settings = {**settings, **rivals.RIVALS[name].brief}
    call = rivals.RIVALS[name].call
    call(case.model, *_tensors(take_first(case, 10)), case.targeted, brief_settings)
    times = {}
    for size in [b for b in BATCHES if b <= len(case.images)] or [len(case.images)]:
        x, y = _tensors(take_first(case, size))
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            call(case.model, x, y, case.targeted, brief_settings)
            seconds.append(time.perf_counter() - begin)
        times[size] = 1e3 * min(seconds) / size
    return times


def _tensors(case: networks.Case) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(case.images), torch.from_numpy(case.classes)


def best_rival_run(case: networks.Case, name: str) -> Run:
    """The rival at its chosen settings and its fastest batch size."""
    tuned = rivals.chosen_settings(case.name, targeted=case.targeted)
    settings = tuned.get(name, rivals.RIVALS[name].default)
    times = batch_times(case, name, settings)
    run = rival_run(case, name, settings, min(times, key=lambda size: times[size]))
    return dataclasses.replace(run, extra=run.extra | {"short_runs_by_batch": times})


def row(
    case: networks.Case, run: Run, our_ms: list[float], our_distances: NDArray[np.float64]
) -> dict[str, Any]:
    """Figures of a competitor beside advcore's distances and its times before and after the run."""
    count = len(run.adversarial)
    distances = check_distances(take_first(case, count), run.adversarial, run.claims)
    our_distances = our_distances[:count]
    successes = np.isfinite(distances)
    compared = successes & np.isfinite(our_distances)
    out: dict[str, Any] = {
        "images": count,
        "ms": spread(run.ms),
        "ours_ms": spread(our_ms),
        "ratio": {
            "median": statistics.median(run.ms) / statistics.median(our_ms),
            "min": min(run.ms) / max(our_ms),
            "max": max(run.ms) / min(our_ms),
        },
        "success": float(successes.mean()),
        "evaluations": run.evaluations,
        "forwards": run.forwards,
        "as_good": False,
    }
    if compared.any():
        out["mean_distortion"] = float(distances[successes].mean())
        out["mean_over_ours"] = float(distances[compared].mean() / our_distances[compared].mean())
        least_success = float(np.isfinite(our_distances).mean()) - EQUAL
        out["as_good"] = out["success"] >= least_success and out["mean_over_ours"] <= 1 + EQUAL
    return out | run.extra


def compare(
    case: networks.Case, competitors: dict[str, Callable[[], Run]], threads: int
) -> dict[str, dict[str, Any]]:
    """Rows of advcore and of each competitor, advcore timed between them."""
    result = attack(case, threads)
    our_distances = check_distances(case, result.adversarial, result.minimum_distortion())
    all_ms = ms_before = engine_ms(case, threads)
    rows: dict[str, dict[str, Any]] = {}
    for name, compete in competitors.items():
        run = compete()
        ms_after = engine_ms(case, threads)
        rows[name] = row(case, run, ms_before + ms_after, our_distances)
        _print(name, rows[name])
        all_ms, ms_before = all_ms + ms_after, ms_after
    counts = (float(result.evaluations.mean()), float(result.forwards.mean()))
    our_run = Run(result.adversarial, result.minimum_distortion(), all_ms, *counts, {})
    rows = {"advcore": row(case, our_run, all_ms, our_distances), **rows}
    for count in sorted({r["images"] for r in rows.values()} - {len(case.images)}):
        subset = take_first(case, count)
        rows["advcore"].setdefault("subsets", {})[str(count)] = spread(engine_ms(subset, threads))
    _print("advcore", rows["advcore"])
    return rows


def _print(name: str, figures: dict[str, Any]) -> None:
    ms, ratio = figures["ms"]["median"], figures["ratio"]
    print(
        f"{name:42} {ms:9.3f} ms  {ratio['median']:7.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})"
        f"  success {figures['success']:6.1%}  mean {figures.get('mean_distortion', np.nan):.4f}"
        f"  {figures['evaluations']:7.1f} + {figures['forwards']:.1f} evaluations",
        flush=True,
    )


def competitors(
    case: networks.Case, threads: int, numpy_images: int, torch_images: int
) -> dict[str, Callable[[], Run]]:
    """The runs by name, in their order."""
    runs: dict[str, Callable[[], Run]] = {}
    for name, loop in speed_loops.LOOPS.items():
        subset = take_first(case, numpy_images if loop.oracle == "numpy" else torch_images)
        runs[name] = functools.partial(loop_run, subset, name, threads)
    if not rivals.is_installed():
        print(f"{rivals.VERSION} is not installed: its attacks are left out")
        return runs
    for name in RIVALS:
        runs[name] = functools.partial(best_rival_run, case, name)
    return runs


def rates() -> list[dict[str, Any]]:
    """Propagation and solve beside the peak, by network; empty where there is no CMake."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        program = speed_engine.build_propagation(Path(folder))
        if program is None:
            print("cmake is not installed: rates are left out")
            return []
        for name, count in PROPAGATED.items():
            case = networks.case(name, targeted=True, images=count)
            out.append({"network": name, **speed_engine.propagation(program, case)})
            row = out[-1]
            print(
                f"{name:16} propagation {row['both']:.1%} of {row['peak']:.0f} Gflop/s, "
                f"solve {row['engine']['median']:.1%}, call {row['call']['median']:.1%}",
                flush=True,
            )
    return out


def main() -> None:
    """Measures everything and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--numpy-images", type=int, default=200)
    parser.add_argument("--torch-images", type=int, default=32)
    parser.add_argument(
        "--sizes",
        type=lambda text: [int(size) for size in text.split(",")],
        default=[1000, 3000, 10_000, 30_000, 100_000],
        help="numbers of images whose throughput is measured",
    )
    options = parser.parse_args()
    begin, threads = time.perf_counter(), options.threads
    torch.set_num_threads(threads)
    figures: dict[str, Any] = {
        "machine": machine.describe(),  # as it is before the run
        "command": " ".join(["python benchmarks/bench_speed.py", *sys.argv[1:]]),
        "threads": threads,
        "rivals": rivals.VERSION if rivals.is_installed() else None,
    }
    case = networks.case(NETWORK, targeted=True, images=options.images)
    figures["rates"] = rates()
    every_digit = networks.case(NETWORK, targeted=True, images=5000)
    figures["scaling"] = speed_engine.scaling(case, threads)
    figures["scaling_more"] = speed_engine.scaling(every_digit, threads)
    figures["latency"] = speed_engine.latency(case, threads)
    figures["throughput"] = speed_engine.throughput(every_digit, options.sizes, threads)
    figures["competitors"] = compare(
        case, competitors(case, threads, options.numpy_images, options.torch_images), threads
    )
    figures["seconds"] = time.perf_counter() - begin
    print(f"{figures['seconds']:.0f} s; {machine.save('bench_speed', figures)}")


if __name__ == "__main__":
    main()
