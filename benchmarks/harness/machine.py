"""The description of the machine, and the files of figures."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from advcore._files import write_text

RESULTS = Path(os.environ.get("ADVCORE_RESULTS") or Path(__file__).parents[1] / "results")


def describe() -> dict[str, Any]:
    """CPU, cores, instruction set, versions and commit."""
    import advcore
    from advcore import _core

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = {"advcore": advcore.__version__}
    for name in ("numpy", "scipy", "torch"):
        versions[name] = metadata.version(name)
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:  # no git there
        commit = ""
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "isa": _core.isa(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def figures_file(name: str) -> Path:
    """``results/<name>.json``, which need not exist."""
    return RESULTS / f"{name}.json"


def load(name: str) -> dict[str, Any]:
    """The figures of ``results/<name>.json``, with the machine that they were measured on."""
    figures: dict[str, Any] = json.loads(figures_file(name).read_text())
    return figures


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    path = figures_file(name)
    write_text(path, json.dumps({"machine": describe(), **figures}, indent=1) + "\n")
    return path
