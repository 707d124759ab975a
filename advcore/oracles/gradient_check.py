"""The ``backward`` of a NumPy model against difference quotients of its ``forward``.

Along its gradient g, a function f of the logits changes by g'd over a short way d. The ratio of the
change to g'd is 1 for a right ``backward``, whatever the model. It is measured from both sides of a
few images, over ways of several lengths: rounding spoils the shortest, kinks and steps the longest.
A straight-through gradient, as of a quantised model, is right over some of the lengths.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import warn_caller
from .logits import Forward, batched, unmasked
from .protocol import Oracle

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

IMAGES = 8
"""Images that are looked at."""
LENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)
"""Lengths of the ways to either side, as parts of the diagonal of the box. Minimum distortions are
some percent of it."""
WIDE = 256.0
"""Distance of bounds above which the values of the images say how long a way is."""
SIGNAL = 20.0
"""Multiple of the rounding of f that a change must have."""
ROUNDING = 16 * float(np.finfo(np.float32).eps)
"""Rounding of a logit, as a part of the image's largest one."""
SAME = 0.05
"""Relative deviation within which the ratios of all images count as one constant factor."""
EXACT = 0.1
"""Difference from 1 of a constant factor that is an error."""
LEAST, MOST = 0.75, 1.33
"""Median ratios between which a ``backward`` that is not off by a factor passes."""


def check_gradient(oracle: Oracle, sample: Floats, box: tuple[Floats, Floats], rows: int) -> None:
    """Compare the backward with differences of the forward at the first images of ``sample``.

    Parameters
    ----------
    sample : ndarray (B, n) float32
        Images, of which the first 8, or ``rows``, are used; B may be 0.
    box : pair of ndarray (n,) or (B or more, n) float32
        Bounds that no evaluated image leaves.
    rows : int
        Images of one call of the model.

    Raises
    ------
    ValueError
        The gradient has the wrong sign, or is off by a constant factor.

    Warns
    -----
    UserWarning
        The gradient is zero although the logits change, or is wrong by no constant factor.
    """
    x = np.ascontiguousarray(sample[: min(IMAGES, rows)])  # few calls of a model with few rows
    if not len(x):
        return
    lo, hi = (np.broadcast_to(b if b.ndim == 1 else b[: len(x)], x.shape) for b in box)
    logits, weights, gradient = gradients(oracle, x)
    usable = np.isfinite(gradient).all(axis=1) & weights.any(axis=1)
    x, lo, hi, logits = (part[usable] for part in (x, lo, hi, logits))
    weights, gradient = weights[usable], gradient[usable]
    if gradient.any():
        _judge(ratios(oracle, x, (lo, hi), logits, weights, gradient, rows))
    elif len(x):
        _warn_if_zero(oracle, x, logits, (lo, hi), rows)


def gradients(oracle: Oracle, x: Floats) -> tuple[Floats, Doubles, Doubles]:
    """Logits (B, K), weights of f (B, K), 0 for masked classes, and its gradient (B, n)."""
    logits = oracle.forward(x, grad=True)
    kept = unmasked(logits) & np.isfinite(logits).any(axis=1, keepdims=True)
    # Not ones: logits that sum to a constant have no gradient along them.
    normal = np.random.default_rng(0).standard_normal(logits.shape)
    weights = np.where(kept, normal, 0).astype(np.float32)
    gradient = oracle.backward(weights)
    return logits, weights.astype(np.float64), gradient.astype(np.float64)


def ratios(
    oracle: Oracle,
    x: Floats,
    box: tuple[Floats, Floats],
    logits: Floats,
    weights: Doubles,
    gradient: Doubles,
    rows: int,
) -> Doubles:
    """Changes of f over g'd, (lengths, B); NaN where both are within the rounding."""
    lo, hi = box
    spread = max(1.0, float(x.max() - x.min()))
    width = hi.astype(np.float64) - lo
    width = np.where(width > WIDE, spread, width)
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        way = np.linalg.norm(width, axis=1, keepdims=True) * gradient / norm
        ways = np.multiply.outer([s * part for part in LENGTHS for s in (-1, 1)], way)
        points = np.where(np.isfinite(ways), np.clip(x + ways, lo, hi), x).astype(np.float32)
        points = np.clip(points, lo, hi)
        shape = (len(LENGTHS), 2, *x.shape)
        values = batched(_forward(oracle), points.reshape(-1, x.shape[1]), rows)
        parts = np.where(weights != 0, values.reshape(*shape[:3], -1) * weights, 0)
        f = parts.sum(axis=3)
        d = np.subtract(points.reshape(shape)[:, 1], points.reshape(shape)[:, 0], dtype=np.float64)
        change, expected = f[:, 1] - f[:, 0], (gradient * d).sum(axis=2)
        largest = np.where(weights != 0, np.abs(logits), 0).max(axis=1)
        rounding = SIGNAL * ROUNDING * largest * np.abs(weights).max(axis=1)
        heard = np.maximum(np.abs(change), np.abs(expected)) > rounding
        return np.where(heard & (expected > 0), change / expected, np.nan)


def _forward(oracle: Oracle) -> Forward:
    return lambda part: oracle.forward(part, grad=False)


def _judge(ratios: Doubles) -> None:
    """Raise or warn by the ratios (lengths, B), some of which are NaN."""
    pairs = [ratios[i : i + 2, 0] for i in range(len(ratios) - 1)]  # of an image alone
    rows = list(ratios) if ratios.shape[1] > 1 else pairs
    rows = [row[np.isfinite(row)] for row in rows]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return
    medians = [float(np.median(row)) for row in rows]
    constant = [
        median
        for row, median in zip(rows, medians, strict=True)
        if median and np.abs(row / median - 1).max() < SAME
    ]
    # The shortest way decides: over a longer one a function that bends, as a sine does, may differ
    # from its tangent by a constant factor as well.
    factor = constant[0] if constant else 1.0
    if abs(factor - 1) > EXACT:
        times = 1 / factor
        raise ValueError(
            "model.backward must return the vector-Jacobian product of model.forward: along it the "
            f"logits change by {factor:.3g} times what it says. Its result is {times:.3g} times "
            "the right one" + (": the sign is wrong" if factor < 0 else "")
        )
    if all((row < 0).all() for row in rows):
        raise ValueError(
            "model.backward must return the vector-Jacobian product of model.forward: along it the "
            "logits fall at every image that was tried, where they should rise. Is the sign wrong?"
        )
    if not any(LEAST <= median <= MOST for median in medians):
        nearest = min(medians, key=lambda m: abs(m - 1))
        warn_caller(
            "model.backward does not seem to be the gradient of model.forward: along it the logits "
            f"change by {nearest:.3g} times what it says, at the median image. Distortions may be "
            "far from the smallest"
        )


def _warn_if_zero(
    oracle: Oracle, x: Floats, logits: Floats, box: tuple[Floats, Floats], rows: int
) -> None:
    """Warn where the logits of ``x``, which have no gradient, change with the images."""
    lo, hi = box
    middle = np.where(hi - lo < WIDE, 0.5 * (lo + hi), x.mean())
    others = [np.clip(middle + t * (x - middle), lo, hi).astype(np.float32) for t in (0.5, -1)]
    other_logits = [batched(_forward(oracle), other, rows) for other in others]
    if not all(np.array_equal(logits, other, equal_nan=True) for other in other_logits):
        warn_caller(
            "model.backward is exactly zero at the first images, although the logits change with "
            "them: a model of steps or trees? Images without a gradient are searched in random "
            "directions only, and their distortions say little"
        )
