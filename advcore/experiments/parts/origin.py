"""The origin of results: the command, the machine, the versions, the time."""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import advcore

if TYPE_CHECKING:
    from .run import Run


def origin(run: Run, names: Sequence[str], wall_seconds: float) -> dict[str, Any]:
    """Return the facts to store beside a result.

    wall_seconds : time that the user has waited for the result.
    """
    return {
        "command": command(run, names),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "wall_seconds": round(wall_seconds, 1),
        "scale": run.scale,
        "seeds": len(run.seeds),
        "dataset": run.dataset,
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "versions": {
            "advcore": advcore.__version__,
            "torch": metadata.version("torch"),
            "numpy": metadata.version("numpy"),
            "Python": platform.python_version(),
        },
    }


def command(run: Run, names: Sequence[str]) -> str:
    """Return the command that gives the same results.

    At the scale "tiny", which the command does not offer, it is the call in Python.
    """
    if run.scale == "tiny":
        options = f"scale='tiny', seeds={len(run.seeds)}, dataset={run.dataset!r}"
        return f"advcore.experiments.reproduce({list(names)}, {str(run.out)!r}, {options})"
    words = ["advcore", "reproduce", *names, *(["--quick"] if run.scale == "quick" else [])]
    words += ["--seeds", str(len(run.seeds)), "--out", str(run.out)]
    words += [] if run.dataset == "mnist" else ["--dataset", run.dataset]
    return shlex.join(words)


def processor() -> str:
    """Return the name of the processor from ``/proc/cpuinfo``, else that of the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
