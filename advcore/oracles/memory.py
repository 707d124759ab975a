"""How many images a model is given at once, and whether it ran out of memory."""

from __future__ import annotations

from ..errors import ModelRaised
from .protocol import Oracle

BACKWARD_BYTES = 1 << 27
"""Bytes that a forward may keep for its backward: fewer rows where they would be more. On a CPU
SqueezeNet (30 MB an image) takes 141 ms an image in batches of 2, 155 of 8 and 233 of 32."""


def rows(oracle: Oracle, most: int, room: int = BACKWARD_BYTES) -> int:
    """Images whose activations fit into ``room`` bytes, from 1 to ``most``."""
    if not oracle.saved_bytes:
        return most
    return max(1, min(most, room // oracle.saved_bytes))


def ran_out(error: BaseException | None) -> bool:
    """Whether the model, or torch, found no memory: on a GPU or on the CPU."""
    cause = error.__cause__ if isinstance(error, ModelRaised) else error
    if type(cause).__name__ == "OutOfMemoryError" or isinstance(cause, MemoryError):
        return True
    return isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause)
