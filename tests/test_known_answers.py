"""Affine classifiers against the exact minimum, and the paper's loss against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Layer, Network

pytest.importorskip("scipy.optimize")

from exact_affine import nearest

from advcore import reference

INF = float("inf")
CONFIDENCE = 1e-4
LIMITS = {2: (1e-4, 1e-3), 3: (1e-4, 1e-3), 10: (1e-4, 1e-3), 1000: (1.5e-3, 1e-2)}
"""Relative gap by number of classes: mean and largest. Of 1,000 random classes dozens meet at the
minimum, more than the sixteen cuts of the polish."""
SIZES = [(n, classes) for n in (1, 2, 7, 16, 17, 784) for classes in (2, 3, 10, 1000)]


class Affine:
    """A random affine classifier, images, and for each image a target that the box contains."""

    def __init__(self, n: int, classes: int, lo: Any, hi: Any, rows: int = 12) -> None:
        rng = np.random.default_rng(1000 * n + classes)
        self.bounds = (lo, hi)
        self.lo, self.hi = (np.broadcast_to(np.asarray(end, np.float64), (n,)) for end in (lo, hi))
        low = np.where(np.isfinite(self.lo), self.lo, -1.0)
        high = np.where(np.isfinite(self.hi), self.hi, 1.0)
        weight = rng.standard_normal((classes, n))
        bias = 0.3 * rng.standard_normal(classes) - weight @ ((low + high) / 2)
        self.layer = Layer(weight.astype(np.float32), bias.astype(np.float32))
        self.network = Network([self.layer])
        points = low + (high - low) * rng.random((4000, n))
        ordered = np.sort(self.logits(points), axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-2
        seen = np.unique(self.logits(points[clear]).argmax(axis=1))
        assert len(seen) >= 2
        x = low + (high - low) * rng.random((rows, n))
        self.x = np.clip(x.astype(np.float32), self.lo, self.hi).astype(np.float32)
        self.label = self.logits(self.x).argmax(axis=1)
        self.target = np.array([rng.choice(seen[seen != label]) for label in self.label])

    def logits(self, x: Any) -> Any:
        weight, bias = self.layer.weight.astype(np.float64), self.layer.bias.astype(np.float64)
        return x.astype(np.float64) @ weight.T + bias

    def versus(self, row: int, winner: Any, loser: Any, confidence: float) -> tuple[Any, Any]:
        """Margins of winners over losers as ``a @ r + b >= 0``."""
        weight, z = self.layer.weight.astype(np.float64), self.logits(self.x[row : row + 1])[0]
        return weight[winner] - weight[loser], z[winner] - z[loser] - confidence

    def targeted(self, confidence: float = CONFIDENCE) -> Any:
        """Exact distortion of each image."""
        found = []
        for row, (x, target) in enumerate(zip(self.x, self.target, strict=True)):
            others = np.delete(np.arange(self.network.classes), target)
            r = nearest(*self.versus(row, target, others, confidence), self.lo - x, self.hi - x)
            found.append(np.linalg.norm(r))
        return np.array(found)

    def untargeted(self, confidence: float = CONFIDENCE) -> Any:
        """Exact distortion of each image, the smallest over all classes that it may become."""
        found = []
        for row, (x, label) in enumerate(zip(self.x, self.label, strict=True)):
            others = np.delete(np.arange(self.network.classes), label)
            a, b = self.versus(row, others, label, confidence)
            bound, best = -b / np.linalg.norm(a, axis=1), np.inf
            for j in np.argsort(bound):
                if bound[j] >= best:
                    break
                r = nearest(a[j : j + 1], b[j : j + 1], self.lo - x, self.hi - x)
                best = best if r is None else min(best, np.linalg.norm(r))
            found.append(best)
        return np.array(found)


def check_sound(result: Any, exact: Any, problem: Affine, confidence: float) -> None:
    """Success everywhere, inside the box, with the margin, and not below the exact minimum."""
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
    """Relative gap, after what the margin is raised by for the rounding of long sums."""
    weight, bias = np.abs(problem.layer.weight), np.abs(problem.layer.bias)
    rounding = 2.0**-23 * (np.abs(problem.x) @ weight.T + bias).max(axis=1)
    raised = 8 * rounding / np.linalg.norm(weight, axis=1).min()
    gap = np.maximum(result.distortion - raised, exact) / exact - 1
    mean, worst = LIMITS[problem.network.classes]
    assert gap.max() < worst
    assert gap.mean() < mean


def check(result: Any, exact: Any, problem: Affine, confidence: float = CONFIDENCE) -> None:
    check_sound(result, exact, problem, confidence)
    check_near(result, exact, problem)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-INF, INF)], ids=["box", "free"])
@pytest.mark.parametrize(("n", "classes"), SIZES)
def test_targeted_affine(n: int, classes: int, bounds: tuple[float, float]) -> None:
    problem = Affine(n, classes, *bounds)
    result = advcore.minimize_distortion(problem.network, problem.x, problem.target, bounds=bounds)
    check(result, problem.targeted(), problem)
    np.testing.assert_array_equal(result.prediction, problem.target)
    np.testing.assert_array_equal(result.target, problem.target)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-INF, INF)], ids=["box", "free"])
@pytest.mark.parametrize(("n", "classes"), SIZES)
def test_untargeted_affine_is_exact_for_the_class_reached(
    n: int, classes: int, bounds: tuple[float, float]
) -> None:
    problem = Affine(n, classes, *bounds)
    result = advcore.minimize_distortion(problem.network, problem.x, bounds=bounds)
    check_sound(result, problem.untargeted(), problem, CONFIDENCE)
    assert (result.prediction != problem.label).all()
    assert (result.target == -1).all()
    z, own = problem.logits(result.adversarial), []
    for row, (x, label) in enumerate(zip(problem.x, problem.label, strict=True)):
        passed = np.flatnonzero(z[row] > z[row, label])
        a, b = problem.versus(row, passed, label, CONFIDENCE)
        rs = [nearest(a[[j]], b[[j]], problem.lo - x, problem.hi - x) for j in range(len(passed))]
        own.append(max(np.linalg.norm(r) for r in rs))  # the search ended at the last to be passed
    check_near(result, np.array(own), problem)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-INF, INF)], ids=["box", "free"])
@pytest.mark.parametrize(("n", "classes"), [(1, 10), (16, 2), (16, 3), (784, 2), (784, 10)])
def test_untargeted_affine_is_mostly_the_minimum_over_all_classes(
    n: int, classes: int, bounds: tuple[float, float]
) -> None:
    """The search follows the class that it meets first: on 6 to 16% of these another is nearer."""
    problem = Affine(n, classes, *bounds)
    result = advcore.minimize_distortion(problem.network, problem.x, bounds=bounds)
    exact = problem.untargeted()
    check_sound(result, exact, problem, CONFIDENCE)
    missed = result.distortion > (1 + LIMITS[classes][1]) * exact
    assert missed.mean() <= (0 if classes == 2 else 0.25)


def test_the_box_matters() -> None:
    """The problems above would not tell a solver that ignores the bounds otherwise."""
    boxed, free = Affine(784, 10, 0.0, 1.0), Affine(784, 10, 0.0, 1.0)
    free.lo, free.hi = np.full(784, -INF), np.full(784, INF)
    assert (boxed.targeted() > 1.001 * free.targeted()).sum() >= 6


@pytest.mark.parametrize(("n", "classes"), [(7, 3), (17, 10), (784, 10)])
def test_array_bounds_with_infinite_and_frozen_values(n: int, classes: int) -> None:
    rng = np.random.default_rng(n)
    lo = rng.choice([-INF, -0.5, 0.0], n)
    hi = rng.choice([0.25, 0.5, INF], n)
    frozen = rng.random(n) < 0.2
    lo[frozen] = hi[frozen] = 0.125
    problem = Affine(n, classes, lo, hi)
    result = advcore.minimize_distortion(
        problem.network, problem.x, problem.target, bounds=(lo, hi)
    )
    check(result, problem.targeted(), problem)
    np.testing.assert_array_equal(result.adversarial[:, frozen], problem.x[:, frozen])


def test_bounds_of_each_image() -> None:
    problem = Affine(16, 10, 0.0, 1.0)
    lo = np.clip(problem.x - 0.4, 0, 1).astype(np.float64)
    hi = np.clip(problem.x + 0.4, 0, 1).astype(np.float64)
    both = advcore.minimize_distortion(problem.network, problem.x, problem.target, bounds=(lo, hi))
    solved = 0
    for row in range(len(problem.x)):
        part = Affine(16, 10, 0.0, 1.0)
        part.x, part.label, part.target = (
            v[row : row + 1] for v in (problem.x, problem.label, problem.target)
        )
        part.lo, part.hi = lo[row], hi[row]
        others = np.delete(np.arange(10), part.target[0])
        x = part.x[0]
        r = nearest(*part.versus(0, part.target[0], others, CONFIDENCE), lo[row] - x, hi[row] - x)
        assert both.success[row] == (r is not None)
        if r is not None:
            solved += 1
            assert both.distortion[row] / np.linalg.norm(r) - 1 < 1e-3
            assert (both.adversarial[row] >= lo[row]).all()
            assert (both.adversarial[row] <= hi[row]).all()
    assert solved >= 6


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-INF, INF)], ids=["box", "free"])
@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5])
def test_confidence_is_the_margin_required(
    bounds: tuple[float, float], confidence: float, targeted: bool
) -> None:
    problem = Affine(784, 2, *bounds)
    result = advcore.minimize_distortion(
        problem.network,
        problem.x,
        problem.target if targeted else None,
        bounds=bounds,
        confidence=confidence,
    )
    check(result, problem.targeted(confidence), problem, confidence)


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
def test_every_effort_is_exact_on_two_classes(effort: str) -> None:
    problem = Affine(784, 2, 0.0, 1.0)
    result = advcore.minimize_distortion(problem.network, problem.x, problem.target, effort=effort)
    assert result.success.all()
    gap = result.distortion / problem.targeted() - 1
    assert gap.min() > -1e-4
    assert gap.max() < (5e-3 if effort == "fast" else 1e-3)


# --- c and the paper's loss


def sigmoids(n: int = 12, hidden: int = 10, classes: int = 4, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    first = (2 * rng.standard_normal((hidden, n)) / np.sqrt(n)).astype(np.float32)
    last = (2 * rng.standard_normal((classes, hidden))).astype(np.float32)
    return Network(
        [
            Layer(first, rng.standard_normal(hidden).astype(np.float32), "sigmoid"),
            Layer(last, np.zeros(classes, np.float32)),
        ]
    )


def digits(rows: int = 4, n: int = 12) -> Any:
    return np.random.default_rng(1).random((rows, n), dtype=np.float32)


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("c_search", ["fused", "bisection"])
def test_c_of_the_unsquared_norm_is_twice_c_times_the_distortion(loss: str, c_search: str) -> None:
    network, x = sigmoids(), digits()
    options = {"loss": loss, "c_search": c_search}
    squared = advcore.minimize_distortion(network, x, **options)  # type: ignore[arg-type]
    unsquared = advcore.minimize_distortion(
        network,
        x,
        penalty="l2_unsquared",
        **options,  # type: ignore[arg-type]
    )
    assert (squared.c > 0).all()
    assert (squared.penalty, unsquared.penalty) == ("l2", "l2_unsquared")
    np.testing.assert_allclose(unsquared.distortion, squared.distortion, rtol=1e-6)
    np.testing.assert_allclose(unsquared.c, 2 * squared.c * squared.distortion, rtol=1e-5)


@pytest.mark.parametrize("penalty", ["l2", "l2_unsquared"])
@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_the_first_c_is_free(penalty: str, factor: float) -> None:
    """A bad first c costs evaluations, not distortion."""
    problem = Affine(17, 3, 0.0, 1.0)
    auto = advcore.minimize_distortion(problem.network, problem.x, problem.target, penalty=penalty)
    first = factor * float(np.median(auto.c))
    own = advcore.minimize_distortion(
        problem.network, problem.x, problem.target, penalty=penalty, c_init=first
    )
    assert own.success.all()
    np.testing.assert_allclose(own.distortion, auto.distortion, rtol=1e-3)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("penalty", ["l2", "l2_unsquared"])
def test_bisection_on_cross_entropy_is_the_reference(penalty: str, targeted: bool) -> None:
    network, x = sigmoids(), digits()
    targets = (network.forward(x).argmax(axis=1) + 1) % 4 if targeted else None
    paper = reference.minimize_distortion(
        network, x, targets, norm=penalty, confidence=CONFIDENCE, ftol=1e-14, gtol=1e-9
    )
    ours = advcore.minimize_distortion(
        network, x, targets, penalty=penalty, loss="cross_entropy", c_search="bisection"
    )
    assert paper.success.all()
    assert ours.success.all()
    assert ours.loss == "cross_entropy"
    assert ours.penalty_distortion is not None
    assert paper.penalty_distortion is not None
    np.testing.assert_allclose(ours.penalty_distortion, paper.penalty_distortion, rtol=1e-3)
    np.testing.assert_allclose(ours.c, paper.c, rtol=1e-2)
    assert (ours.distortion <= ours.penalty_distortion * (1 + 1e-6)).all()


def test_the_fused_minimiser_is_the_references() -> None:
    network, x = sigmoids(), digits()
    targets = (network.forward(x).argmax(axis=1) + 1) % 4
    paper = reference.minimize_distortion(network, x, targets, confidence=CONFIDENCE)
    ours = advcore.minimize_distortion(network, x, targets, loss="cross_entropy")
    assert ours.penalty_distortion is not None
    assert paper.penalty_distortion is not None
    ratio = ours.penalty_distortion / paper.penalty_distortion
    np.testing.assert_allclose(ratio, 1, rtol=2e-3)
    assert (ours.distortion <= ours.penalty_distortion * (1 + 1e-6)).all()
    assert (5 * ours.evaluations < paper.evaluations).all()


def test_margin_loss_beats_the_papers() -> None:
    """Cross-entropy is biased: its minimiser keeps all other classes down, not the best one."""
    problem = Affine(784, 10, 0.0, 1.0)
    paper = advcore.minimize_distortion(
        problem.network, problem.x, problem.target, loss="cross_entropy"
    )
    ours = advcore.minimize_distortion(problem.network, problem.x, problem.target)
    exact = problem.targeted()
    assert paper.success.all()
    assert paper.penalty_distortion is not None
    assert (paper.distortion > exact * (1 - 1e-4)).all()
    assert (paper.distortion <= paper.penalty_distortion * (1 + 1e-6)).all()
    assert (ours.distortion <= paper.distortion * (1 + 1e-4)).all()
    assert ours.penalty_distortion is None
