"""The last word on a result: the model's own forward at the image that is returned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..oracles.logits import Forward, batched, margins

Floats = NDArray[np.float32]

PUSHES = 20


def distances(x: Floats, clean: Floats) -> NDArray[np.float64]:
    """L2 distance of each row, (N,), float64; in parts, so that no copy of all images is made."""
    parts = [np.empty(0)]
    for i in range(0, len(x), 1024):
        with np.errstate(over="ignore"):
            r = (x[i : i + 1024] - clean[i : i + 1024]).astype(np.float64)
        if not np.isfinite(r).all():
            r = np.subtract(x[i : i + 1024], clean[i : i + 1024], dtype=np.float64)
        parts.append(np.sqrt(r[:, None] @ r[:, :, None]).ravel())  # a third of norm's time
    return np.concatenate(parts)


SCALES = (1.0, 1.06, 1.15, 1.3, 1.6)


def salvage(
    forward: Forward,
    size: int,
    images: Floats,
    labels: NDArray[np.int32],
    targeted: bool,
    required: float,
    lo: Floats,
    hi: Floats,
    adversarial: Floats,
    rows: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Makes adversarial images of where searches stood that were cut short; returns their rows.

    Smoothed networks come first in a search, and on the exact one a point of theirs is often
    adversarial as it is, or a little farther from the clean image: ``adversarial[rows]`` is tried
    at each of ``SCALES`` and holds the first image with the margin ``required``, or the clean one.
    """
    reached = adversarial[rows]
    adversarial[rows] = images[rows]
    left = np.flatnonzero((reached != images[rows]).any(axis=1))
    found = []
    for scale in SCALES:
        if not len(left):
            break
        at = rows[left]
        low, high = (bound if bound.ndim == 1 else bound[at] for bound in (lo, hi))
        x = np.clip(images[at] + np.float32(scale) * (reached[left] - images[at]), low, high)
        margin, _ = margins(batched(forward, x, size), labels[at], targeted)
        good = margin >= required
        adversarial[at[good]] = x[good]
        found.append(at[good])
        left = left[~good]
    return np.concatenate(found) if found else rows[:0]


def confirm(
    forward: Forward,
    size: int,
    images: Floats,
    labels: NDArray[np.int32],
    targeted: bool,
    confidence: float,
    lo: Floats,
    hi: Floats,
    adversarial: Floats,
    success: NDArray[np.bool_],
    pushes: int = PUSHES,
) -> tuple[Floats, NDArray[np.int64]]:
    """Verify the successes by ``forward``; returns their margins and predictions, (N,).

    An image that rounding has left below ``confidence`` is pushed away from its clean image by
    1e-6, 2e-6, 4e-6, ... of ||r|| until it passes; where none of ``pushes`` helps it is no success.
    ``adversarial`` and ``success`` are changed in place.
    """
    margin = np.full(len(images), np.nan, np.float32)
    prediction = np.full(len(images), -1, np.int64)
    open_rows, start = np.flatnonzero(success), None
    for push in range(pushes + 1):
        if not len(open_rows):
            return margin, prediction
        if len(open_rows) == len(images):  # slices: no copy
            z = batched(forward, adversarial, size)
        else:
            parts = np.split(open_rows, range(size, len(open_rows), size))
            z = np.concatenate([forward(adversarial[part]) for part in parts])
        margin[open_rows], prediction[open_rows] = margins(z, labels[open_rows], targeted)
        failed = ~(margin[open_rows] >= confidence)
        failed |= (prediction[open_rows] == labels[open_rows]) != targeted  # ties
        open_rows = open_rows[failed]
        start = adversarial[open_rows] if start is None else start[failed]
        if push < pushes:
            clean = images[open_rows]
            pushed = clean + (start - clean) * np.float32(1 + 2**push * 1e-6)
            low, high = (bound if bound.ndim == 1 else bound[open_rows] for bound in (lo, hi))
            adversarial[open_rows] = np.clip(pushed, low, high)
    success[open_rows] = False
    adversarial[open_rows] = images[open_rows]
    return margin, prediction
