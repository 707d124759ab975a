"""Verification: the model's own forward at the image that is returned decides about success."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..oracles.logits import batched, margins
from .backends import Results, Verifier
from .job import Job

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]

MAX_PUSHES = 20
"""Pushes away from the clean image, each twice as far, where rounding has taken the margin."""
RECOVERY_SCALES = (1.0, 1.06, 1.15, 1.3, 1.6)
"""Multiples of r that are tried for a search that was cut short."""


@dataclass(frozen=True)
class Judge:
    """Decides which images are adversarial, by the model's own forward.

    Attributes
    ----------
    verifier : Verifier
        The model.
    labels : (N,) int32
        The target of each image, or the class to leave.
    targeted : bool
        Which of the two.
    confidence : float
        Margin of a success, in logits.
    required_margin : float
        What the search is asked for: the confidence and the rounding noise of the logits.
    """

    verifier: Verifier
    labels: NDArray[np.int32]
    targeted: bool
    confidence: float
    required_margin: float

    def margins(self, x: Floats, rows: Rows) -> tuple[Floats, NDArray[np.int64]]:
        """Margins and predicted classes of ``x`` (B, n), the images of the rows (B,)."""
        logits = batched(self.verifier.forward, x, self.verifier.rows)
        return margins(logits, self.labels[rows], self.targeted)

    def margins_of(self, images: Floats, rows: Rows) -> tuple[Floats, NDArray[np.int64]]:
        """Margins and predicted classes of ``images[rows]``, without a copy of all of them."""
        if len(rows) == len(images):
            return self.margins(images, rows)
        size = self.verifier.rows
        parts = np.split(rows, range(size, len(rows), size))
        logits = np.concatenate([self.verifier.forward(images[part]) for part in parts])
        return margins(logits, self.labels[rows], self.targeted)

    def accepts(
        self, margin: Floats, prediction: NDArray[np.int64], rows: Rows
    ) -> NDArray[np.bool_]:
        """Which images have the margin of a success, and the class that goes with it."""
        target_predicted = prediction == self.labels[rows]  # differs from the margin in ties
        accepted: NDArray[np.bool_] = (margin >= self.confidence) & (
            target_predicted == self.targeted
        )
        return accepted


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


def recover_interrupted(judge: Judge, job: Job, results: Results) -> None:
    """Look for adversarial images where searches stood that were cut short; changes ``results``.

    Smoothed networks come first in a search, and on the exact one a point of theirs is often
    adversarial as it is, or a little farther from the clean image. So the point is tried at each of
    `RECOVERY_SCALES`. The first image with the required margin is a success; where there is none
    the clean image comes back.
    """
    adversarial = results["adversarial"]
    rows = np.flatnonzero(interrupted_rows(results))
    points = adversarial[rows]
    adversarial[rows] = job.images[rows]
    moved = (points != job.images[rows]).any(axis=1)
    rows, points = rows[moved], points[moved]
    for scale in RECOVERY_SCALES:
        if not len(rows):
            break
        low, high = job.bounds_of(rows)
        clean = job.images[rows]
        x = np.clip(clean + np.float32(scale) * (points - clean), low, high)
        margin, _ = judge.margins(x, rows)
        good = margin >= judge.required_margin
        adversarial[rows[good]] = x[good]
        results["success"][rows[good]] = True
        rows, points = rows[~good], points[~good]


def interrupted_rows(results: Results) -> NDArray[np.bool_]:
    """Which images were cut short without a success, (N,)."""
    rows: NDArray[np.bool_] = (results["status"] == _core.Status.interrupted) & ~results["success"]
    return rows


def confirm(
    judge: Judge, job: Job, results: Results, max_pushes: int = MAX_PUSHES
) -> tuple[Floats, NDArray[np.int64]]:
    """Verify the successes; returns their margins and predictions, (N,), NaN and -1 for the rest.

    An image that rounding has left below the confidence is pushed away from its clean image by
    1e-6, 2e-6, 4e-6, ... of ||r|| until it passes; where none of the pushes helps it is no success.
    ``results`` is changed in place.
    """
    adversarial, success = results["adversarial"], results["success"]
    margin = np.full(len(job.images), np.nan, np.float32)
    prediction = np.full(len(job.images), -1, np.int64)
    rows = np.flatnonzero(success)
    points = None  # of the rows before the first push
    for push in range(max_pushes + 1):
        if not len(rows):
            return margin, prediction
        margin[rows], prediction[rows] = judge.margins_of(adversarial, rows)
        failed = ~judge.accepts(margin[rows], prediction[rows], rows)
        rows = rows[failed]
        points = adversarial[rows] if points is None else points[failed]
        if push < max_pushes:
            clean = job.images[rows]
            low, high = job.bounds_of(rows)
            pushed = clean + (points - clean) * np.float32(1 + 2**push * 1e-6)
            adversarial[rows] = np.clip(pushed, low, high)
    success[rows] = False
    adversarial[rows] = job.images[rows]
    return margin, prediction
