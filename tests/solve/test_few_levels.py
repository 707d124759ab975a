"""Results on grids of few levels, such as binary features, against greedy and exhaustive search."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from support.backends import Backend

import advcore
from advcore import Network, data
from advcore.solve import few_levels


def margins(network: Network, x: Any, label: int) -> Any:
    """Untargeted margins (B,)."""
    z = network.forward(x)
    others = z.copy()
    others[:, label] = -np.inf
    return others.max(axis=1) - z[:, label]


@functools.cache
def greedy_costs(levels: int) -> Any:
    """Squared moves of `greedy_cost` for the digits of `digits_on_grid`."""
    network, x = data.embedded_network(), digits_on_grid(levels)
    labels = network.forward(x).argmax(1)
    return np.array([greedy_cost(network, *row, levels) for row in zip(x, labels, strict=True)])


def digits_on_grid(levels: int) -> Any:
    level = np.rint(data.embedded_digits()[0][:8].astype(np.float64) * (levels - 1))
    return (level / (levels - 1)).astype(np.float32)


def greedy_cost(network: Network, clean: Any, label: int, levels: int) -> float:
    """Squared moves of a search that takes the move with most margin for its cost, by forwards."""
    level = start = np.rint(clean.astype(np.float64) * (levels - 1))
    while True:
        margin = margins(network, (level / (levels - 1)).astype(np.float32)[None], label)[0]
        cost = ((level - start) ** 2).sum()
        if margin > 0:
            return float(cost)
        points = np.concatenate([level + np.eye(len(level)), level - np.eye(len(level))])
        farther = ((points - start) ** 2).sum(axis=1) - cost
        points = points[(farther > 0) & ((points >= 0) & (points < levels)).all(axis=1)]
        gain = margins(network, (points / (levels - 1)).astype(np.float32), label) - margin
        level = points[(gain / (((points - start) ** 2).sum(axis=1) - cost)).argmax()]


@pytest.mark.parametrize("levels", [2, 3])
def test_no_more_moves_than_greedy_search(backend: Backend, levels: int) -> None:
    network = data.embedded_network()
    x, greedy = digits_on_grid(levels), greedy_costs(levels)
    labels = network.forward(x).argmax(1)
    result = backend.attack(network, x, labels=labels, levels=levels)
    assert result.success.all()
    cost = np.rint((result.distortion.astype(np.float64) * (levels - 1)) ** 2)
    assert np.sqrt(cost).mean() <= 0.97 * np.sqrt(greedy).mean()
    assert (cost > greedy).sum() <= 1


@pytest.mark.parametrize("targeted", [False, True])
def test_fewest_flips_of_binary_features(
    backend: Backend, targeted: bool, random_network: Any
) -> None:
    count = 12
    points = (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float32)
    network = random_network(sizes=(count, 20, 4), activation="tanh")
    x = points[np.random.default_rng(1).integers(len(points), size=40)]
    classes = network.forward(points).argmax(1)
    labels = network.forward(x).argmax(1)
    goals = (labels + 1) % 4
    options: dict[str, Any] = {"targets": goals} if targeted else {"labels": labels}
    result = backend.attack(network, x, levels=2, **options)
    wanted = classes == goals[:, None] if targeted else classes != labels[:, None]
    flips = np.abs(points - x[:, None]).sum(axis=2)
    fewest = np.where(wanted, flips, np.inf).min(axis=1)
    found = np.rint(result.distortion.astype(np.float64) ** 2)
    ok = result.success
    assert ok.mean() >= 0.9
    assert (found[ok] >= fewest[ok]).all()
    assert (found[ok] == fewest[ok]).mean() >= 0.9
    assert found[ok].mean() <= 1.05 * fewest[ok].mean()


def test_the_search_improves_the_repaired_point(monkeypatch: pytest.MonkeyPatch) -> None:
    network = data.embedded_network()
    x = np.rint(data.embedded_digits()[0][:40]).astype(np.float32)
    found = advcore.minimize_distortion(network, x, levels=2)
    monkeypatch.setattr("advcore.solve.levels.MOST_LEVELS", 1)
    repaired = advcore.minimize_distortion(network, x, levels=2)
    assert (found.distortion <= repaired.distortion).all()
    assert found.distortion.mean() < 0.95 * repaired.distortion.mean()
    assert (found.forwards > repaired.forwards).all()


class Counting:
    """A NumPy model that counts the rows of its forwards."""

    def __init__(self, network: Network) -> None:
        self.network, self.rows = network, 0

    def forward(self, x: Any) -> Any:
        self.rows += len(x)
        return self.network.forward(x)

    def backward(self, dlogits: Any) -> Any:
        return self.network.backward(dlogits)


@pytest.mark.parametrize("levels", [2, 3, 8])
def test_evaluations_are_counted_and_bounded(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = digits_on_grid(levels)
    models, results = [], []
    for most in (1, few_levels.MOST_LEVELS):
        monkeypatch.setattr("advcore.solve.levels.MOST_LEVELS", most)
        models.append(Counting(data.embedded_network()))
        results.append(
            advcore.minimize_distortion(models[-1], x, levels=levels, max_evaluations=60)
        )
        assert results[-1].success.all()
    without, result = results
    evaluations = result.evaluations - without.evaluations
    forwards = result.forwards - without.forwards
    assert result.evaluations.max() <= 60 + 90
    assert 0 < forwards.max() <= 700
    assert models[1].rows - models[0].rows == evaluations.sum() + forwards.sum()


@pytest.mark.backends("exact")
def test_results_do_not_depend_on_the_batch(
    backend: Backend, random_network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network(activation="relu")
    x = np.rint(np.random.default_rng(3).random((20, network.inputs))).astype(np.float32)
    whole = backend.attack(network, x, levels=2)
    monkeypatch.setattr(few_levels, "MEMORY", 1)  # one search at a time
    for rows in ([3], [19, 0, 7, 7], list(range(20))):
        part = backend.attack(network, x[rows], levels=2, batch_size=3)
        np.testing.assert_array_equal(part.adversarial, whole.adversarial[rows])
        np.testing.assert_array_equal(part.evaluations, whole.evaluations[rows])
        np.testing.assert_array_equal(part.forwards, whole.forwards[rows])
