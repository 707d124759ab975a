"""The gradient of a torch model: does it reach the images, and do the logits follow it?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelRaised, warn_caller
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


def check_reaches(
    forward: Callable[..., Floats],
    x: Floats,
    logits: Floats,
    dlogits: Floats,
    gradient: Floats | None,
    may_step: bool,
) -> None:
    """Check the gradient of a torch model at the first rows of ``x``, those of ``logits`` (B, K).

    Parameters
    ----------
    forward : callable
        `Oracle.forward`.
    gradient : ndarray (B, n), or None
        That of the logits with the weights ``dlogits`` (B, K); None where no graph leads there.
    may_step : bool
        Whether logits that are constant along their gradient are as they should be.

    Raises
    ------
    ValueError
        There is no gradient although the logits change with the images.

    Warns
    -----
    UserWarning
        The gradient is zero although the logits change with the images. Or short ways along a
        gradient that is not zero change no bit of the logits: it is a straight-through gradient.
    """
    rows = len(logits)
    if gradient is not None and gradient.any():
        stepped = None if may_step else step_along(x[:rows], logits, dlogits, gradient)
        if stepped is not None and np.array_equal(logits, forward(stepped)):
            warn_caller(
                "the logits are constant along their gradient at the first images: a quantised "
                "model with a straight-through gradient? Steps are outside the method, and "
                "distortions may be well above the smallest"
            )
        return
    try:
        other_logits = forward(x[:rows] * np.float32(0.5) + np.float32(0.125), grad=False)
    except ModelRaised:  # it may refuse images outside the caller's bounds
        other_logits = forward(np.ascontiguousarray(x[::-1][:rows]), grad=False)
    if np.array_equal(logits, other_logits, equal_nan=True):
        return
    if gradient is None:
        raise ValueError(
            "model must be differentiable with torch.autograd: its output changes with its "
            "input but no graph leads there (torch.no_grad, detach or NumPy inside?)"
        )
    warn_caller(
        "the gradient of the model's logits is exactly zero at the first images, although "
        "the logits change with them: round, sign or another step function inside? Images "
        "without a gradient are searched in random directions only"
    )
