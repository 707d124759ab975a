"""Memory: the number of images that a model gets at once, and errors that say it ran out."""

from __future__ import annotations

from typing import Any

from ..errors import ModelRaised

BACKWARD_BYTES = 1 << 27
"""Bytes that a forward may keep for its backward; the batch is smaller where it would keep more.
SqueezeNet keeps 30 MB an image. On a CPU it takes 141 ms an image in batches of 2, 155 in batches
of 8 and 233 in batches of 32."""


def rows(oracle: Any, limit: int, available_bytes: int = BACKWARD_BYTES) -> int:
    """Number of images whose activations fit into ``available_bytes``, from 1 to ``limit``."""
    if not oracle.saved_bytes:
        return limit
    most: int = available_bytes // oracle.saved_bytes
    return max(1, min(limit, most))


def ran_out(error: BaseException | None) -> bool:
    """Whether the error says that the model, or torch, got no memory on the GPU or the CPU."""
    cause = error.__cause__ if isinstance(error, ModelRaised) else error
    if type(cause).__name__ == "OutOfMemoryError" or isinstance(cause, MemoryError):
        return True
    return isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause)
