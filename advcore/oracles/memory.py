"""Memory: the number of images that a model gets at once, and errors that say it ran out.

What a model's activations may take is a matter of the device that the model is on, whatever the
solver runs on.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from typing import Any

from ..errors import ModelRaised

BACKWARD_BYTES = 1 << 27
"""Bytes that a forward on the CPU may keep for its backward; the batch is smaller where it would
keep more. SqueezeNet keeps 30 MB an image. On a CPU it takes 141 ms an image in batches of 2, 155
in batches of 8 and 233 in batches of 32."""
GPU_SHARE = 0.5
"""Share of the free memory of a GPU for the activations of a round."""
HOST_SHARE = 0.25
"""Share of the free memory of the host for the solver's vectors, where the model is on a GPU."""


def rows(oracle: Any, limit: int, available_bytes: int = BACKWARD_BYTES) -> int:
    """Number of images whose activations fit, from 1 to ``limit``.

    On the CPU they get ``available_bytes``. On a GPU they get `GPU_SHARE` of what is free there,
    and an image takes what a smoothed forward keeps.
    """
    kept: int = oracle.saved_bytes
    if on_gpu(oracle):
        available_bytes = int(GPU_SHARE * free_bytes(oracle.device))
        kept = max(kept, oracle.smoothed_bytes)
    return max(1, min(limit, available_bytes // kept)) if kept else limit


def free_bytes(device: Any) -> int:
    """Free memory of a GPU, with what torch has kept of earlier runs and gives again."""
    cuda = sys.modules["torch"].cuda
    kept: int = cuda.memory_reserved(device) - cuda.memory_allocated(device)
    free: int = cuda.mem_get_info(device)[0]
    return free + kept


def total_bytes(device: Any) -> int:
    """Memory of a GPU, free or not."""
    return int(sys.modules["torch"].cuda.mem_get_info(device)[1])


def solver_bytes(oracle: Any, least: int) -> int:
    """Bytes of host memory for the vectors of the solver: ``least``, or more beside a GPU.

    There rounds of few images leave the GPU idle, so the vectors may take `HOST_SHARE` of what is
    free.
    """
    if not on_gpu(oracle) or "SC_AVPHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return least
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(least, int(HOST_SHARE * free))


def on_gpu(oracle: Any) -> bool:
    """Whether the model is evaluated on a GPU."""
    device: Any = getattr(oracle, "device", None)
    return device is not None and device.type == "cuda"


def ran_out(error: BaseException | None) -> bool:
    """Whether the error says that the model, or torch, got no memory on the GPU or the CPU."""
    cause = error.__cause__ if isinstance(error, ModelRaised) else error
    if type(cause).__name__ == "OutOfMemoryError" or isinstance(cause, MemoryError):
        return True
    return isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause)


def release(oracle: Any, error: BaseException | None) -> None:
    """Free what a run that has failed still holds, before a smaller one starts.

    The frames in the error's traceback hold the session and the activations of the model, and the
    error and these frames hold each other.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    gc.collect()
    oracle.forget()
