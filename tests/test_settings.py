"""What an effort asks of the engine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.solve import settings


def test_every_effort_of_every_kind_fits_the_engine() -> None:
    options = (settings.EFFORT, settings.EFFORTS, (True, False), (4, settings.LARGE))
    for kind, effort, targeted, n in itertools.product(*options):
        chosen = settings.engine_params(
            n=n, classes=3, targeted=targeted, kind=kind, loss="margin", norm="l2",
            c_search="fused", c_init=None, confidence=1e-4, effort=effort, history=5,
            tolerance=1e-3, max_evaluations=None, starts=0, seed=0,
        )  # fmt: skip
        assert chosen.attempts >= 1


@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
def test_a_small_budget_is_spent_as_fast_would(random_network: Any, activation: str) -> None:
    network = random_network((20, 16, 5), activation)
    x = np.random.default_rng(0).random((40, 20), dtype=np.float32)
    most = settings.NEEDED[network.kind]["default"] - 1
    fast, small, enough = (
        advcore.minimize_distortion(network, x, effort=effort, max_evaluations=budget)
        for effort, budget in (("fast", most), ("thorough", most), ("thorough", most + 1))
    )
    np.testing.assert_array_equal(small.adversarial, fast.adversarial)
    assert small.engine["effort"] == "fast (max_evaluations is too small for thorough)"
    assert (enough.evaluations > small.evaluations).any()
    assert "effort" not in {**fast.engine, **enough.engine}


def test_efforts_that_a_budget_affords() -> None:
    chosen = {
        (effort, n, budget): settings.affordable(effort, "convolutional", n, budget)
        for effort, n, budget in itertools.product(
            settings.EFFORTS, (784, settings.LARGE), (99, 150, 200, None)
        )
    }
    fast, default, thorough = "fast", "default", "thorough"
    for n, wanted in (
        (784, {default: [fast, default, default], thorough: [fast, default, thorough]}),
        (settings.LARGE, {default: [fast, default, default], thorough: [fast, default, default]}),
    ):
        for effort, efforts in wanted.items():
            assert [chosen[effort, n, budget] for budget in (99, 150, 200)] == efforts
        assert all(chosen[fast, n, budget] == fast for budget in (99, 150, 200))
        assert all(chosen[effort, n, None] == effort for effort in settings.EFFORTS)


def test_large_images_walk() -> None:
    """From settings.LARGE values on the walk is the search: steps by effort, and a polish."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 20, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(180, 10),
    ).eval()  # fmt: skip
    x = np.random.default_rng(0).random((3, 3, 80, 80), dtype=np.float32)
    assert x[0].size >= settings.LARGE
    with torch.no_grad():
        targets = model(torch.from_numpy(x)).argsort(dim=1)[:, -3].numpy()
    distortion = {}
    for effort in ("fast", "default"):
        steps = settings.ON_LARGE[effort].walk.steps
        result = advcore.minimize_distortion(model, x, targets, effort=effort)
        assert result.success.all()
        assert (result.rescues == 0).all()
        assert (result.evaluations > steps).all()
        assert (result.evaluations <= steps + 10).all()
        distortion[effort] = result.distortion.mean()
    assert distortion["default"] <= distortion["fast"] * 1.001
