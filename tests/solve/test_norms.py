"""Minimum distortion in linf and l1: exact minima of affine models, and the results' own words."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy import optimize
from support.affine import affine
from support.backends import Backend

import advcore
from advcore import Network
from advcore.network import Layer

NORMS = ("linf", "l1")
CONFIDENCE = 1e-4


def size(r: Any, norm: str) -> Any:
    r = np.abs(np.asarray(r, np.float64).reshape(len(r), -1))
    return r.max(axis=1) if norm == "linf" else r.sum(axis=1)


def smallest(a: Any, b: Any, low: Any, high: Any, norm: str) -> float:
    """Exact minimum of ||r|| with a @ r + b >= 0 and low <= r <= high, by a linear program."""
    n = a.shape[1]
    if norm == "linf":  # min t: -t <= r <= t
        identity, ones = np.eye(n), np.ones((n, 1))
        rows = np.block([[-a, np.zeros((len(a), 1))], [identity, -ones], [-identity, -ones]])
        limits = np.r_[b, np.zeros(2 * n)]
        bounds = [*zip(low, high, strict=True), (0, None)]
        cost = np.r_[np.zeros(n), 1]
    else:  # r = up - down
        rows, limits, cost = np.hstack([-a, a]), b, np.ones(2 * n)
        bounds = [*((0, v) for v in high), *((0, -v) for v in low)]
    solved = optimize.linprog(cost, A_ub=rows, b_ub=limits, bounds=bounds, method="highs")
    assert solved.status == 0
    return float(solved.fun)


@cache
def exact(n: int, classes: int, norm: str) -> Any:
    problem = affine(n, classes, 0.0, 1.0)
    distances = []
    for row, (x, target) in enumerate(zip(problem.x, problem.target, strict=True)):
        others = np.delete(np.arange(classes), target)
        a, b = problem.versus(row, target, others, CONFIDENCE)
        distances.append(smallest(a, b, problem.lo - x, problem.hi - x, norm))
    return np.array(distances)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "classes"), [(20, 2), (20, 10), (60, 10), (100, 200)])
def test_minima_of_affine_models(backend: Backend, norm: str, n: int, classes: int) -> None:
    problem = affine(n, classes, 0.0, 1.0)
    result = backend.attack(
        problem.network, problem.x, problem.target, norm=norm, confidence=CONFIDENCE
    )
    assert result.success.all()
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()
    assert result.norm == norm
    np.testing.assert_allclose(size(result.adversarial - problem.x, norm), result.distortion, 1e-5)
    gap = result.distortion / exact(n, classes, norm) - 1
    assert gap.min() > -1e-4
    assert gap.max() < 1e-3
    assert gap.mean() < 1e-4


@pytest.mark.parametrize("norm", NORMS)
def test_minima_with_1000_classes(norm: str) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((1000, 50)).astype(np.float32)
    network = Network([Layer(weight, np.zeros(1000, np.float32))])
    x = rng.random((4, 50), dtype=np.float32)
    target = np.argsort(network.forward(x), axis=1)[:, -3]
    result = advcore.minimize_distortion(network, x, target, norm=norm)
    wide = weight.astype(np.float64)
    for row in range(len(x)):
        a = wide[target[row]] - np.delete(wide, target[row], axis=0)
        least = smallest(a, a @ x[row] - CONFIDENCE, -x[row], 1 - x[row], norm)
        assert -1e-4 < result.distortion[row] / least - 1 < 1e-3


def test_each_norm_is_smallest_in_its_own_result(random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="relu"), random_images(12)
    target = (network.forward(x).argmax(axis=1) + 1) % network.classes
    results = {n: advcore.minimize_distortion(network, x, target, norm=n) for n in NORMS}
    for norm, result in results.items():
        assert result.success.all()
        for other in results.values():
            mean = size(other.adversarial - x, norm).mean()
            assert result.distortion.mean() <= 1.001 * mean
        rms = np.sqrt(((result.adversarial - x) ** 2).mean(axis=1))
        np.testing.assert_allclose(result.rms_distortion, rms, rtol=1e-5)
        assert np.isnan(result.c).all() or (result.c == 0).all()
        assert result.curve(float(result.distortion.max())) == 1
        assert f"||r||_{norm[1:]}" in result.summary()


@pytest.mark.parametrize("norm", NORMS)
def test_untargeted_runs_reach_some_class(
    random_network: Any, random_images: Any, norm: str
) -> None:
    network, x = random_network(activation="relu"), random_images(12)
    free = advcore.minimize_distortion(network, x, norm=norm, effort="thorough")
    assert free.success.all()
    assert (free.prediction != network.forward(x).argmax(axis=1)).all()
    held = advcore.minimize_distortion(network, x, free.prediction, norm=norm, effort="thorough")
    assert free.distortion.mean() <= 1.02 * held.distortion.mean()


@pytest.mark.parametrize("norm", NORMS)
def test_starts_and_small_budgets(random_network: Any, random_images: Any, norm: str) -> None:
    network, x = random_network(activation="relu"), random_images(8)
    target = (network.forward(x).argmax(axis=1) + 1) % network.classes
    plain = advcore.minimize_distortion(network, x, target, norm=norm)
    again = advcore.minimize_distortion(network, x, target, norm=norm, starts=plain.adversarial)
    assert (again.distortion <= plain.distortion * (1 + 1e-6)).all()
    short = advcore.minimize_distortion(network, x, target, norm=norm, max_evaluations=20)
    assert (short.evaluations <= 20).all()
    assert short.success.mean() > 0.8


def test_bounds_in_other_units(random_images: Any) -> None:
    """Images of 0 to 255 have distortions 255 times as large."""
    rng = np.random.default_rng(3)
    weight: Any = rng.standard_normal((5, 20)).astype(np.float32)
    bias = np.zeros(5, np.float32)
    x = random_images(6)
    target = np.argsort(x @ weight.T, axis=1)[:, -2]
    unit = advcore.minimize_distortion(Network([Layer(weight, bias)]), x, target, norm="linf")
    wide = advcore.minimize_distortion(
        Network([Layer(weight / 255, bias)]), x * 255, target, norm="linf", bounds=(0, 255)
    )
    np.testing.assert_allclose(wide.distortion / 255, unit.distortion, rtol=2e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("levels", [256, 16])
def test_grids_keep_the_norm(random_network: Any, norm: str, levels: int) -> None:
    """On a grid the distortion is at most a level (linf) or a few (l1) above the free one."""
    rng = np.random.default_rng(8)
    network = random_network(activation="relu")
    x = (rng.integers(0, levels, (16, 20)) / (levels - 1)).astype(np.float32)
    target = (network.forward(x).argmax(axis=1) + 1) % network.classes
    free = advcore.minimize_distortion(network, x, target, norm=norm)
    grid = advcore.minimize_distortion(network, x, target, norm=norm, levels=levels)
    step = 1 / (levels - 1)
    assert grid.success.all()
    np.testing.assert_allclose(grid.adversarial / step, np.rint(grid.adversarial / step), atol=1e-3)
    np.testing.assert_allclose(size(grid.adversarial - x, norm), grid.distortion, rtol=1e-5)
    steps = grid.distortion / step
    if norm == "linf":
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
        whole = np.ceil(free.distortion / step - 1e-3)
        assert (steps <= whole + 1e-3).mean() > 0.9
    else:
        assert ((grid.distortion - free.distortion) / step).mean() < 2.5


def test_results_of_two_norms_are_not_joined(random_network: Any, random_images: Any) -> None:
    network, x = random_network(), random_images(3)
    results = [advcore.minimize_distortion(network, x, norm=norm) for norm in NORMS]
    with pytest.raises(ValueError, match="results must have one norm, got linf, l1"):
        advcore.Result.concatenate(results)


def test_the_norm_is_stored(random_network: Any, random_images: Any, tmp_path: Any) -> None:
    result = advcore.minimize_distortion(random_network(), random_images(3), norm=1)
    result.save(tmp_path / "r.npz")
    assert advcore.Result.load(tmp_path / "r.npz").norm == result[:2].norm == "l1"
