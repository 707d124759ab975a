"""Queries of an image: none gets more than `max_queries`, and `Result.queries` is their number."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Status, data
from advcore.effort import Effort, Schedule


class Counting:
    """A NumPy model that counts the forwards and backwards of each image.

    The images differ in their first four values, which their bounds hold in place.
    """

    def __init__(self, network: Any, images: Any, limit: float = np.inf) -> None:
        self.network, self.limit = network, limit
        self.place = {image[:4].tobytes(): i for i, image in enumerate(images)}
        self.counts: collections.Counter[int] = collections.Counter()
        self.last: list[int] = []

    def forward(self, x: Any) -> Any:
        self.last = [self.place.get(row[:4].tobytes(), -1) for row in x]
        self._count()
        return self.network.forward(x)

    def backward(self, dlogits: Any) -> Any:
        self._count()
        return self.network.backward(dlogits)

    def _count(self) -> None:
        if any(self.counts[i] >= self.limit for i in self.last if i >= 0):
            raise RuntimeError("no query is left")
        self.counts.update(self.last)


@pytest.fixture
def held(random_network: Any, random_images: Any) -> Any:
    """A network, images, and bounds that hold the first four values of each image in place."""
    network, x = random_network(activation="tanh"), 1 - random_images(12)
    low, high = np.zeros_like(x), np.ones_like(x)
    low[:, :4] = high[:, :4] = x[:, :4]
    return network, x, (low, high)


def per_image(model: Any, count: int) -> Any:
    return np.array([model.counts[i] for i in range(count)])


@pytest.mark.parametrize("limit", [30, 31, 40, 57, 100, 250, 2000])
@pytest.mark.parametrize("way", ["targets", "untargeted", "labels"])
def test_no_image_gets_more_queries_than_asked(held: Any, limit: int, way: str) -> None:
    network, x, bounds = held
    labels = network.forward(x).argmax(axis=1)
    classes = {
        "targets": {"targets": (labels + 1) % network.classes},
        "untargeted": {},
        "labels": {"labels": labels},
    }[way]
    model = Counting(network, x)
    result = advcore.minimize_distortion(
        model, x, bounds=bounds, max_queries=limit, effort="thorough", **classes
    )
    counted = per_image(model, len(x))
    assert (counted <= result.queries).all()  # the rounding at a result counts 20
    assert (result.queries <= limit).all()
    assert (result.queries >= 2 * result.evaluations + result.forwards).all()


class NearestOf(Counting):
    """The same by the nearest image; those that are farther than a digit can be count for none."""

    def forward(self, x: Any) -> Any:
        distance = np.linalg.norm(x[:, None] - self.images[None], axis=2)
        nearest, least = distance.argmin(axis=1), distance.min(axis=1)
        self.last = np.where(least < 11, nearest, -1).tolist()
        self._count()
        return self.network.forward(x)


def digits(count: int = 8) -> Any:
    return data.embedded_digits()[0][:count]


@pytest.mark.parametrize("limit", [10, 11, 25, 60, 200, 2000])
@pytest.mark.parametrize("targeted", [False, True])
def test_queries_are_what_a_harness_counts(limit: int, targeted: bool) -> None:
    network, x = data.embedded_network(), digits()
    model = NearestOf(network, x)
    model.images = x
    targets = (network.forward(x).argmax(axis=1) + 1) % 10 if targeted else None
    result = advcore.minimize_distortion(model, x, targets, max_queries=limit)
    np.testing.assert_array_equal(result.queries, per_image(model, len(x)))
    assert (result.queries <= limit).all()


def test_a_larger_budget_of_queries_is_never_worse(backend: Any) -> None:
    network, x = data.embedded_network(), digits(20)
    effort = Effort((Schedule((0.3, 0.0), (20, 30), (0.1, 0.05)),), 4)
    last = np.full(len(x), np.inf)
    for limit in (12, 20, 40, 60, 90, 150, 400):
        result = backend.attack(network, x, effort=effort, max_queries=limit)
        assert (result.queries <= limit).all()
        # Through torch, rows of a batch round differently with their number.
        assert (result.distortion <= last * (1 + 1e-6)).all()
        last = result.distortion
    assert np.isfinite(last).all()


def test_queries_without_a_budget(random_network: Any, random_images: Any) -> None:
    result = advcore.minimize_distortion(random_network(), random_images(5))
    assert (result.queries > 2 * result.evaluations + result.forwards).all()
    np.testing.assert_array_equal(result[1:3].queries, result.queries[1:3])
    again = advcore.Result.concatenate([result, result])
    np.testing.assert_array_equal(again.queries, np.tile(result.queries, 2))


def test_bad_budgets_of_queries_are_named(held: Any) -> None:
    network, x, bounds = held
    with pytest.raises(ValueError, match=r"max_queries must be in \[10, \d+\], got 9"):
        advcore.minimize_distortion(network, x, max_queries=9)
    with pytest.raises(ValueError, match="max_queries must be None where levels is given"):
        advcore.minimize_distortion(network, x, max_queries=100, levels=256)
    with pytest.raises(ValueError, match="max_queries must be at least 30 with bounds of each"):
        advcore.minimize_distortion(network, x, max_queries=29, bounds=bounds)


@pytest.mark.parametrize("torch_model", [False, True])
def test_the_best_so_far_comes_back_when_the_model_stops_answering(torch_model: bool) -> None:
    """Each image found so far is a success, by the logits that the model gave in the search."""
    network, x = data.embedded_network(), digits(20)
    calls = [0]
    model: Any = Counting(network, x)
    if torch_model:
        module = network.to_torch()

        def model(images: Any) -> Any:
            calls[0] += 1
            if calls[0] > 60:
                raise RuntimeError("no query is left")
            return module(images)
    else:

        def forward(images: Any) -> Any:
            calls[0] += 1
            if calls[0] > 60:
                raise RuntimeError("no query is left")
            return network.forward(images)

        model.forward, model.backward = forward, network.backward
    with pytest.raises(advcore.ModelError, match="no query is left") as caught:
        advcore.minimize_distortion(model, x, effort="thorough")
    result = caught.value.result
    moved = (result.adversarial != x).any(axis=1)
    in_work = result.status == Status.interrupted
    assert (moved & in_work).any()
    np.testing.assert_array_equal(result.success, moved)
    label, now = network.forward(x).argmax(axis=1), network.forward(result.adversarial)
    np.testing.assert_array_equal(now.argmax(axis=1) != label, result.success)
    np.testing.assert_array_equal(result.prediction[moved], now.argmax(axis=1)[moved])
    np.testing.assert_allclose(
        result.distortion[moved], np.linalg.norm(result.adversarial - x, axis=1)[moved], rtol=1e-5
    )
    assert calls[0] == 61  # it was not asked again


def test_a_model_that_fails_in_the_verification_loses_nothing() -> None:
    network, x = data.embedded_network(), digits()
    model, fail = Counting(network, x), [False]

    def forward(images: Any) -> Any:
        if fail[0]:
            raise RuntimeError("no query is left")
        return network.forward(images)

    def after_the_search(state: advcore.Progress) -> None:
        fail[0] = state.finished == state.total

    model.forward, model.backward = forward, network.backward
    with pytest.raises(advcore.ModelError, match="no query is left") as caught:
        advcore.minimize_distortion(model, x, callback=after_the_search)
    assert caught.value.result.success.all()
    assert (caught.value.result.status != Status.interrupted).all()
