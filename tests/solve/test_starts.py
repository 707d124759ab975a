"""Starting images: never worse, sometimes better, sometimes the only way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import certified
from support.backends import Backend

import advcore
from advcore import Layer, Network, data


@pytest.fixture(scope="module")
def task() -> tuple[Network, Any, Any, Any, Any]:
    """Embedded network, 60 digits, their targets, and a labelled pool of other digits."""
    x, labels = data.embedded_digits()
    targets = (labels[:60] + 1 + np.arange(60) % 9) % 10
    return data.embedded_network(), x[:60], targets, x[100:], labels[100:]


def no_worse(result: Any, plain: Any) -> None:
    assert (result.success | ~plain.success).all()
    found = plain.success
    assert (result.distortion[found] <= plain.distortion[found]).all()


@pytest.mark.backends("exact")  # else a search is not the same beside those from the starts
@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("form", ["one", "several", "pool"])
def test_starts_never_make_a_result_worse(
    backend: Backend, task: Any, form: str, effort: str
) -> None:
    network, x, targets, pool, kinds = task
    plain = backend.attack(network, x, targets, effort=effort)
    first = np.stack([pool[kinds == t][:4] for t in targets])
    starts = {"one": first[:, 0], "several": first, "pool": (pool, kinds)}[form]
    result = backend.attack(network, x, targets, starts=starts, effort=effort)
    no_worse(result, plain)
    assert result.success.all()
    assert (network.forward(result.adversarial).argmax(1) == targets).all()
    assert (result.evaluations > plain.evaluations).any()


def exact_logits(weight: float) -> Any:
    """Two classes, z = weight * x; NaN where the first variable is above 0.8."""

    class Model:
        def forward(self, x: Any) -> Any:
            z = weight * np.asarray(x).reshape(len(x), -1)
            return np.where(z[:, :1] > 0.8 * weight, np.nan, z).astype(np.float32)

        def backward(self, dlogits: Any) -> Any:
            return weight * dlogits

    return Model()


def test_a_start_for_an_image_that_the_model_cannot_see() -> None:
    result = advcore.minimize_distortion(
        exact_logits(1.0), np.array([[0.9, 0.5]], np.float32), [1], starts=[[0.1, 0.9]]
    )
    assert result.success.all()
    assert result.status[0] == advcore.Status.stalled
    x = result.adversarial[0]
    assert x[1] > x[0]
    assert result.distortion[0] <= 0.8 * np.sqrt(2)  # that of the start
    np.testing.assert_allclose((x[0] - 0.9) / (x[1] - 0.5), -2, rtol=1e-5)  # on its line


def test_a_start_just_above_the_confidence_is_kept() -> None:
    """The engine asks for more than the confidence, because of rounding; the result need not."""
    above = np.nextafter(np.float32(0.5), np.float32(1))
    start = np.array([[0.5, above]], np.float32)  # margin 1.8e-4 of logits of 1,500
    result = advcore.minimize_distortion(
        exact_logits(3e3), np.array([[0.7, 0.5]], np.float32), [1], starts=start, max_evaluations=1
    )
    assert result.success.all()
    assert result.margin[0] >= 1e-4


def test_the_clean_image_does_not_stand_in_as_a_result() -> None:
    above = np.nextafter(np.float32(0.5), np.float32(1))
    clean = np.array([[0.5, above]], np.float32)
    result = advcore.minimize_distortion(
        exact_logits(3e3), clean, [1], starts=(np.zeros((1, 2), np.float32), np.array([0]))
    )
    assert result.distortion[0] > 0


@pytest.mark.backends("exact")
def test_untargeted_starts(backend: Backend, task: Any) -> None:
    network, x, _, pool, kinds = task
    label = network.forward(x).argmax(1)
    plain = backend.attack(network, x)
    result = backend.attack(network, x, starts=(pool, kinds))
    no_worse(result, plain)
    assert (network.forward(result.adversarial).argmax(1) != label).all()


def test_starts_outside_the_bounds_are_clipped(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(20)
    starts = 5 * random_images(20, seed=9) - 2
    result = backend.attack(network, x, starts=starts)
    clipped = backend.attack(network, x, starts=np.clip(starts, 0, 1))
    np.testing.assert_array_equal(result.adversarial, clipped.adversarial)
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()


def test_starts_that_are_not_adversarial_change_nothing(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(20)
    plain = backend.attack(network, x)
    result = backend.attack(network, x, starts=np.stack([x, x], axis=1))
    # Through torch, rows of a batch round differently with their number.
    np.testing.assert_allclose(result.adversarial, plain.adversarial, rtol=0, atol=1e-6)
    assert (result.status == plain.status).all()


def test_pool_without_the_wanted_class(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(20)
    targets = (network.forward(x).argmax(1) + 1) % 5
    plain = backend.attack(network, x, targets)
    pool = random_images(10, seed=3)
    empty = (np.zeros((0, 20), np.float32), np.zeros(0, int))
    for starts in ((pool, np.full(10, 7)), empty):
        result = backend.attack(network, x, targets, starts=starts)
        np.testing.assert_array_equal(result.adversarial, plain.adversarial)


def plateau(n: int = 8) -> Network:
    """Class 1 where sum |x - 0.9| <= 0.3: 2 relu(4 - 10 sum |x - 0.9|) >= 2, flat beyond 0.4.

    No gradient leads there, neither from the image nor from a random point nearby.
    """
    eye = np.eye(n, dtype=np.float32)
    first = Layer(np.concatenate([eye, -eye]), np.repeat([-0.9, 0.9], n).astype(np.float32), "relu")
    second = Layer(np.full((1, 2 * n), -10, np.float32), np.array([4], np.float32), "relu")
    last = Layer(np.array([[0], [2]], np.float32), np.array([2, 0], np.float32))
    return Network([first, second, last])


def off_the_ball(v: Any, radius: float) -> Any:
    """v minus its projection on ``sum |v| <= radius``: soft thresholding (Duchi et al. 2008)."""
    u = np.sort(np.abs(v))[::-1]
    excess = (np.cumsum(u) - radius) / np.arange(1, len(v) + 1)
    threshold = excess[np.flatnonzero(u > excess)[-1]]
    return np.sign(v) * np.minimum(np.abs(v), threshold)


@pytest.mark.parametrize("form", ["one", "several", "pool"])
def test_a_start_rescues_what_no_gradient_reaches(backend: Backend, form: str) -> None:
    network, n = plateau(), 8
    x = np.random.default_rng(0).random((6, n), dtype=np.float32) * 0.3
    targets = np.ones(6, int)
    plain = backend.attack(network, x, targets)
    assert not plain.success.any()
    inside = np.full((6, n), 0.9, np.float32)
    starts: Any = {
        "one": inside,
        "several": np.stack([x, inside], axis=1),
        "pool": (np.concatenate([x, inside]), np.repeat([0, 1], 6)),
    }[form]
    result = backend.attack(network, x, targets, starts=starts)
    assert result.success.all()
    assert (network.forward(result.adversarial).argmax(1) == 1).all()
    straight = np.linalg.norm(inside - x, axis=1)
    assert (result.distortion < straight).all()
    exact = [np.linalg.norm(off_the_ball(row - 0.9, 0.3 - 5e-6)) for row in x.astype(np.float64)]
    assert (result.distortion >= np.array(exact) * (1 - 1e-4)).all()
    assert (result.distortion <= np.array(exact) * 1.01).all()  # a corner of more cuts than kept


def test_the_nearest_of_the_pool_are_taken(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    """Only the three nearest count: far ones beside them change nothing."""
    network, x = random_network(activation="relu"), random_images(20)
    targets = (network.forward(x).argmax(1) + 1) % 5
    near = np.clip(x[:, None] + 0.02 * random_images(60, seed=5).reshape(20, 3, 20), 0, 1)
    for row in range(3):
        pool = near[row]
        far = 1 - np.round(x[row])[None].repeat(5, axis=0)
        kinds = np.full(3, targets[row])
        a = backend.attack(network, x[row : row + 1], targets[row : row + 1], starts=(pool, kinds))
        b = backend.attack(
            network,
            x[row : row + 1],
            targets[row : row + 1],
            starts=(np.concatenate([far, pool]), np.full(8, targets[row])),
        )
        np.testing.assert_array_equal(a.adversarial, b.adversarial)
        assert a.evaluations == b.evaluations


def test_starts_survive_any_budget(backend: Backend) -> None:
    x, labels = data.embedded_digits()
    network = data.embedded_network()
    x, targets = x[:20], data.random_targets(labels, classes=10, seed=0)[:20]
    found = backend.attack(network, x, targets)
    again = backend.attack(network, x, targets, starts=found.adversarial, max_evaluations=1)
    assert again.success.all()
    assert (again.distortion <= found.distortion).all()


def on_the_way(network: Network, x: Any, targets: Any, far: Any) -> Any:
    """The first point from x to ``far``, of the target's class, where the target leads for good."""
    near, leads = np.zeros((len(x), 1)), np.ones((len(x), 1))
    for _ in range(30):
        middle = (near + leads) / 2
        z = network.forward((x + middle * (far - x)).astype(np.float32))
        own = np.take_along_axis(z, targets[:, None], axis=1)
        np.put_along_axis(z, targets[:, None], -np.inf, axis=1)
        passed = own - z.max(axis=1, keepdims=True) > 1e-2
        near, leads = np.where(passed, near, middle), np.where(passed, middle, leads)
    return (x + leads * (far - x)).astype(np.float32)


@pytest.mark.parametrize("budget", [1, 4, 15, None])
@pytest.mark.parametrize("model", ["embedded", "relu"])
def test_no_result_is_worse_than_its_start(
    backend: Backend, task: Any, model: str, budget: int | None
) -> None:
    """Starts by a line search toward another digit, and another run's results."""
    if model == "embedded":
        network, x, targets, pool, kinds = task
        far = np.stack([pool[kinds == t][0] for t in targets])
    else:
        _, network, x, targets, *_ = certified.load(certified.SMALL)
        label = network.forward(x).argmax(axis=1)
        far = np.stack([x[label == t][0] for t in targets])
    line = on_the_way(network, x, targets, far)
    rival = advcore.minimize_distortion(network, x, targets, effort="thorough").adversarial
    for start in (line, rival):
        result = backend.attack(
            network, x, targets, starts=start, max_evaluations=budget, effort="fast"
        )
        assert result.success.all()
        given = np.linalg.norm(start.astype(np.float64) - x, axis=1)
        assert (result.distortion <= given * (1 + 2e-6)).all()  # a verified result may be pushed
        if budget is None:
            assert (result.distortion < 0.9 * given).any() == (start is line)
