"""What a benchmark ran on, and where its figures go."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(os.environ.get("ADVCORE_RESULTS") or Path(__file__).parent / "results")


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


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` with the machine's description."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    part = path.with_suffix(".part")  # a program that is killed leaves the old file or the new one
    part.write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n")
    return part.replace(path)
