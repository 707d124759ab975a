"""Verification: the model's own forward at the image that is returned decides about success."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..oracles.logits import batched, margins
from .backends import Backend, Results, Verifier
from .job import Job
from .queries import LAST_QUERIES, NOISE_QUERIES, Queries

Floats = NDArray[np.float32]
Rows = NDArray[np.intp]

MAX_PUSHES = 20
"""Pushes away from the clean image, each twice as far, where rounding has taken the margin."""
RECOVERY_SCALES = (1.0, 1.06, 1.15, 1.3, 1.6)
"""Multiples of r that are tried for a search that was cut short."""
NOISE_FACTOR = 4
"""Multiple of the rounding noise of the logits that a margin must exceed."""
VERIFIED_FACTOR = 3
"""The same for the margin of the verification, which may differ by the noise from that of the
search. Grid points and given starts have not been asked for more than the confidence before."""
NOISE_POINTS = (1 - np.arange(8) / 4096).astype(np.float32)
"""Points on the line from an image to its clean image, as shares, for the noise at the image. That
of a single point may be 0 by chance where there are two logits."""
REORDERED = (0, 2, 5, 7)
"""Those of the points at which a forward is repeated in another order."""
PROBED = 1.5
"""Multiple of the probes' noise up to which that of an image counts as the same."""


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
    search : Backend, optional
        What ran the search.
    images_are_probed : bool
        Whether the noise was measured on images like those of the run. If not, it is measured at
        each result too.
    queries : Queries
        Counts the forwards of each image. By default without a budget.
    label : (N,) int64
        The labels of the call, else the model's predictions; -1 where neither is known.
    label_source : str
        "given", "predicted" or "none".
    """

    verifier: Verifier
    labels: NDArray[np.int32]
    targeted: bool
    confidence: float
    required_margin: float
    search: Backend | None = None
    images_are_probed: bool = True
    queries: Queries = field(default_factory=lambda: Queries.unlimited(0))
    label: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    label_source: str = "none"

    def __post_init__(self) -> None:
        if len(self.queries.forwards) != len(self.labels):
            object.__setattr__(self, "queries", Queries.unlimited(len(self.labels)))

    @property
    def kept_for_verification(self) -> int:
        """Queries of an image that the verification may take."""
        return LAST_QUERIES + (0 if self.images_are_probed else NOISE_QUERIES)

    @property
    def kept_back(self) -> int:
        """Queries of an image that are not for the search: those so far and the verification."""
        return self.kept_for_verification + int(self.queries.forwards.max(initial=0))

    @property
    def probed_noise(self) -> float:
        """Rounding noise of the logits at the probes."""
        return (self.required_margin - self.confidence) / NOISE_FACTOR

    @property
    def least_margin(self) -> float:
        """Margin of a success, which no rounding takes: the confidence, or more than the noise."""
        return max(self.confidence, VERIFIED_FACTOR * self.probed_noise)

    @property
    def search_is_verification(self) -> bool:
        """Whether forwards of the search are forwards of the model, with the margin for them."""
        if self.search is None or self.search.squash is not None:
            return False
        return self.search.info.path != "native" and self.images_are_probed

    def margins(self, x: Floats, rows: Rows) -> tuple[Floats, NDArray[np.int64]]:
        """Margins and predicted classes of ``x`` (B, n), the images of the rows (B,)."""
        self.queries.count(rows)
        logits = batched(self.verifier.forward, x, self.verifier.rows)
        return margins(logits, self.labels[rows], self.targeted)

    def margins_of_logits(self, logits: Floats, rows: Rows) -> tuple[Floats, NDArray[np.int64]]:
        """Margins and predicted classes of logits (B, K) at images of the rows (B,)."""
        return margins(logits, self.labels[rows], self.targeted)

    def accepts(
        self,
        margin: Floats,
        prediction: NDArray[np.int64],
        rows: Rows,
        needed: NDArray[np.float64] | None = None,
    ) -> NDArray[np.bool_]:
        """Which images have the margin ``needed`` (B,), by default `least_margin`, and the class.

        The class is that of a success.
        """
        target_predicted = prediction == self.labels[rows]  # differs from the margin in ties
        limit = self.least_margin if needed is None else needed.astype(np.float32)
        accepted: NDArray[np.bool_] = (margin >= limit) & (target_predicted == self.targeted)
        return accepted

    def needed_margins(self, job: Job, results: Results) -> NDArray[np.float64]:
        """Margin that each image needs to be a success, (N,): `least_margin`, or more.

        The search has asked for the noise of the probes. Where that of a success is larger, the
        success needs the confidence and `NOISE_FACTOR` times its own.
        """
        needed = np.full(len(job.images), self.least_margin)
        if self.images_are_probed or self.search is None:
            return needed
        rows = np.flatnonzero(results["success"])
        size = self.verifier.rows
        for part in np.split(rows, range(size, len(rows), size)):
            if not len(part):
                continue
            self.queries.count(part, NOISE_QUERIES)
            noise = _noise_along(self.search, job.images[part], results["adversarial"][part])
            larger = noise > PROBED * self.probed_noise
            needed[part[larger]] = self.confidence + NOISE_FACTOR * noise[larger]
        return needed


def _noise_along(search: Backend, clean: Floats, x: Floats) -> NDArray[np.float64]:
    """Rounding noise of the logits at images ``x`` (B, n), (B,).

    It is the largest difference to forwards in another order. A model that knows one order only has
    none: there it is what fourth differences of logits at equidistant points leave, to which a
    smooth network adds next to nothing. They have 8.4 times the deviation of a logit, the
    differences to another order 1.4 times, so a sixth of them counts. A larger share would refuse
    images in boxes so tight that no larger margin can be had.
    """
    noise = np.zeros(len(x))
    for share in NOISE_POINTS[list(REORDERED)]:
        noise = np.maximum(noise, search.noise_at(clean + share * (x - clean)))
    rows = np.flatnonzero(noise == 0)
    if len(rows):
        logits = search.forward_along(clean[rows], x[rows], NOISE_POINTS).astype(np.float64)
        with np.errstate(invalid="ignore"):  # masked classes
            left = np.abs(np.diff(logits, n=4, axis=1))
        left[~np.isfinite(left)] = 0
        # The median, as a kink or a jump between two of the points is no noise.
        noise[rows] = 0.17 * np.median(left.max(axis=2), axis=1)
    return noise


def distances(
    x: Floats, clean: Floats, threads: int = 1, norm: _core.Norm = _core.Norm.l2
) -> NDArray[np.float64]:
    """Distance of each row of x and clean (N, n) in a norm, (N,), float64."""
    if norm != _core.Norm.l2:
        distance = np.empty(len(x))
        for begin in range(0, len(x), 256):
            part = slice(begin, begin + 256)
            distance[part] = sizes(x[part].astype(np.float64) - clean[part], norm)
        return distance
    euclidean: NDArray[np.float64] = _core.distances(x, clean, threads)
    return euclidean


def sizes(r: NDArray[np.float64], norm: _core.Norm) -> NDArray[np.float64]:
    """The norm of r (..., n) along the last axis, (...)."""
    size: NDArray[np.float64]
    if norm == _core.Norm.linf:
        size = np.abs(r).max(axis=-1, initial=0)
    elif norm == _core.Norm.l1:
        size = np.abs(r).sum(axis=-1)
    else:
        size = np.linalg.norm(r, axis=-1)
    return size


def taken(values: Floats, rows: Rows) -> Floats:
    """The rows (B,) of values (N, n), without a copy where they follow one another."""
    first = int(rows[0]) if len(rows) else 0
    if len(rows) and rows[-1] - first == len(rows) - 1 and (np.diff(rows) == 1).all():
        return values[first : first + len(rows)]
    return values[rows]


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
        left = judge.queries.affordable(rows, 1 + judge.kept_for_verification)
        rows, points = rows[left], points[left]
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


def keep_inside(job: Job, results: Results) -> None:
    """Move values that left the bounds back to them; changes ``results``.

    The engine takes subnormal numbers for 0, also bounds.
    """
    adversarial = results["adversarial"]
    least, most, _ = _core.value_range(adversarial)
    if not adversarial.size or (least >= job.lo.max() and most <= job.hi.min()):
        return
    for begin in range(0, len(adversarial), 1024):
        x = adversarial[begin : begin + 1024]
        low, high = job.bounds_of(np.arange(begin, begin + len(x)))
        outside = (x < low) | (x > high)
        if outside.any():
            x[outside] = np.clip(x, low, high)[outside]


def confirm(
    judge: Judge,
    job: Job,
    results: Results,
    needed: NDArray[np.float64],
    verified: NDArray[np.bool_],
    max_pushes: int = MAX_PUSHES,
) -> None:
    """Verify the successes, which get their margins and predictions by the model's own forward.

    An image that rounding has left below the margin ``needed`` (N,) is pushed away from its clean
    image by 1e-6, 2e-6, 4e-6, ... of ||r|| until it passes; where none of the pushes helps it is no
    success. ``results`` and ``verified`` (N,), the images that passed, are changed in place, batch
    by batch: they hold what they say also where the model raises.
    """
    adversarial, success = results["adversarial"], results["success"]
    rows = np.flatnonzero(success)
    points = None  # of the rows before the first push
    for push in range(max_pushes + 1):
        if not len(rows):
            return
        size = judge.verifier.rows
        for part in np.split(rows, range(size, len(rows), size)):
            margin, prediction = judge.margins(taken(adversarial, part), part)
            results["margin"][part], results["prediction"][part] = margin, prediction
            verified[part] = judge.accepts(margin, prediction, part, needed[part])
        failed = ~verified[rows]
        rows = rows[failed]
        points = adversarial[rows] if points is None else points[failed]
        if push < max_pushes and judge.queries.budget is not None:
            # One query is left for the clean image.
            pushed_rows = judge.queries.affordable(rows, 2)
            given_up, rows, points = rows[~pushed_rows], rows[pushed_rows], points[pushed_rows]
            success[given_up] = False
            adversarial[given_up] = job.images[given_up]
        if push < max_pushes:
            clean = job.images[rows]
            low, high = job.bounds_of(rows)
            pushed = clean + (points - clean) * np.float32(1 + 2**push * 1e-6)
            adversarial[rows] = np.clip(pushed, low, high)
    success[rows] = False
    adversarial[rows] = job.images[rows]
