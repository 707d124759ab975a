"""Results on a grid of equidistant values: exact values, verified, hardly worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import Backend
from support.marks import needs_data

import advcore
from advcore import Layer, Network, Status, data


def grid(levels: int, low: float = 0.0, high: float = 1.0) -> Any:
    return (low + np.arange(levels) * (high - low) / (levels - 1)).astype(np.float32)


def on_grid(x: Any, levels: int, low: float = 0.0, high: float = 1.0) -> Any:
    values = grid(levels, low, high)
    nearest = (
        np.abs(x[..., None] - values).argmin(axis=-1)
        if levels < 20
        else np.rint((x.astype(np.float64) - low) / (high - low) * (levels - 1)).astype(int)
    )
    return x == values[nearest]


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any, Any]:
    """Images, labels, targets."""
    x, labels = (v[:100] for v in data.embedded_digits())
    return x, labels, (labels + 1 + np.arange(100) % 9) % 10


@pytest.mark.backends("smooths")
@pytest.mark.parametrize("targeted", [True, False])
def test_8_bits_on_the_embedded_network(backend: Backend, digits: Any, targeted: bool) -> None:
    x, labels, targets = digits
    network = data.embedded_network()
    options: Any = {"targets": targets} if targeted else {"labels": labels}
    free = backend.attack(network, x, **options)
    result = backend.attack(network, x, levels=256, **options)
    assert free.success.all()
    assert result.success.all()
    steps = result.adversarial * np.float32(255)
    assert np.abs(steps - np.rint(steps)).max() < 1e-4
    assert on_grid(result.adversarial, 256).all()
    bytes_ = np.rint(steps).astype(np.uint8)  # what a PNG holds is what was verified
    again = (bytes_ / 255).astype(np.float32)
    np.testing.assert_array_equal(again, result.adversarial)
    predicted = network.forward(again).argmax(1)
    assert (predicted == targets if targeted else predicted != labels).all()
    np.testing.assert_array_equal(result.prediction, predicted)
    assert (result.margin >= 1e-4).all()
    moved = free.distortion > 0
    ratio = result.distortion[moved] / free.distortion[moved]
    assert ratio.mean() < 1.005
    assert np.quantile(ratio, 0.95) < 1.02
    assert ratio.max() < 1.1
    r = np.linalg.norm(result.adversarial.astype(np.float64) - x, axis=1)
    np.testing.assert_allclose(result.distortion, r, rtol=1e-6)
    assert (result.evaluations >= free.evaluations).all()


def test_torch_confirms_the_grid_points(digits: Any) -> None:
    torch = pytest.importorskip("torch")
    x, _, targets = digits
    module = data.embedded_network().to_torch()
    result = advcore.minimize_distortion(module, torch.from_numpy(x[:40]), targets[:40], levels=256)
    assert result.engine["path"] == "native"
    assert result.success.all()
    assert on_grid(result.adversarial.numpy(), 256).all()
    with torch.no_grad():
        np.testing.assert_array_equal(module(result.adversarial).argmax(1), targets[:40])


@pytest.mark.parametrize("levels", [2, 3, 4, 16, 1000, 65536])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_any_number_of_levels(
    backend: Backend, levels: int, activation: str, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(sizes=(40, 16, 4), activation=activation), random_images(40, 40)
    free = backend.attack(network, x)
    result = backend.attack(network, x, levels=levels)
    found = result.success
    assert found.sum() >= (30 if levels > 2 else 10)
    assert on_grid(result.adversarial[found], levels).all()
    label = network.forward(x).argmax(1)
    assert (network.forward(result.adversarial[found]).argmax(1) != label[found]).all()
    np.testing.assert_array_equal(result.adversarial[~found], x[~found])
    assert np.isinf(result.distortion[~found]).all()
    assert set(result.status[~found]) <= {int(Status.not_found)}
    assert result.penalty_distortion is None
    paper = backend.attack(network, x, levels=levels, loss="cross_entropy")
    assert paper.penalty_distortion is not None
    assert np.isnan(paper.penalty_distortion[~paper.success]).all()
    np.testing.assert_array_equal(result.prediction[~found], label[~found])
    assert (result.margin[~found] < 1e-4).all()
    if levels >= 1000:
        assert found.all()
        step = 1 / (levels - 1)
        assert (result.distortion <= free.distortion * 1.01 + step * np.sqrt(40)).all()


def test_other_bounds(backend: Backend, random_network: Any, random_images: Any) -> None:
    network, x = random_network(), random_images(30)
    low, high, levels = -0.3, 1.7, 200
    result = backend.attack(network, x, bounds=(low, high), levels=levels)
    assert result.success.all()
    assert on_grid(result.adversarial, levels, low, high).all()
    assert (result.adversarial.astype(np.float64) >= low).all()
    assert (result.adversarial.astype(np.float64) <= high).all()


def test_confidence_holds_on_the_grid(backend: Backend, digits: Any) -> None:
    x, _, targets = digits
    network = data.embedded_network()
    result = backend.attack(network, x[:40], targets[:40], levels=256, confidence=0.5)
    assert result.success.all()
    z = network.forward(result.adversarial)
    rows = np.arange(40)
    own = z[rows, targets[:40]].copy()
    z[rows, targets[:40]] = -np.inf
    assert (own - z.max(1) >= 0.5 - 1e-5).all()
    assert on_grid(result.adversarial, 256).all()


def test_exact_optimum_of_a_small_grid(backend: Backend) -> None:
    """Every point of a 5-level grid in 5 dimensions is tried; the repair must come close."""
    ratios = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        weight = rng.standard_normal((2, 5)).astype(np.float32)
        network = Network([Layer(weight, (-weight.sum(1) / 2).astype(np.float32))])
        values = grid(5)
        points = np.stack(np.meshgrid(*[values] * 5), axis=-1).reshape(-1, 5)
        x = points[rng.integers(len(points))][None]
        label = network.forward(x).argmax(1)
        z = network.forward(points)
        margin = z[:, 1 - label[0]] - z[:, label[0]]
        result = backend.attack(network, x, levels=5)
        r = np.linalg.norm(points - x, axis=1)
        best = r[margin >= 1e-4].min()
        assert result.success.all()
        assert result.distortion[0] >= best * (1 - 1e-6)
        ratios.append(result.distortion[0] / best)
    assert np.median(ratios) == pytest.approx(1, abs=1e-6)
    assert np.mean(ratios) < 1.1


def test_already_adversarial_image_off_the_grid_is_rounded_and_verified(backend: Backend) -> None:
    network = Network([Layer(np.array([[1], [-1]], np.float32), np.array([-0.5, 0.5], np.float32))])
    x = np.array([[0.9], [0.52]], np.float32)
    result = backend.attack(network, x, [0, 0], levels=3)
    assert on_grid(result.adversarial[result.success], 3).all()
    assert result.success[0]
    assert result.adversarial[0, 0] == 1.0
    if result.success[1]:
        assert network.forward(result.adversarial[1:]).argmax() == 0


@pytest.mark.backends("exact")
def test_results_do_not_depend_on_the_batch(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(40)
    whole = backend.attack(network, x, levels=64)

    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(rows=st.lists(st.integers(0, 39), min_size=1, max_size=50), size=st.integers(1, 20))
    def check(rows: list[int], size: int) -> None:
        part = backend.attack(network, x[rows], levels=64, batch_size=size)
        np.testing.assert_array_equal(part.adversarial, whole.adversarial[rows])
        np.testing.assert_array_equal(part.evaluations, whole.evaluations[rows])

    check()


@pytest.mark.parametrize("high", [0.1, 0.3, 0.7])
def test_the_grid_stays_inside_bounds_that_float32_cannot_hold(
    backend: Backend, high: float
) -> None:
    network = data.embedded_network()
    x, labels = data.embedded_digits()
    x = (x[:20] * np.float32(0.999 * high)).clip(0, np.nextafter(np.float32(high), np.float32(0)))
    result = backend.attack(network, x, labels=labels[:20], bounds=(0.0, high), levels=16)
    assert (result.adversarial.astype(np.float64) <= high).all()


def test_levels_need_room_between_the_bounds() -> None:
    with pytest.raises(ValueError, match="lower < upper"):
        advcore.minimize_distortion(
            data.embedded_network(), np.zeros((1, 784), np.float32), bounds=(0, 0), levels=4
        )


@needs_data
def test_changes_smaller_than_half_a_level() -> None:
    """Two ImageNet pictures on SqueezeNet: near the least number of pixels by first order."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    from advcore import oracles
    from advcore.models import pretrained
    from advcore.solve import levels
    from advcore.solve.backends import OracleVerifier
    from advcore.solve.verify import Judge

    pictures, _ = pretrained.imagenet_samples(pretrained.SQUEEZENET_SIDE)
    images = (pictures[[12, 17]] * 255).round().astype(np.float32) / np.float32(255)
    model = pretrained.squeezenet1_0()
    with torch.no_grad():
        targets = model(torch.from_numpy(images)).argsort(1)[:, -2].numpy().astype(np.int32)
    oracle = oracles.TorchOracle(model, images.shape[1:], None, None, survey=False)
    x = images.reshape(2, -1)
    margin, _, gradient = levels._margin(oracle, x, targets, True, np.full(2, 1e-3))
    assert (margin < 0).all()
    gain = -np.cumsum(np.sort(-np.abs(gradient), axis=1), axis=1) / 255
    fewest = (gain < -margin[:, None]).sum(axis=1) + 1
    step = -margin / (gradient**2).sum(axis=1)
    adversarial = np.clip(x + 1.1 * step[:, None] * gradient, 0, 1).astype(np.float32)
    assert np.abs(adversarial - x).mean() < 0.1 / 255
    success = np.ones(2, bool)
    judge = Judge(OracleVerifier(oracle, 2), targets, True, 1e-4, 1e-4)
    grid = levels.Grid(256, 0.0, 1.0)
    evaluations, forwards = levels.move_to_grid(grid, judge, x, adversarial, success)
    assert not forwards.any()
    assert success.all()
    assert (evaluations == levels.ROUNDS).all()
    distortion = np.linalg.norm(adversarial - x, axis=1)
    assert (distortion < 1.3 * np.sqrt(fewest) / 255).all()


class Stops:
    """A network as a NumPy model that raises once, at its forward number ``at``."""

    def __init__(self, network: Network, at: int, error: type[BaseException]) -> None:
        self.network, self.left, self.error = network, at, error
        self.backward = network.backward

    def forward(self, x: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error("stop")
        return self.network.forward(x)


def test_what_a_failed_model_leaves_off_the_grid_is_no_success(
    random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(40)
    with pytest.raises(advcore.ModelError) as caught:
        advcore.minimize_distortion(Stops(network, 40, RuntimeError), x, levels=16)
    result = caught.value.result
    assert not result.success.any()
    assert np.isinf(result.distortion).all()
    assert (result.adversarial != x).any()  # what was found is still there
    with pytest.raises(advcore.ModelError) as caught:
        advcore.minimize_distortion(Stops(network, 40, RuntimeError), x)
    assert caught.value.result.success.any()


def test_ctrl_c_keeps_grid_points_of_what_was_found(
    random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(40)
    with pytest.raises(advcore.Interrupted) as caught:
        advcore.minimize_distortion(
            Stops(network, 60, KeyboardInterrupt), x, levels=16, batch_size=8
        )
    result = caught.value.result
    left = result.status == Status.interrupted
    assert left.any()
    assert (result.success & ~left).sum() >= 4
    found = result.success
    assert on_grid(result.adversarial[found], 16).all()
    label = network.forward(x).argmax(1)
    assert (network.forward(result.adversarial[found]).argmax(1) != label[found]).all()


def test_in_a_hurry_the_first_grid_point_will_do(digits: Any) -> None:
    from advcore.solve import levels
    from advcore.solve.backends import NetworkVerifier
    from advcore.solve.verify import Judge

    x, _, targets = digits
    network = data.embedded_network()
    free = advcore.minimize_distortion(network, x, targets)
    spent, distance = [], []
    for hurry in (False, True):
        adversarial, success = free.adversarial.copy(), free.success.copy()
        judge = Judge(NetworkVerifier(network), targets.astype(np.int32), True, 1e-4, 1e-4)
        grid = levels.Grid(256, 0.0, 1.0)
        evaluations, _ = levels.move_to_grid(
            grid, judge, x, adversarial, success, stop_early=lambda hurry=hurry: hurry
        )
        assert success.all()
        assert on_grid(adversarial, 256).all()
        spent.append(evaluations.sum())
        distance.append(np.linalg.norm(adversarial - x, axis=1))
    assert spent[1] < spent[0] / 2
    assert (distance[1] >= distance[0]).all()


def test_pixels_of_8_bits_in_other_bounds_stay_as_they_are(backend: Backend) -> None:
    x = (data.embedded_digits()[0][:20] - np.float32(0.5)) / np.float32(0.5)
    weight = np.random.default_rng(0).standard_normal((10, 784)).astype(np.float32)
    network = Network([Layer(weight, np.zeros(10, np.float32))])
    wrong = (network.forward(x).argmax(1) + 1) % 10
    result = backend.attack(network, x, labels=wrong, bounds=(-1, 1), levels=256)
    assert (result.status == Status.already_adversarial).all()
    np.testing.assert_array_equal(result.adversarial, x)
    assert result.robust_accuracy(0) == 0


def test_an_image_moved_to_the_grid_is_not_called_already_adversarial(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(40)
    wrong = (network.forward(x).argmax(1) + 1) % 5
    result = backend.attack(network, x, labels=wrong, levels=4)
    assert result.success.sum() > 30
    assert (result.distortion[result.success] > 0).all()
    assert not (result.status == Status.already_adversarial).any()


@pytest.mark.parametrize("levels", [2, 16])
def test_a_start_on_the_grid_is_the_worst_that_comes_back(
    backend: Backend, levels: int, random_network: Any, random_images: Any
) -> None:
    network = random_network(activation="relu")
    x = (np.rint(random_images(200) * (levels - 1)) / (levels - 1)).astype(np.float32)
    first = backend.attack(network, x, levels=levels, effort="thorough")
    again = backend.attack(network, x, levels=levels, starts=first.adversarial)
    found = first.success
    assert found.sum() > 100
    assert again.success[found].all()
    assert (again.distortion[found] <= first.distortion[found]).all()
    assert on_grid(again.adversarial[again.success], levels).all()
