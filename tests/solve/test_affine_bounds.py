"""Affine classifiers whose exact minimum lies on many bounds: digits, and tight boxes."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.backends import Backend
from support.exact_affine import Undecided, nearest, optimize

from advcore import Layer, Network, data

CONFIDENCE = 1e-4
CLASSES = [3, 10, 30, 100, 300, 1000]


class Problem(NamedTuple):
    """Images (N, n), their targets and bounds (N, n), and the exact r (N, n), float64."""

    network: Network
    x: Any
    target: Any
    lo: Any
    hi: Any
    r: Any

    @property
    def exact(self) -> Any:
        return np.linalg.norm(self.r, axis=1)

    @property
    def active(self) -> Any:
        """Share of the values that the minimum puts on a bound."""
        x = self.x + self.r
        return ((x <= self.lo + 1e-9) | (x >= self.hi - 1e-9)).mean(axis=1)


def minimum(network: Network, x: Any, target: int, lo: Any, hi: Any) -> Any:
    """The exact r (n,) of one image; None where the box holds no point with the margin."""
    layer = network.layers[0]
    weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
    others = np.delete(np.arange(len(bias)), target)
    a = weight[target] - weight[others]
    b = a @ x.astype(np.float64) + bias[target] - bias[others] - CONFIDENCE
    return nearest(a, b, lo - x, hi - x)


def within(network: Network, x: Any, target: Any, lo: Any, hi: Any) -> Problem:
    r = [minimum(network, *case) for case in zip(x, target, lo, hi, strict=True)]
    has = [row for row, found in enumerate(r) if found is not None]
    return Problem(network, x[has], target[has], lo[has], hi[has], np.stack([r[i] for i in has]))


def tight(problem: Problem, share: float) -> Problem:
    """The same images in boxes of ``share`` of their largest change, wider where that is too tight.

    With a small share all boxes are widened, by steps of 5%, until they just hold an answer that
    float64 can find.
    """
    network, x, target, lo, hi, r = problem
    low, high, found = lo.copy(), hi.copy(), r.copy()
    for row in range(len(x)):
        width = share * np.abs(r[row]).max()

        def solve(row: int, width: float) -> Any:
            low[row] = np.maximum(lo[row], (x[row] - width).astype(np.float32))
            high[row] = np.minimum(hi[row], (x[row] + width).astype(np.float32))
            try:
                return minimum(network, x[row], target[row], low[row], high[row])
            except Undecided:
                return None

        while solve(row, width) is None:
            width *= 1.05
        found[row] = solve(row, width)
    return Problem(network, x, target, low, high, found)


def digits(rows: int = 60) -> Problem:
    """Softmax regression on the digits of the package; most pixels are 0, a bound."""
    images, labels = data.embedded_digits()
    x, onehot = images.astype(np.float64), np.eye(10)[labels]
    weight, bias = np.zeros((10, 784)), np.zeros(10)
    for _ in range(150):
        z = x @ weight.T + bias
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True) - onehot
        weight -= 0.3 * (p.T @ x / len(x) + 1e-3 * weight)
        bias -= 0.3 * p.mean(axis=0)
    network = Network([Layer(weight.astype(np.float32), bias.astype(np.float32))])
    target = data.random_targets(labels, classes=10, seed=0)[:rows]
    x0 = images[:rows]
    return within(network, x0, target, np.zeros(x0.shape), np.ones(x0.shape))


def random(classes: int, n: int = 100, rows: int = 16) -> Problem:
    """A random classifier; half of the values of each image are 0 or 1."""
    rng = np.random.default_rng(classes)
    weight = rng.standard_normal((classes, n))
    bias = 0.3 * rng.standard_normal(classes) - weight.sum(axis=1) / 2
    network = Network([Layer(weight.astype(np.float32), bias.astype(np.float32))])
    x = rng.random((rows, n), dtype=np.float32)
    x = np.where(rng.random((rows, n)) < 0.5, np.rint(x), x).astype(np.float32)
    label = network.forward(x).argmax(axis=1)
    target = data.random_targets(label, classes=classes, seed=0)
    return within(network, x, target, np.zeros(x.shape), np.ones(x.shape))


@cache
def problems(kind: int | str) -> list[Problem]:
    """In the box [0, 1], in boxes of half the largest change, and in boxes that just suffice."""
    problem = digits() if kind == "digits" else random(int(kind))
    return [problem, tight(problem, 0.5), tight(problem, 0.1)]


@pytest.mark.parametrize("kind", ["digits", *CLASSES])
def test_exact_minimum_on_active_bounds(backend: Backend, kind: int | str) -> None:
    gaps = []
    cases = list(zip((0.2, 0.4, 0.6), problems(kind), strict=True))
    if not backend.fast:  # the last boxes hold no point with a margin raised for more rounding
        cases = cases[:2]
    for least, problem in cases:
        assert problem.active.mean() > least
        result = backend.attack(
            problem.network, problem.x, problem.target, bounds=(problem.lo, problem.hi)
        )
        assert result.success.all()
        np.testing.assert_array_equal(result.prediction, problem.target)
        assert (result.adversarial >= problem.lo).all()
        assert (result.adversarial <= problem.hi).all()
        gaps.append(result.distortion / problem.exact - 1)
    gap = np.concatenate(gaps)
    assert gap.min() > -1e-5
    assert gap.mean() < 1e-4
    # 1.04e-3 where ||r|| is 0.016: what the margin exceeds the confidence by, for rounding.
    assert gap.max() < 1.5e-3


@pytest.mark.parametrize("seed", range(20))
def test_the_exact_solver_against_another(seed: int) -> None:
    """Also of problems without an answer, by a linear program."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((6, 5)), rng.standard_normal(6) - 0.7
    low, high = -rng.random(5), rng.random(5)
    has = optimize.linprog(np.zeros(5), -a, b, bounds=np.stack([low, high], axis=1)).status == 0
    r = nearest(a, b, low, high)
    assert (r is not None) == has
    if r is None:
        return
    assert (a @ r + b).min() > -1e-9
    assert (low <= r).all()
    assert (r <= high).all()
    other = optimize.minimize(
        lambda v: v @ v / 2,
        r + 0.1 * rng.standard_normal(5),
        jac=lambda v: v,
        method="SLSQP",
        bounds=np.stack([low, high], axis=1),
        constraints={"type": "ineq", "fun": lambda v: a @ v + b, "jac": lambda _: a},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert other.success
    np.testing.assert_allclose(r, other.x, atol=1e-6)
