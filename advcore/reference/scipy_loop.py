"""The paper's procedure, slow and obvious, one image at a time and with SciPy's L-BFGS-B.

Szegedy et al., "Intriguing properties of neural networks" (2013), section 4.1, minimise
``c |r| + loss(x + r, target)`` over the box by box-constrained L-BFGS. They search c by line search
such that the minimiser still has the target. Here the line search is bisection. c multiplies the
distortion, so a larger c gives a smaller r, and the largest c that still succeeds is searched for.
This module shares no code with the engine. The tests compare the engine with it, and it is a rival
in the benchmarks. It needs SciPy.
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
from ..options import PENALTIES, split_former_norm
from ..result import Result, status_code
from ..validate import choice, to_numpy
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
"""Distance in log c by which an end of the bracket moves when it proves to be on the wrong side."""

MAX_GROWTHS = 4
"""Number of such moves after which the search ends."""

TEMPERATURE = 0.02
"""Temperature of loss="margin", as a share of the clean image's margin."""


@dataclass(frozen=True)
class Options:
    """Settings of one run, with the names of `minimize_distortion`.

    Raises
    ------
    ValueError : a setting is not in its range.
    """

    penalty: str
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

    def __post_init__(self) -> None:
        for name, choices in (
            ("penalty", PENALTIES),
            ("loss", ("cross_entropy", "margin")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if not 0 < self.c_low < self.c_high < math.inf:
            raise ValueError(
                f"c_low < c_high must be positive and finite, got {self.c_low}, {self.c_high}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 <= self.confidence < math.inf:
            raise ValueError(f"confidence must be finite and not negative, got {self.confidence}")


class Bracket:
    """Bisection on log c for the largest c that succeeds.

    The ends are not confirmed at first. Once the bracket has shrunk to a factor of 2 beside an
    unconfirmed end, that end itself is solved. If it is on the wrong side, the bracket moves on by
    a factor of 1e3, at most 4 times. The search ends after ``steps`` halvings of the first bracket.
    """

    def __init__(self, c_low: float, c_high: float, steps: int) -> None:
        self.low, self.high = math.log(c_low), math.log(c_high)
        self.resolution = (self.high - self.low) / 2**steps
        self.low_confirmed = self.high_confirmed = False
        self.growths = 0

    @property
    def done(self) -> bool:
        """Whether c is known to the resolution, or the bracket has grown too often."""
        narrow = self.high - self.low <= 1.001 * self.resolution
        return self.growths > MAX_GROWTHS or (narrow and self.low_confirmed and self.high_confirmed)

    def propose(self) -> float:
        """Return the next c to solve for."""
        if self.high - self.low <= max(math.log(2.0), 1.001 * self.resolution):
            if not self.low_confirmed:
                return math.exp(self.low)
            if not self.high_confirmed:
                return math.exp(self.high)
        return math.exp(0.5 * (self.low + self.high))

    def update(self, c: float, success: bool) -> None:
        """Narrow or move the bracket by the outcome at ``c``, the last proposal."""
        log_c = math.log(c)
        if success:
            if log_c >= self.high - 1e-12:
                self.high = log_c + GROWTH
                self.growths += 1
            self.low, self.low_confirmed = log_c, True
        else:
            if log_c <= self.low + 1e-12:
                self.low = log_c - GROWTH
                self.growths += 1
            self.high, self.high_confirmed = log_c, True


class Problem:
    """The problem of one image, with its objective, best point and counters.

    target : the class to reach, or -1 for any but ``label``.
    """

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
        """Return the target's logit minus the largest other one.

        Untargeted it is the largest other logit minus the label's.
        """
        others = np.delete(z, self.index)
        return self.sign * (float(z[self.index]) - float(others.max()))

    def size(self, z: NDArray[Any]) -> float:
        """Return the largest |logit| among the classes that the model does not mask.

        The rule is that of csrc/solver/margin_loss.h, kMasked.
        """
        two = max(abs(float(z[self.index])), abs(float(np.delete(z, self.index).max())))
        sizes = np.abs(z)
        return float(sizes[sizes <= 100 * max(two, self.clean_margin)].max())

    def probe(self, x: Vector) -> tuple[float, NDArray[Any]]:
        """Return margin and logits of a forward evaluation."""
        self.forwards += 1
        z = _logits(self.oracle, x)
        return self.margin(z), z

    def objective(self, x: Vector, c: float) -> tuple[float, Vector]:
        """Return ``c * penalty + loss`` and its gradient, and keep the smallest adversarial point.

        The loss is ``T * softplus(-(m_T - confidence) / T)`` with the log-odds
        ``m_T = z_t - T * log sum_{j != t} exp(z_j / T)``, negated for an untargeted image. With
        T = 1 that is the cross-entropy ``-log p_t``, and ``-log(1 - p_label)`` untargeted.
        """
        self.evaluations += 1
        z = _logits(self.oracle, x)
        temperature, t = self.temperature, self.index
        logit = float(z[t])
        others = z.copy()
        others[t] = -np.inf
        top = float(others.max())
        weights = np.exp((others - top) / temperature)
        total = float(weights.sum())
        log_sum = top + temperature * math.log(total) if total > 0 else math.nan
        margin = self.sign * (logit - top)
        odds = (self.sign * (logit - log_sum) - self.options.confidence) / temperature
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
        if self.options.penalty == "l2":
            return c * square + loss, 2 * c * r + gradient
        norm = math.sqrt(square)
        return c * norm + loss, (c / norm if norm > 0 else 0.0) * r + gradient

    def solve(self, c: float, start: Vector) -> Vector:
        """Minimise the objective for one c."""
        optimize = require("scipy.optimize", "reference", "advcore.reference")
        o = self.options
        optimum = optimize.minimize(
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
        self.iterations += int(optimum.get("nit", 0))  # absent where every variable is fixed
        self.limited = int(optimum.get("status", 0)) == 1
        x: Vector = np.clip(optimum.x, self.lo, self.hi)
        return x

    def start(self) -> Vector:
        """Return the start of a cold solve.

        It is x0. The unsquared penalty has a kink there, so with it a little noise is added.
        """
        if self.options.penalty == "l2":
            return self.x0.copy()
        key = zlib.crc32(self.x0.astype(np.float32).tobytes())
        noise = np.random.default_rng([self.options.seed, key]).standard_normal(self.x0.size)
        span = np.where(np.isfinite(self.hi - self.lo), self.hi - self.lo, 1.0)
        started: Vector = np.clip(self.x0 + 1e-3 * span * noise, self.lo, self.hi)
        return started

    def search(self) -> None:
        """Search c by bisection, and set ``best``, ``c``, ``penalty_point`` and ``limited``."""
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
        """Round ``x`` to float32 inside the bounds, and push it outward until it has the margin.

        The margin must exceed the confidence by float32's rounding of the logits, so that a
        float32 forward confirms it. Returns the point, its margin and its logits, or None.
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
    penalty: str = "l2",
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
    norm: str = "l2",
) -> Result:
    """Find minimum-distortion adversarial examples one image after the other, through SciPy.

    Parameters
    ----------
    model : Network, torch module or callable, NumPy model, `NumpyNetwork` or `TorchModel`
        A `Network` runs in NumPy float64. The others run as they are, in batches of one.
    images : (N, ...) float32 or float64 array or tensor inside ``bounds``
    targets : (N,) int, optional
        Class that each image shall be classified as. None means any class but ``labels``. With
        targets the labels are not used.
    labels : (N,) int, optional
        True classes. None means the model's own prediction.
    penalty : {"l2", "l2_unsquared"}
        Penalty ``c * ||r||^2`` or the paper's ``c * ||r||``.
    loss : {"cross_entropy", "margin"}
        The paper's loss, or the smoothed log-odds with a temperature of 2% of the clean margin.
    bounds : pair of float or arrays that broadcast to the images
    c_low, c_high, steps
        Bracket of c and the number of halvings. The bracket grows where needed.
    warm_start : bool
        Whether each solve starts from the minimiser of the one before, or from the clean image.
    history, max_iterations, max_line_search, ftol, gtol
        L-BFGS-B's ``maxcor``, ``maxiter`` and ``maxfun``, ``maxls``, ``ftol``, ``gtol``, with
        SciPy's defaults.
    confidence : float
        Required margin, in logits.
    seed : int
        Seed of the start beside the clean image that the unsquared penalty needs.
    norm : "l2"
        As in the paper. "l2_unsquared", a former way to give the penalty, warns.

    Returns
    -------
    Result
        `adversarial` is the smallest adversarial point among all iterates of all solves.
        `penalty_distortion` belongs to the minimiser at the final `c`. Images are float32.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, the expected value and the actual one.
    """
    norm, penalty = split_former_norm(norm, penalty)
    choice(norm, "norm", ("l2",))
    options = Options(
        penalty, loss, c_low, c_high, steps, warm_start, history, confidence,
        max_iterations, max_line_search, ftol, gtol, seed,
    )  # fmt: skip
    begin = time.perf_counter()
    clean = _float_images(images)
    count, shape = len(clean), clean.shape[1:]
    x0 = clean.astype(np.float32).astype(np.float64).reshape(count, math.prod(shape))
    lo, hi = _box(bounds, clean.shape, x0.shape)
    if not (np.isfinite(x0).all() and (x0 >= lo).all() and (x0 <= hi).all()):
        raise ValueError("images must be finite and inside the bounds")
    oracle = as_reference_oracle(model, shape)
    target_classes = _classes("targets", targets, count, oracle.classes)
    true_labels = _classes("labels", labels, count, oracle.classes)

    result = _empty(oracle, clean, penalty, loss)
    adversarial = x0.copy()
    for i in range(count):
        z = _logits(oracle, x0[i])
        label = int(true_labels[i]) if labels is not None else int(np.argmax(z))
        target = int(target_classes[i]) if targets is not None else -1
        problem = Problem(oracle, x0[i], (lo[i], hi[i]), target, label, options)
        adversarial[i] = _attack(problem, z, result, i)
        result.target[i] = target
        result.evaluations[i] = problem.evaluations
        result.forwards[i] = problem.forwards + 1
        result.iterations[i] = problem.iterations
    result.queries[:] = 2 * result.evaluations + result.forwards
    r = adversarial - x0
    result.distortion[:] = np.where(result.success, np.sqrt((r * r).sum(axis=1)), np.inf)
    result.rms_distortion[:] = result.distortion / math.sqrt(x0.shape[1])
    result.adversarial = adversarial.astype(np.float32).reshape(clean.shape)
    if hasattr(images, "detach"):
        import torch

        result.adversarial = torch.from_numpy(result.adversarial)
    result.seconds = time.perf_counter() - begin
    return result


def _float_images(images: Any) -> NDArray[Any]:
    array = to_numpy(images)
    if array.dtype not in (np.float32, np.float64) or array.ndim < 2:
        raise TypeError(f"images must be (N, ...) float, got {array.dtype} {array.shape}")
    return array


def _logits(oracle: ReferenceOracle, x: Vector) -> Vector:
    """Return logits (K,), with -1e30 for a mask of -infinity (csrc/solver/margin_loss.h)."""
    return np.maximum(np.array(oracle.forward(x), dtype=np.float64), -1e30)


def _attack(problem: Problem, z: NDArray[Any], result: Result, i: int) -> Vector:
    """Run one image, fill its row of ``result``, and return the adversarial image."""
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


def _empty(oracle: ReferenceOracle, images: NDArray[Any], penalty: str, loss: str) -> Result:
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
        penalty=penalty,
        loss=loss,
        penalty_distortion=np.full(count, np.nan, np.float32),
    )


def _box(
    bounds: tuple[ArrayLike, ArrayLike], image_shape: tuple[int, ...], flat_shape: tuple[int, ...]
) -> tuple[Vector, Vector]:
    """Return the bounds of each value, (N, n) float64, rounded inward to float32 values."""
    ends = []
    for value, outward in zip(bounds, (-np.inf, np.inf), strict=True):
        exact = np.broadcast_to(np.asarray(to_numpy(value), np.float64), image_shape).reshape(
            flat_shape
        )
        rounded = exact.astype(np.float32)
        beyond = rounded < exact if outward < 0 else rounded > exact
        rounded = np.where(beyond, np.nextafter(rounded, np.float32(-outward)), rounded)
        ends.append(rounded.astype(np.float64))
    lo, hi = ends
    if not (lo <= hi).all():
        raise ValueError("bounds must have lower <= upper everywhere")
    return lo, hi


def _classes(name: str, values: ArrayLike | None, count: int, classes: int) -> NDArray[np.int64]:
    if values is None:
        return np.full(count, -1, np.int64)
    array = to_numpy(values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {array.shape}")
    if array.size and (array.min() < 0 or array.max() >= classes):
        raise ValueError(f"{name} must be in [0, {classes}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)
