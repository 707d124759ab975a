"""Two builds of the package beside each other: time of the compiled solve, results.

    pip install --no-deps --target A ONE_SOURCE     (the same for B)
    python benchmarks/compare_builds.py A B [--network fc100_100_10] [--images 1000] [--runs 15]

A process each, which solve in turn on one thread, so that both see the same machine. Prints the
CPU time of the solve an image, the ratio of the smallest times and the median ratio of the pairs,
and for each build the mean distortion, evaluations and a checksum of the images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

import networks

WORKER = """
import sys, time, zlib
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import networks, torch
import advcore
for module in (advcore, advcore._core):  # not an editable installation, which comes first
    assert module.__file__.startswith(sys.argv[1]), f"{module.__file__} is not in {sys.argv[1]}"
torch.set_num_threads(1)
case = networks.case(sys.argv[3], targeted=True, images=int(sys.argv[4]))
model = advcore.Network.from_torch(case.model, case.images.shape[1:])
native, seconds = advcore.api.run_native, []
def timed(*arguments, **options):
    begin = time.process_time()
    found = native(*arguments, **options)
    seconds.append(time.process_time() - begin)
    return found
advcore.api.run_native = timed
solve = lambda: advcore.minimize_distortion(model, case.images, case.classes, threads=1)
result = solve()
print(f"{result.distortion.mean():.6f} mean distortion, "
      f"{result.evaluations.mean():.2f} evaluations,"
      f" {result.forwards.mean():.2f} forwards, {zlib.crc32(result.adversarial.tobytes()):08x}",
      flush=True)
for _ in sys.stdin:
    solve()
    print(seconds[-1] / len(case.images), flush=True)
"""


def answer(worker: subprocess.Popen[str]) -> str:
    """The next line that the worker prints."""
    assert worker.stdout is not None
    line = worker.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{worker.args[3]} failed")  # type: ignore[index]
    return line


def main() -> None:
    """Runs both workers in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "folders", nargs=2, type=os.path.abspath, help="where each build is installed"
    )
    parser.add_argument("--network", default="fc100_100_10")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    networks.network(options.network)  # trained once, before both ask for it
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, folder, sys.path[0], options.network,
             str(options.images)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for folder in options.folders
    ]  # fmt: skip
    for folder, worker in zip(options.folders, workers, strict=True):
        print(f"{folder}: {answer(worker)}")
    times: list[list[float]] = [[], []]
    for _ in range(options.runs):
        for worker, seconds in zip(workers, times, strict=True):
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            seconds.append(float(answer(worker)))
    for worker in workers:
        worker.communicate()
    for folder, seconds in zip(options.folders, times, strict=True):
        print(f"{folder}: {1e6 * min(seconds):.1f} us an image, "
              f"median {1e6 * statistics.median(seconds):.1f}")  # fmt: skip
    pairs = [b / a for a, b in zip(*times, strict=True)]
    print(
        f"ratio {min(times[1]) / min(times[0]):.3f}, median of pairs {statistics.median(pairs):.3f}"
    )


if __name__ == "__main__":
    main()
