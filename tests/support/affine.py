"""Affine classifiers with their exact minima, and checks of results on them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from advcore import Layer, Network

from .backends import Backend
from .exact_affine import nearest

INF = float("inf")
CONFIDENCE = 1e-4
LIMITS = {2: (1e-4, 1e-3), 3: (1e-4, 1e-3), 10: (1e-4, 1e-3), 1000: (1.5e-3, 1e-2)}
"""Largest mean and largest single relative gap, by the number of classes. Dozens of 1,000 random
classes meet at the minimum, more than the sixteen cuts of the polish."""


class Affine:
    """A random affine classifier, images, and for each image a target that the box contains.

    Exact distortions are computed once, so that nothing may change after the first of them.
    """

    def __init__(self, n: int, classes: int, lo: Any, hi: Any, rows: int = 12) -> None:
        rng = np.random.default_rng(1000 * n + classes)
        self.bounds = (lo, hi)
        self.lo, self.hi = (
            np.broadcast_to(np.asarray(bound, np.float64), (n,)) for bound in (lo, hi)
        )
        low = np.where(np.isfinite(self.lo), self.lo, -1.0)
        high = np.where(np.isfinite(self.hi), self.hi, 1.0)
        weight = rng.standard_normal((classes, n))
        bias = 0.3 * rng.standard_normal(classes) - weight @ ((low + high) / 2)
        self.layer = Layer(weight.astype(np.float32), bias.astype(np.float32))
        self.network = Network([self.layer])
        points = low + (high - low) * rng.random((4000, n))
        sorted_logits = np.sort(self.logits(points), axis=1)
        has_margin = sorted_logits[:, -1] - sorted_logits[:, -2] > 1e-2
        reachable = np.unique(self.logits(points[has_margin]).argmax(axis=1))
        assert len(reachable) >= 2
        x = low + (high - low) * rng.random((rows, n))
        self.x = np.clip(x.astype(np.float32), self.lo, self.hi).astype(np.float32)
        self.label = self.logits(self.x).argmax(axis=1)
        self.target = np.array([rng.choice(reachable[reachable != label]) for label in self.label])
        self._exact: dict[tuple[str, float], Any] = {}

    def logits(self, x: Any) -> Any:
        weight, bias = self.layer.weight.astype(np.float64), self.layer.bias.astype(np.float64)
        return x.astype(np.float64) @ weight.T + bias

    def versus(self, row: int, winner: Any, loser: Any, confidence: float) -> tuple[Any, Any]:
        """Margins of winners over losers as ``a @ r + b >= 0``."""
        weight, z = self.layer.weight.astype(np.float64), self.logits(self.x[row : row + 1])[0]
        return weight[winner] - weight[loser], z[winner] - z[loser] - confidence

    def targeted(self, confidence: float = CONFIDENCE) -> Any:
        """Exact distortion of each image for its target."""
        key = ("targeted", confidence)
        if key not in self._exact:
            self._exact[key] = self._targeted(confidence)
        return self._exact[key]

    def untargeted(self, confidence: float = CONFIDENCE) -> Any:
        """Exact distortion of each image, the smallest over all classes that it may become."""
        key = ("untargeted", confidence)
        if key not in self._exact:
            self._exact[key] = self._untargeted(confidence)
        return self._exact[key]

    def _targeted(self, confidence: float) -> Any:
        distortions = []
        for row, (x, target) in enumerate(zip(self.x, self.target, strict=True)):
            others = np.delete(np.arange(self.network.classes), target)
            r = nearest(*self.versus(row, target, others, confidence), self.lo - x, self.hi - x)
            distortions.append(np.linalg.norm(r))
        return np.array(distortions)

    def _untargeted(self, confidence: float) -> Any:
        distortions = []
        for row, (x, label) in enumerate(zip(self.x, self.label, strict=True)):
            others = np.delete(np.arange(self.network.classes), label)
            a, b = self.versus(row, others, label, confidence)
            bound, best = -b / np.linalg.norm(a, axis=1), np.inf
            for j in np.argsort(bound):
                if bound[j] >= best:
                    break
                r = nearest(a[j : j + 1], b[j : j + 1], self.lo - x, self.hi - x)
                best = best if r is None else min(best, np.linalg.norm(r))
            distortions.append(best)
        return np.array(distortions)


@cache
def affine(n: int, classes: int, low: float, high: float) -> Affine:
    """The same problem for every test and back end."""
    return Affine(n, classes, low, high)


def check_sound(result: Any, exact: Any, problem: Affine, confidence: float) -> None:
    """All images succeed, inside the box, with the margin, and not below the exact minimum."""
    assert result.success.all()
    x = result.adversarial.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(x - problem.x, axis=1), result.distortion, rtol=1e-6)
    assert (x >= problem.lo).all()
    assert (x <= problem.hi).all()
    z, rows = problem.logits(x), np.arange(len(x))
    others = z.copy()
    others[rows, result.prediction] = -INF
    lead = z[rows, result.prediction] - others.max(axis=1)
    weight, bias = np.abs(problem.layer.weight), np.abs(problem.layer.bias)
    rounding = 2 * 2.0**-23 * (np.abs(x) @ weight.T + bias).max(axis=1)
    if result.target[0] < 0:
        lead = z[rows, result.prediction] - z[rows, problem.label]
    assert (lead >= confidence - rounding).all()
    assert (result.margin >= confidence).all()
    assert (result.distortion / exact - 1).min() > -1e-3
    assert (result.c > 0).all()


def check_near(result: Any, exact: Any, problem: Affine) -> None:
    """The gap is small, after the distortion that the rounding of long sums adds."""
    weight, bias = np.abs(problem.layer.weight), np.abs(problem.layer.bias)
    rounding = 2.0**-23 * (np.abs(problem.x) @ weight.T + bias).max(axis=1)
    added_distortion = 8 * rounding / np.linalg.norm(weight, axis=1).min()
    gap = np.maximum(result.distortion - added_distortion, exact) / exact - 1
    mean, worst = LIMITS[problem.network.classes]
    assert gap.max() < worst
    assert gap.mean() < mean


def check(result: Any, exact: Any, problem: Affine, confidence: float = CONFIDENCE) -> None:
    check_sound(result, exact, problem, confidence)
    check_near(result, exact, problem)


def check_targeted(backend: Backend, problem: Affine) -> None:
    """The result is the exact minimum for the targets."""
    bounds = problem.bounds
    result = backend.attack(problem.network, problem.x, problem.target, bounds=bounds)
    check(result, problem.targeted(), problem)
    np.testing.assert_array_equal(result.prediction, problem.target)
    np.testing.assert_array_equal(result.target, problem.target)


def check_untargeted(backend: Backend, problem: Affine) -> None:
    """The result is the exact minimum for the classes that the images have become."""
    result = backend.attack(problem.network, problem.x, bounds=problem.bounds)
    check_sound(result, problem.untargeted(), problem, CONFIDENCE)
    assert (result.prediction != problem.label).all()
    assert (result.target == -1).all()
    z, exact = problem.logits(result.adversarial), []
    for row, (x, label) in enumerate(zip(problem.x, problem.label, strict=True)):
        passed_classes = np.flatnonzero(z[row] > z[row, label])
        a, b = problem.versus(row, passed_classes, label, CONFIDENCE)
        rs = [
            nearest(a[[j]], b[[j]], problem.lo - x, problem.hi - x)
            for j in range(len(passed_classes))
        ]
        exact.append(max(np.linalg.norm(r) for r in rs))  # The search ended at the last of these.
    check_near(result, np.array(exact), problem)
