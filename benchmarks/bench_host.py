"""Passes over all images of a call on the host, in the engine beside NumPy's.

    python benchmarks/bench_host.py [--images 90000] [--values 784] [--threads 1]

Prints milliseconds of CPU time, the median of five, of what `minimize_distortion` does with whole
arrays besides the search: the check of the images, the check that results are inside the bounds,
which of them moved, their distances, and the rows that are verified. Both forms of a pass must
agree: exactly, but for distances, whose sums have another order. It stores nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from advcore import validate
from advcore.solve.verify import distances, taken

REPEATS = 5
ROUNDING = 1e-13
"""Largest relative difference of two sums in float64 of another order."""


def numpy_range(images: Any) -> tuple[float, float, bool]:
    """What `validate.value_range` returns."""
    return float(images.min()), float(images.max()), bool(np.isfinite(images).all())


def numpy_outside(x: Any) -> bool:
    """Whether a value is outside [0, 1], a thousand images at a time."""
    return any(
        ((x[i : i + 1024] < 0) | (x[i : i + 1024] > 1)).any() for i in range(0, len(x), 1024)
    )


def numpy_distances(x: Any, clean: Any) -> Any:
    """Distances (N,) float64, a thousand images at a time."""
    parts = []
    for i in range(0, len(x), 1024):
        r = (x[i : i + 1024] - clean[i : i + 1024]).astype(np.float64)
        parts.append(np.sqrt(r[:, None] @ r[:, :, None]).ravel())
    return np.concatenate(parts)


def milliseconds(run: Callable[[], object]) -> float:
    """Median CPU time of several, after one that touches the memory."""
    run()
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - begin))
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """Every pass in both forms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=90_000)
    parser.add_argument("--values", type=int, default=784)
    parser.add_argument("--threads", type=int, default=1, help="of the distances")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    clean = rng.random((options.images, options.values), dtype=np.float32)
    x = np.clip(clean + rng.normal(0, 0.01, (1, options.values)).astype(np.float32), 0, 1)
    rows = np.arange(options.images)

    def inside() -> bool:
        low, high, _ = validate.value_range(x)
        return not (low >= 0 and high <= 1)

    passes: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "images are finite, and their range": (
            lambda: numpy_range(clean),
            lambda: validate.value_range(clean),
        ),
        "results are inside the bounds": (lambda: numpy_outside(x), inside),
        "which results moved": (
            lambda: (x[rows] != clean[rows]).any(axis=1),
            lambda: distances(taken(x, rows), taken(clean, rows)) > 0,
        ),
        "distances": (
            lambda: numpy_distances(x, clean),
            lambda: distances(x, clean, options.threads),
        ),
        "rows that are verified": (lambda: x[rows], lambda: taken(x, rows)),
    }
    print(f"{options.images:,} images of {options.values} values: CPU ms by NumPy, and now")
    total = np.zeros(2)
    for name, (before, now) in passes.items():
        a, b = np.asarray(before()), np.asarray(now())
        same = np.allclose(a, b, rtol=ROUNDING, atol=0) if name == "distances" else (a == b).all()
        if not same:
            sys.exit(f"bench_host: {name}: the two forms disagree")
        both = milliseconds(before), milliseconds(now)
        total += both
        print(f"{name:36} {both[0]:8.1f} {both[1]:8.1f}", flush=True)
    print(f"{'all':36} {total[0]:8.1f} {total[1]:8.1f}")


if __name__ == "__main__":
    main()
