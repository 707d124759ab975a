"""Short ways along a gradient, which change the logits of all models but those of steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .logits import unmasked

Floats = NDArray[np.float32]
STEP_CHANGE = 3e-5
"""Change of the logits, as a part of them, that a short way along the gradient should make: far
above the rounding of float32, far below what moves a unit to its next level."""


def step_along(x: Floats, logits: Floats, dlogits: Floats, gradient: Floats) -> Floats | None:
    """Images a short way along the gradient (B, n) of ``dlogits`` (B, K) from ``x`` (B, n).

    None where no way changes the logits (B, K) by more than rounding: they are of half precision or
    not finite, or the images are at the limits of their values.
    """
    halves = not (logits.view(np.uint32) & 0x1FFF).any()
    if halves or not np.isfinite(logits).all():
        return None
    norm2 = np.square(gradient, dtype=np.float64).sum(axis=1)
    size = np.where(unmasked(logits), np.abs(logits), 0).max(axis=1).astype(np.float64)
    change = STEP_CHANGE * size * np.abs(dlogits).max(axis=1)
    with np.errstate(all="ignore"):
        way = gradient * (change / norm2)[:, None]
        stepped: Floats = np.clip(x + way, x.min(), x.max()).astype(np.float32)
        expected = (gradient * (stepped - x).astype(np.float64)).sum(axis=1)
    return stepped if (expected > 0.1 * change).all() else None
