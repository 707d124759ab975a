"""Facts of a GPU, and the outcome of the solver's test there, also of other processes.

The record is a file of JSON, an entry for each combination of build, GPU, driver and versions. An
entry says ``running`` before the test and its outcome after it, so that a crash, or a hang that was
killed, is what the next process finds. Importing this file imports no torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import _core
from .._files import write_text
from .._version import __version__
from ..errors import DeviceError, NoAnswer

TEST_SECONDS = 60.0
"""Seconds after which a test that is said to run is taken for one that hangs."""
PROMPT_SECONDS = 3.0
"""Seconds up to which Ctrl-C in a test is the user's haste. Later it is a hang."""

_outcomes: dict[str, str | None] = {}
"""Outcomes of this process."""


def number(device: Any) -> int:
    """Number of a torch device on a GPU; without one it is torch's current."""
    index = device.index
    return sys.modules["torch"].cuda.current_device() if index is None else int(index)


def facts(device: Any) -> dict[str, str]:
    """What decides about the solver on a torch device, by name."""
    torch = sys.modules["torch"]
    library = Path(_core.__file__).stat()
    driver, _ = _core.cuda_probe(number(device))
    capability = torch.cuda.get_device_capability(device)
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    return {
        "advcore": f"{__version__} ({library.st_size} bytes of {int(library.st_mtime)})",
        "GPU": str(torch.cuda.get_device_name(device)),
        "compute capability": f"{capability[0]}.{capability[1]}",
        "driver": f"CUDA {driver // 1000}.{driver % 1000 // 10}",
        "torch": f"{torch.__version__} with CUDA {torch.version.cuda}",
        "triton": triton,
    }


def path() -> Path:
    """The file of the record."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "advcore" / "gpu.json"


def tested(device: Any) -> str | None:
    """Why the solver must not run on the device, by its test; None: it may.

    The test runs once for a combination of build, kind of GPU, driver and versions.

    Raises
    ------
    DeviceError
        The test has left the device unusable for this process. The next one will not test again.
    """
    key = "; ".join(f"{name} {value}" for name, value in facts(device).items())
    if key not in _outcomes:
        try:
            _outcomes[key] = _recorded(key, device)
        except MemoryError as error:  # a later call may have more of it
            return f"no memory for its test ({error})"
    return _outcomes[key]


def _recorded(key: str, device: Any) -> str | None:
    entry = read().get(key, {})
    remedy = f"; remove {path()} to test again, or set ADVCORE_GPU=force"
    if entry.get("state") == "ok":
        return None
    if entry.get("state") == "failed":
        return f"its test failed before ({entry.get('why')}){remedy}"
    if entry.get("state") == "running" and not _may_be_running(entry):
        return f"a process ended, or hung, in the middle of its test{remedy}"
    from .gpu_test import self_test

    begin = time.time()
    _write(key, {"state": "running", "process": os.getpid(), "time": begin})
    try:
        why = self_test(device)
    except NoAnswer as error:
        _write(key, {"state": "failed", "why": str(error)})
        raise
    except MemoryError:
        _write(key, None)
        raise
    except BaseException:
        if time.time() - begin < PROMPT_SECONDS:
            _write(key, None)
        raise
    _write(key, {"state": "ok"} if why is None else {"state": "failed", "why": why})
    if why is not None and not answers(device):
        raise DeviceError(
            f"the test of the solver has failed ({why}) and {device} with it; restart the process"
        )
    return why if why is None else f"its test failed ({why}){remedy}"


def answers(device: Any) -> bool:
    """Whether a torch device can still be used, after an error."""
    try:
        sys.modules["torch"].zeros(1, device=device).item()
    except Exception:  # whatever it is, the device is of no use
        return False
    return True


def _may_be_running(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry may still be at its test."""
    began, process = entry.get("time"), entry.get("process")
    if not isinstance(began, float) or not isinstance(process, int):
        return False
    if not 0 <= time.time() - began < TEST_SECONDS:
        return False
    if os.name == "posix":
        with suppress(PermissionError):  # another user's: it is there
            try:
                os.kill(process, 0)
            except (ProcessLookupError, OverflowError):
                return False
    return True


def read() -> dict[str, Any]:
    """The record; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        content = json.loads(path().read_text())
        if isinstance(content, dict) and all(isinstance(e, dict) for e in content.values()):
            return content
    return {}


def _write(key: str, entry: dict[str, Any] | None) -> None:
    """Replace an entry, or remove it. Without a folder to write to nothing is recorded."""
    content = read()
    content.pop(key, None)
    if entry is not None:
        content[key] = entry
    with suppress(OSError):
        path().parent.mkdir(parents=True, exist_ok=True)
        write_text(path(), json.dumps(content, indent=1))
