"""Locks between the processes of a job, by files in its folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

ALONE, TOGETHER = fcntl.LOCK_EX, fcntl.LOCK_SH
"""Kinds of a lock: one process has it, or all that want it together."""


@contextlib.contextmanager
def lock(path: Path, kind: int = ALONE, *, wait: bool = True) -> Iterator[None]:
    """A block in which the process has the lock of a hidden file, which stays.

    On a file system without locks the block runs all the same.

    Raises
    ------
    BlockingIOError
        Another process has it, and ``wait`` is False.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        yield
