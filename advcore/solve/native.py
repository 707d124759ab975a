"""A run of the compiled engine on the CPU, without Python in its loop."""

from __future__ import annotations

import os
from typing import Any

from numpy.typing import NDArray

from .. import _core
from ..network import Network
from .job import Job, Watch

NATIVE_SLOTS = 24
"""Rows of a tile: a multiple of the 8 and 6 rows of the kernels. 8 to 64 measured within 7%."""


TILE_BYTES = 512 << 20
"""Of a tile: vectors of the solver and activations. 2 rows of a small convolutional network run as
fast as 24; those of wide layers share the reading of the weights."""


def default_threads() -> int:
    """``ADVCORE_NUM_THREADS``, else the CPUs that this process may use."""
    given = os.environ.get("ADVCORE_NUM_THREADS")
    if given:
        if not (given.isascii() and given.isdigit()) or int(given) < 1:
            raise ValueError(f"ADVCORE_NUM_THREADS must be a positive integer, got {given!r}")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_native(
    network: Network, job: Job, *, threads: int, slots: int | None, watch: Watch
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    """Results by name, and what stopped the run: KeyboardInterrupt, an error of the callback."""
    if slots is None:
        row = network.core.row_bytes + _core.slot_bytes(job.params, job.lo.ndim == 2)
        slots = max(1, min(NATIVE_SLOTS, TILE_BYTES // row))
    results, error = _core.solve(
        network.core,
        job.params,
        job.images,
        job.labels,
        job.lo,
        job.hi,
        job.starts,
        threads,
        slots,
        watch,
    )
    return results, error
