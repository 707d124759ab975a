"""Jobs beside plain calls of the same images: time, the cost of the images, memory.

    OMP_WAIT_POLICY=passive python benchmarks/bench_jobs.py [--pairs 5]

- *time*: a job, with its block of `advcore.jobs`, and `minimize_distortion` on all images at once
  take turns. Figures are ratios of each pair, of wall time and of the CPU time of the process. The
  embedded network attacks 10,000 digits in the engine; a small residual network attacks 8,192
  through torch. Its time with blocks of 256 says what small blocks cost.
- *images*: the same with adversarial images kept as float32 and as PNG, 4,000 digits in blocks of
  1,000.
- *memory*: peak memory of a process whose job attacks 1,000 to 1,000,000 digits of a .npy file with
  the least effort, in blocks of 1,000; ``--most`` says how many.

``--parts time,images`` measures these alone and keeps the stored figures of the others. Figures go
to ``benchmarks/results/bench_jobs.json``, and `make_pages.py jobs` writes the tables of
docs/jobs.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from torch import nn

import advcore
from advcore import data, jobs
from advcore.jobs.plan import MOST_IMAGES

MEMORY_PROGRAM = """
import json, re, sys, time
from pathlib import Path
from advcore import data, jobs
from advcore._arrays import map_array
begin = time.perf_counter()
source = jobs.MemorySource(map_array(sys.argv[1]), hashes={})
status = jobs.run(
    data.embedded_network(), source, sys.argv[2], block=1000, effort="fast", max_evaluations=5
)
assert status.is_complete and status.done.images == source.count
# The peak of getrusage has that of the parent in it.
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"peak_mib": peak, "seconds": time.perf_counter() - begin}))
"""
CHUNK = 10_000
"""Digits that are written to the file of images at once."""


class Residual(nn.Module):
    """Two convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.way = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Conv2d(inputs, outputs, 1, stride) if stride == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (B, outputs, H, W) of x (B, inputs, H, W)."""
        return torch.relu(self.way(x) + self.around(x))


def residual_network() -> nn.Module:
    """A small residual network for digits, after a short training on those of the package."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 4, 3, 2, 1),
        *(Residual(*sizes) for sizes in ((4, 4), (4, 8), (8, 16))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    images, labels = map(torch.from_numpy, data.embedded_digits())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for rows in (torch.arange(start, start + 50) % 1000 for start in range(0, 3000, 50)):
        loss = nn.functional.cross_entropy(net.train()(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def digits(count: int) -> Any:
    """Digits, each a little darker than the one 1,000 before it, (count, 784) float32."""
    images = data.embedded_digits()[0]
    shade = 1 - 0.001 * np.arange(-(-count // 1000), dtype=np.float32)
    return (shade[:, None, None] * images).reshape(-1, 784)[:count]


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall time and CPU time of a call, in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(model: Any, images: Any, pairs: int, block: int, kept: str, **options: Any) -> Any:
    """Ratios of a job's time to that of a call, over pairs that take turns."""
    ratios: list[tuple[float, float]] = []
    seconds, size = [], 0

    def call() -> None:
        advcore.minimize_distortion(model, images, **options)

    with tempfile.TemporaryDirectory() as place:

        def job() -> None:
            source = jobs.MemorySource(images)
            jobs.run(model, source, Path(place, "job"), block=block, images=kept, **options)

        for pair in range(pairs + 1):
            order = (call, job) if pair % 2 else (job, call)
            times = {run: timed(run) for run in order}
            parts = Path(place, "job", "blocks").glob("*.parquet")
            size = sum(path.stat().st_size for path in parts)
            shutil.rmtree(Path(place, "job"))
            if pair:  # the first one warms up
                ratios.append(tuple(times[job][i] / times[call][i] for i in (0, 1)))
                seconds.append(times[call][0])
    out = {"images": len(images), "block": block, "seconds": statistics.median(seconds)}
    for index, name in enumerate(("wall", "cpu")):
        values = [ratio[index] for ratio in ratios]
        out[name] = {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
    return out | {"bytes_an_image": size / len(images)}


def memory(counts: list[int]) -> dict[str, Any]:
    """Peak memory of a job's process by its number of images."""
    out = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "x.npy")
            values = np.lib.format.open_memmap(path, "w+", np.float32, (count, 784))
            for start in range(0, count, CHUNK):
                part = digits(CHUNK)[: count - start]
                values[start : start + len(part)] = part
                values.flush()
            del values
            done = subprocess.run(
                [sys.executable, "-c", MEMORY_PROGRAM, str(path), str(Path(place, "job"))],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        out[str(count)] = json.loads(done.stdout)
        print(count, out[str(count)], flush=True)
    return out


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--most", type=int, default=1_000_000, help="images of the largest job")
    parser.add_argument("--block", type=int, default=MOST_IMAGES)
    parser.add_argument("--parts", default="time,images,memory")
    settings = parser.parse_args()
    parts = settings.parts.split(",")
    figures: dict[str, Any] = {}
    if machine.figures_file("bench_jobs").is_file():
        figures = machine.load("bench_jobs")
        del figures["machine"]
    pairs, block = settings.pairs, settings.block
    network, many = data.embedded_network(), digits(10_000)
    if "time" in parts:
        net = residual_network()
        figures["time"] = {
            "embedded": compare(network, many, pairs, block, "none"),
            "residual": compare(net, digits(8192), pairs, block, "none", effort="fast"),
            "residual, small blocks": compare(net, digits(1024), pairs, 256, "none", effort="fast"),
        }
        print(figures["time"], flush=True)
    if "images" in parts:
        figures["images"] = {
            kept: compare(network, many[:4000], pairs, 1000, kept, levels=256)
            for kept in ("none", "float32", "png")
        }
        print(figures["images"], flush=True)
    if "memory" in parts:
        counts = [count for count in (1000, 10_000, 100_000, 1_000_000) if count <= settings.most]
        figures["memory"] = memory(counts)
    print(machine.save("bench_jobs", figures))


if __name__ == "__main__":
    main()
