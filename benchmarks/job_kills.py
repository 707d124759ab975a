"""Is the table of a job that was killed and started again that of an undisturbed one?

    python benchmarks/job_kills.py [--kills 20] [--seed 0]

A job attacks 3,000 digits, some of them damaged, through the command. It is ended by `kill -9` and
by SIGTERM, each at as many moments as ``--kills`` says, uniform over the time of an undisturbed
run; one job in four is killed twice. Then it runs to its end. The outcome of each goes to
``benchmarks/results/job_kills.json``: exit codes, blocks that were there, rows lost and doubled,
and whether the table and all blocks have the bytes of the undisturbed job.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import machine

from advcore import data

IMAGES, BLOCK = 3000, 50
DAMAGED = (7, 1234, 2999)
SECOND_KILLS = 0.25
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
COMMAND = [sys.executable, "-c", "from advcore.cli import main; main()", "job", "run"]
JOB = """
model = "network.safetensors"
output = "{name}"
block = {block}
images = "float32"

[input]
kind = "arrays"
path = "x.npy"

[options]
effort = "fast"
threads = 1
"""


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """Start the job whose output has this name."""
    (folder / f"{name}.toml").write_text(JOB.format(name=name, block=BLOCK))
    return subprocess.Popen(
        [*COMMAND, f"{name}.toml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All Parquet files of a job."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.parquet")}


def kill_once(folder: Path, name: str, number: int, moment: float) -> dict[str, Any]:
    """Start the job and end it at a moment, in seconds after its start."""
    child = start(folder, name)
    try:
        child.wait(moment)
    except subprocess.TimeoutExpired:
        child.send_signal(number)
    code = child.wait()
    blocks = len(list((folder / name / "blocks").glob("*.parquet")))
    return {"second": round(moment, 2), "exit": code, "blocks": blocks}


def trial(
    folder: Path, name: str, number: int, moments: list[float], expected: dict[str, bytes]
) -> dict[str, Any]:
    """Kill a job at these moments, let it run to its end, and compare."""
    kills = [kill_once(folder, name, number, moment) for moment in moments]
    code = start(folder, name).wait()
    keys = Counter(pq.read_table(folder / name / "table.parquet")["key"].to_pylist())
    wanted = {f"x.npy:{row}" for row in range(IMAGES)}
    return {
        "kills": kills,
        "exit": code,
        "lost": len(wanted - set(keys)),
        "doubled": sum(count > 1 for count in keys.values()),
        "identical": contents(folder / name) == expected,
    }


def main() -> None:
    """Kill, resume, compare, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    rng = np.random.default_rng(settings.seed)
    figures: dict[str, Any] = {"images": IMAGES, "block": BLOCK, "trials": {}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        digits = np.tile(data.embedded_digits()[0], (IMAGES // 1000, 1))
        digits[list(DAMAGED), 300] = np.nan
        np.save(folder / "x.npy", digits)
        data.embedded_network().save(folder / "network.safetensors")
        begin = time.perf_counter()
        start(folder, "undisturbed").wait()
        seconds = time.perf_counter() - begin
        expected = contents(folder / "undisturbed")
        figures["seconds"] = round(seconds, 2)
        for label, number in SIGNALS.items():
            trials = []
            for index in range(settings.kills):
                moments = rng.uniform(0, seconds, 1 + (rng.random() < SECOND_KILLS)).tolist()
                name = f"{number}-{index}"
                trials.append(trial(folder, name, number, moments, expected))
                print(label, trials[-1], flush=True)
            figures["trials"][label] = trials
    print(machine.save("job_kills", figures))


if __name__ == "__main__":
    main()
