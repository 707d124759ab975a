"""A larger effort or budget is never worse: it goes on where the smaller one ends."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.effort import EFFORTS

BUDGETS = (5, 15, 40, 100, 400)


def assert_never_worse(model: Any, x: Any, targets: Any) -> None:
    """Along efforts without a budget, along budgets of an effort, and along efforts of a budget."""

    def distortion(effort: str, budget: int | None) -> Any:
        result = advcore.minimize_distortion(
            model, x, targets, effort=effort, max_evaluations=budget
        )
        assert budget is None or (result.evaluations <= budget).all()
        return result.distortion

    found = {
        (effort, budget): distortion(effort, budget)
        for effort, budget in itertools.product(EFFORTS, (*BUDGETS, None))
    }
    for effort in EFFORTS:
        for small, large in itertools.pairwise((*BUDGETS, None)):
            assert (found[effort, large] <= found[effort, small]).all()
    for budget in (*BUDGETS, None):
        for small, large in itertools.pairwise(EFFORTS):
            assert (found[large, budget] <= found[small, budget]).all()
    assert (found["thorough", None] < found["fast", 15]).any()


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus", "identity"])
def test_dense_networks(random_network: Any, activation: str, targeted: bool) -> None:
    network = random_network((20, 16, 6), activation)
    x = np.random.default_rng(0).random((12, 20), dtype=np.float32)
    targets = (network.forward(x).argmax(axis=1) + 2) % 6 if targeted else None
    assert_never_worse(network, x, targets)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_convolutional_networks(native: bool, targeted: bool) -> None:
    """Through torch an image at a time: rows of a batch round differently with their number."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip
    x = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        targets = (model(torch.from_numpy(x)).argmax(1).numpy() + 1) % 5 if targeted else None
    if native:
        return assert_never_worse(model, x, targets)
    for i in range(3):
        target = None if targets is None else targets[i : i + 1]
        assert_never_worse(lambda z: model(z), x[i : i + 1], target)
    return None
