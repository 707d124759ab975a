"""Parameters of the engine by effort."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.effort import EFFORTS
from advcore.options import Options
from advcore.solve import schedules
from advcore.solve.params import Facts, engine_params

KINDS = ("kinked", "convolutional", "saturating", "smooth")


def facts(kind: str, n: int, targeted: bool = True) -> Facts:
    return Facts(n=n, classes=3, kind=kind, targeted=targeted, required_margin=1e-4)


def test_every_effort_of_every_kind_fits_the_engine() -> None:
    cases = (KINDS, EFFORTS, (True, False), (4, schedules.LARGE))
    for kind, effort, targeted, n in itertools.product(*cases):
        chosen = engine_params(Options(effort=effort), facts(kind, n, targeted))
        assert chosen.attempts >= 1


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("name", EFFORTS)
def test_an_effort_may_be_handed_in(random_network: Any, name: str, targeted: bool) -> None:
    network = random_network((20, 16, 5), "relu")
    x = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    targets = (network.forward(x).argmax(axis=1) + 1) % 5 if targeted else None
    effort = schedules.find_effort(name, network.kind, 20, targeted)
    by_name, by_object = (
        advcore.minimize_distortion(network, x, targets, effort=e) for e in (name, effort)
    )
    for array in ("adversarial", "c", "status", "evaluations", "forwards", "iterations"):
        np.testing.assert_array_equal(getattr(by_object, array), getattr(by_name, array))


def test_large_images_descend_at_once() -> None:
    """From schedules.LARGE values on the descent is the search: steps by effort, and a polish."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 20, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(180, 10),
    ).eval()  # fmt: skip
    x = np.random.default_rng(0).random((3, 3, 80, 80), dtype=np.float32)
    assert x[0].size >= schedules.LARGE
    with torch.no_grad():
        targets = model(torch.from_numpy(x)).argsort(dim=1)[:, -3].numpy()
    distortion = {}
    for effort in ("fast", "default"):
        searches = schedules.find_effort(effort, "convolutional", x[0].size)
        steps = sum(s.descent.steps for s in searches.searches[: searches.attempts])
        result = advcore.minimize_distortion(model, x, targets, effort=effort)
        assert result.success.all()
        assert (result.rescues == 0).all()
        assert (result.evaluations > steps).all()
        assert (result.evaluations <= steps + 20).all()
        distortion[effort] = result.distortion.mean()
    assert distortion["default"] <= distortion["fast"]
