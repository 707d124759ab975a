"""The paper's way, slow and obvious: per image, SciPy's L-BFGS-B for each c, and bisection on c.

Szegedy et al., "Intriguing properties of neural networks" (2013), section 4.1: minimise
``c |r| + loss(x + r, target)`` over the box by box-constrained L-BFGS, and search c by line search
such that the minimiser still has the target. Here c multiplies the distortion, so a larger c
gives a smaller r and the largest c that still succeeds is sought. It shares no code with the
engine: it is the oracle of the tests and the rival of the benchmark. Needs SciPy.
"""

from __future__ import annotations

import math
import time
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._extras import require
from ..result import Result, status_code
from ..validate import to_numpy
from .oracles import (
    NumpyNetwork,
    NumpyObject,
    ReferenceOracle,
    TorchModel,
    Vector,
    as_reference_oracle,
)

__all__ = ["NumpyNetwork", "NumpyObject", "ReferenceOracle", "TorchModel", "minimize_distortion"]

GROWTH = math.log(1e3)
"""How far an end of the bracket moves that turns out to be on the wrong side."""

MAX_GROWTHS = 4
TEMPERATURE = 0.02
"""Temperature of loss="margin", as a share of the clean image's margin."""


@dataclass(frozen=True)
class Options:
    """Settings of one run; the names are those of `minimize_distortion`."""

    norm: str
    loss: str
    c_low: float
    c_high: float
    steps: int
    warm_start: bool
    history: int
    confidence: float
    max_iterations: int
    max_line_search: int
    ftol: float
    gtol: float
    seed: int


class Bracket:
    """Bisection on log c for the largest c that succeeds.

    The ends are taken on trust. One that no solve has confirmed is solved itself once the bracket
    has shrunk to a factor of 2 beside it; if it is on the wrong side the bracket moves on by a
    factor of 1e3, at most 4 times. Ends after ``steps`` halvings of the bracket given.
    """

    def __init__(self, c_low: float, c_high: float, steps: int) -> None:
        self.low, self.high = math.log(c_low), math.log(c_high)
        self.resolution = (self.high - self.low) / 2**steps
        self.low_seen = self.high_seen = False
        self.growths = 0

    @property
    def done(self) -> bool:
        """Whether c is known to the resolution, or the bracket has grown too often."""
        narrow = self.high - self.low <= 1.001 * self.resolution
        return self.growths > MAX_GROWTHS or (narrow and self.low_seen and self.high_seen)

    def propose(self) -> float:
        """The next c to solve for."""
        if self.high - self.low <= max(math.log(2.0), 1.001 * self.resolution):
            if not self.low_seen:
                return math.exp(self.low)
            if not self.high_seen:
                return math.exp(self.high)
        return math.exp(0.5 * (self.low + self.high))

    def update(self, c: float, success: bool) -> None:
        """Take the outcome at ``c``, the last proposal."""
        at = math.log(c)
        if success:
            if at >= self.high - 1e-12:
                self.high = at + GROWTH
                self.growths += 1
            self.low, self.low_seen = at, True
        else:
            if at <= self.low + 1e-12:
                self.low = at - GROWTH
                self.growths += 1
            self.high, self.high_seen = at, True


class Problem:
    """One image: objective, best point seen, counters. ``target`` is -1 for any but ``label``."""

    def __init__(
        self,
        oracle: ReferenceOracle,
        x0: Vector,
        bounds: tuple[Vector, Vector],
        target: int,
        label: int,
        options: Options,
    ) -> None:
        self.oracle = oracle
        self.x0 = x0
        self.lo, self.hi = bounds
        self.sign = 1.0 if target >= 0 else -1.0
        self.index = target if target >= 0 else label
        self.options = options
        self.temperature = 1.0
        self.evaluations = self.forwards = self.iterations = 0
        self.best: Vector | None = None
        self.best_square = np.inf
        self.best_margin = -np.inf
        self.clean_margin = 0.0
        self.c = np.nan
        self.penalty_point: Vector | None = None
        self.limited = False

    def margin(self, z: NDArray[Any]) -> float:
        """Target's logit minus the best other; untargeted best other minus the label's."""
        others = np.delete(z, self.index)
        return self.sign * (float(z[self.index]) - float(others.max()))

    def size(self, z: NDArray[Any]) -> float:
        """The largest |logit|, but for those of masked classes (csrc/head.h, kMasked)."""
        two = max(abs(float(z[self.index])), abs(float(np.delete(z, self.index).max())))
        sizes = np.abs(z)
        return float(sizes[sizes <= 100 * max(two, self.clean_margin)].max())

    def probe(self, x: Vector) -> tuple[float, NDArray[Any]]:
        """Margin and logits by a forward alone."""
        self.forwards += 1
        z = _logits(self.oracle, x)
        return self.margin(z), z

    def objective(self, x: Vector, c: float) -> tuple[float, Vector]:
        """``c * penalty + loss`` and its gradient; keeps the smallest adversarial point.

        The loss is ``T * softplus(-(m_T - confidence) / T)`` with the log-odds
        ``m_T = z_t - T * log sum_{j != t} exp(z_j / T)``, negated for an untargeted image; with
        T = 1 that is the cross-entropy ``-log p_t``, and ``-log(1 - p_label)`` untargeted.
        """
        self.evaluations += 1
        z = _logits(self.oracle, x)
        temperature, t = self.temperature, self.index
        own = float(z[t])
        others = z.copy()
        others[t] = -np.inf
        top = float(others.max())
        weights = np.exp((others - top) / temperature)
        total = float(weights.sum())
        log_sum = top + temperature * math.log(total) if total > 0 else math.nan
        margin = self.sign * (own - top)
        odds = (self.sign * (own - log_sum) - self.options.confidence) / temperature
        loss = temperature * (max(-odds, 0.0) + math.log1p(math.exp(-abs(odds))))
        falling = math.exp(-max(odds, 0.0)) / (1.0 + math.exp(-abs(odds)))  # sigmoid(-odds)
        seed = weights * (self.sign * falling / total) if total > 0 else weights
        seed[t] = -self.sign * falling
        gradient = self.oracle.backward(seed)
        r = x - self.x0
        square = float(r @ r)
        self.best_margin = max(self.best_margin, margin)
        if margin >= self.options.confidence and square < self.best_square:
            self.best, self.best_square = x.copy(), square
        if self.options.norm == "l2":
            return c * square + loss, 2 * c * r + gradient
        norm = math.sqrt(square)
        return c * norm + loss, (c / norm if norm > 0 else 0.0) * r + gradient

    def solve(self, c: float, start: Vector) -> Vector:
        """Minimiser of the objective for one c."""
        optimize = require("scipy.optimize", "reference", "advcore.reference")
        o = self.options
        found = optimize.minimize(
            self.objective,
            start,
            args=(c,),
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(self.lo, self.hi),
            options={
                "maxcor": o.history,
                "maxiter": o.max_iterations,
                "maxfun": o.max_iterations,
                "maxls": o.max_line_search,
                "ftol": o.ftol,
                "gtol": o.gtol,
            },
        )
        self.iterations += int(found.get("nit", 0))  # absent where every variable is fixed
        self.limited = int(found.get("status", 0)) == 1
        x: Vector = np.clip(found.x, self.lo, self.hi)
        return x

    def start(self) -> Vector:
        """Where a cold solve starts: x0, which is a kink of the unsquared norm and is left."""
        if self.options.norm == "l2":
            return self.x0.copy()
        key = zlib.crc32(self.x0.astype(np.float32).tobytes())
        noise = np.random.default_rng([self.options.seed, key]).standard_normal(self.x0.size)
        span = np.where(np.isfinite(self.hi - self.lo), self.hi - self.lo, 1.0)
        started: Vector = np.clip(self.x0 + 1e-3 * span * noise, self.lo, self.hi)
        return started

    def search(self) -> None:
        """Bisection on c; leaves ``best``, ``c``, ``penalty_point`` and ``limited``."""
        bracket = Bracket(self.options.c_low, self.options.c_high, self.options.steps)
        x, limited = self.start(), False
        while not bracket.done:
            c = bracket.propose()
            cold = not self.options.warm_start or bool(np.array_equal(x, self.x0))
            x = self.solve(c, self.start() if cold else x)
            success = self.probe(x)[0] >= self.options.confidence
            if success:
                self.c, self.penalty_point, limited = c, x, self.limited
                square = float((x - self.x0) @ (x - self.x0))
                if square < self.best_square:
                    self.best, self.best_square = x, square
            bracket.update(c, success)
            if not np.isfinite(x).all():
                x = self.start()
        self.limited = limited

    def deliver(self, x: Vector) -> tuple[Vector, float, NDArray[Any]] | None:
        """``x`` rounded to float32 inside the bounds, pushed outward until it has the margin.

        The margin must exceed the confidence by float32's rounding of the logits, so that a
        float32 forward confirms it.
        """
        r = x - self.x0
        for attempt in range(21):
            scale = 1.0 if attempt == 0 else 1.0 + 2.0**attempt * 1e-6
            image = np.clip(self.x0 + scale * r, self.lo, self.hi).astype(np.float32)
            point = image.astype(np.float64)  # the bounds are float32 values: still inside
            margin, z = self.probe(point)
            noise = 16 * float(np.finfo(np.float32).eps) * self.size(z)
            if margin >= max(self.options.confidence, noise):
                return point, margin, z
        return None


def minimize_distortion(
    model: Any,
    images: Any,
    targets: ArrayLike | None = None,
    *,
    labels: ArrayLike | None = None,
    norm: str = "l2",
    loss: str = "cross_entropy",
    bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    c_low: float = 1e-4,
    c_high: float = 1e2,
    steps: int = 20,
    warm_start: bool = True,
    history: int = 10,
    confidence: float = 0.0,
    max_iterations: int = 15000,
    max_line_search: int = 20,
    ftol: float = 2.220446049250313e-09,
    gtol: float = 1e-05,
    seed: int = 0,
) -> Result:
    """Minimum-distortion adversarial examples, one image after the other, through SciPy.

    Parameters
    ----------
    model : Network, torch module or callable, NumPy model, `NumpyNetwork` or `TorchModel`
        A `Network` runs in NumPy float64; the others as they are, in batches of one.
    images : (N, ...) float32 or float64 array or tensor inside ``bounds``
    targets : (N,) int, optional
        Class each image shall be taken for. None: any class but ``labels``. With targets the
        labels are not used.
    labels : (N,) int, optional
        True classes; None: the model's own prediction.
    norm : {"l2", "l2_unsquared"}
        Penalty ``c * ||r||^2`` or the paper's ``c * ||r||``.
    loss : {"cross_entropy", "margin"}
        The paper's, or the smoothed log-odds with a temperature of 2% of the clean margin.
    bounds : pair of float or arrays that broadcast to the images
    c_low, c_high, steps
        Bracket of c and the number of times it is halved; it grows where needed.
    warm_start : bool
        Each solve starts from the minimiser of the one before it, else from the clean image.
    history, max_iterations, max_line_search, ftol, gtol
        L-BFGS-B's ``maxcor``, ``maxiter`` and ``maxfun``, ``maxls``, ``ftol``, ``gtol``; all
        but none at SciPy's defaults.
    confidence : float
        Margin required, in logits.
    seed : int
        For the start beside the clean image that the unsquared norm needs.

    Returns
    -------
    Result
        `adversarial` is the smallest adversarial point seen, at any iterate of any solve;
        `penalty_distortion` belongs to the minimiser at the final `c`. Images are float32.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was expected and what came.
    """
    for name, value, known in (
        ("norm", norm, ("l2", "l2_unsquared")),
        ("loss", loss, ("cross_entropy", "margin")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    if not 0 < c_low < c_high < math.inf:
        raise ValueError(f"c_low < c_high must be positive and finite, got {c_low}, {c_high}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0 <= confidence < math.inf:
        raise ValueError(f"confidence must be finite and not negative, got {confidence}")
    options = Options(
        norm, loss, c_low, c_high, steps, warm_start, history, confidence,
        max_iterations, max_line_search, ftol, gtol, seed,
    )  # fmt: skip
    begin = time.perf_counter()
    given = to_numpy(images)
    if given.dtype not in (np.float32, np.float64) or given.ndim < 2:
        raise TypeError(f"images must be (N, ...) float, got {given.dtype} {given.shape}")
    count, shape = len(given), given.shape[1:]
    x0 = given.astype(np.float32).astype(np.float64).reshape(count, math.prod(shape))
    lo, hi = _box(bounds, given.shape, x0.shape)
    if not (np.isfinite(x0).all() and (x0 >= lo).all() and (x0 <= hi).all()):
        raise ValueError("images must be finite and inside the bounds")
    oracle = as_reference_oracle(model, shape)
    wanted = _classes("targets", targets, count, oracle.classes)
    truth = _classes("labels", labels, count, oracle.classes)

    result = _empty(oracle, given, norm, loss)
    adversarial = x0.copy()
    for i in range(count):
        z = _logits(oracle, x0[i])
        label = int(truth[i]) if labels is not None else int(np.argmax(z))
        target = int(wanted[i]) if targets is not None else -1
        problem = Problem(oracle, x0[i], (lo[i], hi[i]), target, label, options)
        adversarial[i] = _attack(problem, z, result, i)
        result.target[i] = target
        result.evaluations[i] = problem.evaluations
        result.forwards[i] = problem.forwards + 1
        result.iterations[i] = problem.iterations
    r = adversarial - x0
    result.distortion[:] = np.where(result.success, np.sqrt((r * r).sum(axis=1)), np.inf)
    result.rms_distortion[:] = result.distortion / math.sqrt(x0.shape[1])
    delivered = adversarial.astype(np.float32).reshape(given.shape)
    if hasattr(images, "detach"):
        import torch

        result.adversarial = torch.from_numpy(delivered)
    else:
        result.adversarial = delivered
    result.seconds = time.perf_counter() - begin
    return result


def _logits(oracle: ReferenceOracle, x: Vector) -> Vector:
    """(K,) logits; what masks a class by -infinity is the padding's -1e30 (csrc/head.h)."""
    return np.maximum(np.array(oracle.forward(x), dtype=np.float64), -1e30)


def _attack(problem: Problem, z: NDArray[Any], result: Result, i: int) -> Vector:
    """Run one image, fill its row of ``result``, return the image to deliver."""
    result.prediction[i] = int(np.argmax(z))
    if not np.isfinite(z).all():
        result.status[i] = status_code("non_finite")
        return problem.x0
    clean = problem.margin(z)
    problem.best_margin, problem.clean_margin = clean, abs(clean)
    result.margin[i] = clean
    if clean >= problem.options.confidence:
        result.success[i] = True
        result.status[i] = status_code("already_adversarial")
        return problem.x0
    if problem.options.loss == "margin":
        floor = 64 * float(np.finfo(np.float32).eps) * problem.size(z)
        problem.temperature = max(TEMPERATURE * abs(clean), floor)
    problem.search()
    assert result.penalty_distortion is not None
    if problem.penalty_point is not None:
        result.penalty_distortion[i] = np.linalg.norm(problem.penalty_point - problem.x0)
    result.c[i] = problem.c
    for candidate in (problem.best, problem.penalty_point):
        delivery = None if candidate is None else problem.deliver(candidate)
        if delivery is not None:
            point, result.margin[i], logits = delivery
            result.prediction[i] = int(np.argmax(logits))
            result.success[i] = True
            result.status[i] = status_code("budget" if problem.limited else "converged")
            return point
    result.margin[i] = problem.best_margin
    result.status[i] = status_code("not_found")
    return problem.x0


def _empty(oracle: ReferenceOracle, images: NDArray[Any], norm: str, loss: str) -> Result:
    count = len(images)
    return Result(
        engine={"path": oracle.kind, "device": "cpu", "reason": "reference: SciPy, bisection on c"},
        adversarial=None,
        success=np.zeros(count, np.bool_),
        distortion=np.zeros(count, np.float32),
        rms_distortion=np.zeros(count, np.float32),
        margin=np.full(count, np.nan, np.float32),
        prediction=np.full(count, -1, np.int64),
        target=np.full(count, -1, np.int64),
        c=np.full(count, np.nan, np.float64),
        status=np.zeros(count, np.int8),
        evaluations=np.zeros(count, np.int32),
        forwards=np.zeros(count, np.int32),
        iterations=np.zeros(count, np.int32),
        rescues=np.zeros(count, np.int32),
        seconds=0.0,
        penalty=norm,
        loss=loss,
        penalty_distortion=np.full(count, np.nan, np.float32),
    )


def _box(
    bounds: tuple[ArrayLike, ArrayLike], given: tuple[int, ...], flat: tuple[int, ...]
) -> tuple[Vector, Vector]:
    """Bounds per value, (N, n) float64 holding float32 values, rounded inward."""
    ends = []
    for value, outward in zip(bounds, (-np.inf, np.inf), strict=True):
        exact = np.broadcast_to(np.asarray(to_numpy(value), np.float64), given).reshape(flat)
        rounded = exact.astype(np.float32)
        beyond = rounded < exact if outward < 0 else rounded > exact
        rounded = np.where(beyond, np.nextafter(rounded, np.float32(-outward)), rounded)
        ends.append(rounded.astype(np.float64))
    lo, hi = ends
    if not (lo <= hi).all():
        raise ValueError("bounds must have lower <= upper everywhere")
    return lo, hi


def _classes(name: str, given: ArrayLike | None, count: int, classes: int) -> NDArray[np.int64]:
    if given is None:
        return np.full(count, -1, np.int64)
    array = to_numpy(given)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"{name} must be in [0, {classes}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)
