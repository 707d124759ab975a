"""The reference: exact answers on affine classifiers, gradients, bracket, and its oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

optimize = pytest.importorskip("scipy.optimize")

from advcore import _core  # noqa: E402
from advcore.network import ACTIVATIONS, Layer, Network  # noqa: E402
from advcore.reference import NumpyNetwork, TorchModel, minimize_distortion  # noqa: E402
from advcore.reference.scipy_loop import Bracket, Options, Problem  # noqa: E402

FREE = (-1e3, 1e3)


def affine(classes: int = 2, n: int = 12, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, n)).astype(np.float32)
    return Network([Layer(weight, rng.standard_normal(classes).astype(np.float32))])


def some_images(rows: int = 4, n: int = 12, seed: int = 1) -> Any:
    return np.random.default_rng(seed).random((rows, n), dtype=np.float32)


def logits(network: Network, x: Any) -> Any:
    """In float64."""
    layer = network.layers[0]
    return x.astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias


def exact_two_classes(network: Network, x: Any, lo: float, hi: float) -> Any:
    """Minimum ||r|| that makes an image change sides: r = clip(lam * a) with a.r = -margin."""
    layer, norms = network.layers[0], []
    for image in x.astype(np.float64):
        z = logits(network, image[None])[0]
        target = int(np.argmin(z))
        a = (layer.weight[target] - layer.weight[1 - target]).astype(np.float64)
        deficit = z[1 - target] - z[target]

        def r(lam: float, image: Any = image, a: Any = a) -> Any:
            return np.clip(image + lam * a, lo, hi) - image

        lam = optimize.brentq(lambda lam: a @ r(lam) - deficit, 0, 1e3, xtol=1e-14)  # noqa: B023
        norms.append(np.linalg.norm(r(lam)))
    return np.array(norms)


@pytest.mark.parametrize("penalty", ["l2", "l2_unsquared"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("warm_start", [True, False])
@pytest.mark.parametrize("targeted", [True, False])
def test_two_classes_without_active_bounds(
    penalty: str, loss: str, warm_start: bool, targeted: bool
) -> None:
    network, x = affine(), some_images()
    z = logits(network, x)
    result = minimize_distortion(
        network, x, z.argmin(1) if targeted else None,
        penalty=penalty, loss=loss, warm_start=warm_start, bounds=FREE,
    )  # fmt: skip
    layer = network.layers[0]
    exact = np.abs(z[:, 1] - z[:, 0]) / np.linalg.norm(layer.weight[1] - layer.weight[0])
    assert result.success.all()
    np.testing.assert_allclose(result.distortion, exact, rtol=2e-4)
    assert (result.distortion >= exact * (1 - 1e-6)).all()
    np.testing.assert_array_equal(result.prediction, z.argmin(1))
    np.testing.assert_array_equal(result.target, z.argmin(1) if targeted else -np.ones(4, int))
    assert (result.margin >= 0).all()
    np.testing.assert_allclose(result.rms_distortion, result.distortion / np.sqrt(12), rtol=1e-6)
    r = result.adversarial.astype(np.float64) - x
    np.testing.assert_allclose(np.linalg.norm(r, axis=1), result.distortion, rtol=1e-6)


def test_two_classes_with_active_bounds() -> None:
    network, x = affine(n=30), some_images(6, 30)
    exact = exact_two_classes(network, x, 0.0, 1.0)
    free = exact_two_classes(network, x, *FREE)
    assert (exact > 1.001 * free).sum() >= 3  # the bounds matter
    result = minimize_distortion(network, x)
    assert result.success.all()
    np.testing.assert_allclose(result.distortion, exact, rtol=5e-4)
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()


def test_c_of_the_two_norms_is_related_by_twice_the_distortion() -> None:
    """Stationary points agree for c_unsquared = 2 c ||r||."""
    network, x = affine(), some_images()
    squared = minimize_distortion(network, x, bounds=FREE)
    unsquared = minimize_distortion(network, x, bounds=FREE, penalty="l2_unsquared")
    np.testing.assert_allclose(unsquared.c, 2 * squared.c * squared.distortion, rtol=2e-2)


def test_c_is_that_of_a_tie() -> None:
    """Two classes at the boundary: 2 c r = p grad with p = 1/2, so c = ||a|| / (4 ||r||)."""
    network, x = affine(), some_images()
    result = minimize_distortion(network, x, bounds=FREE)
    slope = np.linalg.norm(network.layers[0].weight[1] - network.layers[0].weight[0])
    np.testing.assert_allclose(result.c, slope / (4 * result.distortion), rtol=1e-3)


def test_confidence_is_the_margin_required() -> None:
    network, x = affine(), some_images()
    plain = minimize_distortion(network, x, bounds=FREE)
    sure = minimize_distortion(network, x, bounds=FREE, confidence=0.5)
    slope = np.linalg.norm(network.layers[0].weight[1] - network.layers[0].weight[0])
    assert (sure.margin >= 0.5).all()
    np.testing.assert_allclose(sure.distortion - plain.distortion, 0.5 / slope, rtol=1e-2)


def test_ten_classes_stop_near_the_exact_minimum() -> None:
    """Targeted, no bounds: minimum norm on nine half-spaces, solved by SLSQP."""
    network, x = affine(10, 20), some_images(3, 20)
    targets = logits(network, x).argmin(1)
    best = []
    for image, t in zip(x.astype(np.float64), targets, strict=True):
        layer = network.layers[0]
        a = np.delete(layer.weight[t] - layer.weight, t, axis=0).astype(np.float64)
        z = logits(network, image[None])[0]
        b = np.delete(z[t] - z, t)
        found = optimize.minimize(
            lambda r: r @ r, np.zeros(20), jac=lambda r: 2 * r, method="SLSQP",
            constraints={"type": "ineq", "fun": lambda r, a=a, b=b: a @ r + b},
            options={"ftol": 1e-12},
        )  # fmt: skip
        best.append(np.sqrt(found.fun))
    paper = minimize_distortion(network, x, targets, bounds=FREE)
    margin = minimize_distortion(network, x, targets, bounds=FREE, loss="margin")
    assert paper.success.all()
    assert margin.success.all()
    assert (paper.distortion >= np.array(best) * (1 - 1e-5)).all()
    assert (paper.distortion <= np.array(best) * 1.25).all()  # cross-entropy's bias
    np.testing.assert_allclose(margin.distortion, best, rtol=2e-2)  # what 2% of T leaves of it
    assert margin.distortion.mean() < paper.distortion.mean()


def test_penalty_minimiser_is_not_below_the_best_point() -> None:
    result = minimize_distortion(affine(10, 20), some_images(3, 20))
    assert result.penalty_distortion is not None
    assert (result.penalty_distortion >= result.distortion * (1 - 1e-5)).all()
    np.testing.assert_allclose(result.penalty_distortion, result.distortion, rtol=3e-2)


def test_statuses() -> None:
    network, x = affine(3), some_images()
    label = logits(network, x).argmax(1)
    already = minimize_distortion(network, x, label)
    assert already.status.tolist() == [int(_core.Status.already_adversarial.value)] * 4
    assert already.success.all()
    assert already.distortion.tolist() == [0.0] * 4
    np.testing.assert_array_equal(already.adversarial, x)

    zeros = np.zeros((3, 12), np.float32)
    constant = Network([Layer(zeros, np.array([1.0, 0.0, 0.0], np.float32))])
    nothing = minimize_distortion(constant, x[:1], [2], steps=3)
    assert nothing.status.tolist() == [int(_core.Status.not_found.value)]
    assert not nothing.success.any()
    assert nothing.distortion.tolist() == [np.inf]
    assert nothing.margin.tolist() == [-1.0]
    np.testing.assert_array_equal(nothing.adversarial, x[:1])
    assert np.isnan(nothing.c).all()

    fixed = minimize_distortion(network, x[:1], [(label[0] + 1) % 3], bounds=(x[:1], x[:1]))
    assert fixed.status.tolist() == [int(_core.Status.not_found.value)]


def test_one_bad_image_does_not_touch_the_others() -> None:
    class Picky:
        """Not a number where the first pixel is above 0.9."""

        def forward(self, x: Any) -> Any:
            z = np.stack([x.sum(axis=1), np.full(len(x), 8.0)], axis=1).astype(np.float64)
            z[x[:, 0] > 0.9] = np.nan
            return z

        def backward(self, dlogits: Any) -> Any:
            return np.repeat(dlogits[:, :1], 12, axis=1)

    x = np.full((3, 12), 0.5, np.float32)
    x[1, 0] = 0.95
    result = minimize_distortion(Picky(), x, [0, 0, 0], bounds=(0.0, 0.89 + 0.1 * (x > 0.9)))
    names = [_core.Status(int(code)).name for code in result.status]
    assert names == ["converged", "non_finite", "converged"]
    np.testing.assert_allclose(
        result.distortion, [2 / np.sqrt(12), np.inf, 2 / np.sqrt(12)], rtol=1e-3
    )


def test_kind_of_array_and_empty_batch() -> None:
    network = affine()
    empty = minimize_distortion(network, np.zeros((0, 12), np.float32))
    assert len(empty) == 0
    assert empty.adversarial.shape == (0, 12)
    double = minimize_distortion(network, some_images(1).astype(np.float64), steps=4)
    assert double.adversarial.dtype == np.float32
    assert double.engine["path"] == "numpy"


def test_torch_model_finds_the_same_as_numpy() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    layers = [
        Layer(rng.standard_normal((16, 12)).astype(np.float32), np.zeros(16, np.float32), "tanh"),
        Layer(rng.standard_normal((4, 16)).astype(np.float32), np.zeros(4, np.float32)),
    ]
    network, x = Network(layers), some_images(2)
    ours = minimize_distortion(network, x)
    theirs = minimize_distortion(network.to_torch(), torch.tensor(x).view(2, 3, 4))
    assert theirs.engine["path"] == "torch"
    assert isinstance(theirs.adversarial, torch.Tensor)
    assert tuple(theirs.adversarial.shape) == (2, 3, 4)
    assert theirs.success.all()
    np.testing.assert_allclose(theirs.distortion, ours.distortion, rtol=1e-2)
    confirmed = network.to_torch()(theirs.adversarial).argmax(1).numpy()
    np.testing.assert_array_equal(confirmed, theirs.prediction)
    wrapped = minimize_distortion(TorchModel(network.to_torch(), (12,)), x)
    np.testing.assert_allclose(wrapped.distortion, theirs.distortion, rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_network_agrees_with_torch_in_float64(activation: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    sizes, layers = [12, 9, 7, 4], []
    for i in range(3):
        weight = rng.standard_normal((sizes[i + 1], sizes[i])).astype(np.float32)
        bias = rng.standard_normal(sizes[i + 1]).astype(np.float32)
        layers.append(Layer(weight, bias, activation, 0.3))
    network = Network(layers)
    double, single = NumpyNetwork(network), NumpyNetwork(network, np.float32)
    twin = network.to_torch().double()
    for slope in network.layers:
        assert slope.slope == 0.3
    for _ in range(3):
        x, seed = rng.standard_normal(12), rng.standard_normal(4)
        leaf = torch.tensor(x[None], requires_grad=True)
        z = twin(leaf)
        (gradient,) = torch.autograd.grad(z, leaf, torch.tensor(seed[None]))
        np.testing.assert_allclose(double.forward(x), z[0].detach(), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(double.backward(seed), gradient[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(single.forward(x), z[0].detach(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(single.backward(seed), gradient[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("penalty", ["l2", "l2_unsquared"])
@pytest.mark.parametrize("target", [2, -1])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_gradient_of_the_objective(penalty: str, target: int, temperature: float) -> None:
    network, x = affine(4), some_images(2).astype(np.float64)
    options = Options(penalty, "margin", 1e-4, 1e2, 20, True, 10, 0.3, 100, 20, 1e-9, 1e-9, 0)
    box = (np.zeros(12), np.ones(12))
    problem = Problem(NumpyNetwork(network), x[0], box, target, 1, options)
    problem.temperature = temperature
    _, gradient = problem.objective(x[1], 0.7)
    for i in range(12):
        step = np.zeros(12)
        step[i] = 1e-6
        ahead, behind = (problem.objective(x[1] + s * step, 0.7)[0] for s in (1, -1))
        assert (ahead - behind) / 2e-6 == pytest.approx(gradient[i], rel=1e-5, abs=1e-7)
    assert problem.evaluations == 25


def test_objective_is_the_papers_cross_entropy() -> None:
    network, x = affine(4), some_images(2).astype(np.float64)
    z = logits(network, x)[1]
    log_p = z - np.log(np.exp(z).sum())
    penalty = float(((x[1] - x[0]) ** 2).sum())
    box = (np.zeros(12), np.ones(12))
    options = Options("l2", "cross_entropy", 1e-4, 1e2, 20, True, 10, 0.0, 100, 20, 1e-9, 1e-9, 0)
    targeted = Problem(NumpyNetwork(network), x[0], box, 2, 0, options)
    assert targeted.objective(x[1], 0.7)[0] == pytest.approx(0.7 * penalty - log_p[2])
    untargeted = Problem(NumpyNetwork(network), x[0], box, -1, 0, options)
    expected = 0.7 * penalty - np.log(1 - np.exp(log_p[0]))
    assert untargeted.objective(x[1], 0.7)[0] == pytest.approx(expected)


@pytest.mark.parametrize("wanted", [3e-7, 2e-4, 0.05, 1.0, 60.0, 5e4])
def test_bracket_finds_the_largest_c_that_succeeds(wanted: float) -> None:
    bracket, solves = Bracket(1e-4, 1e2, 20), 0
    while not bracket.done:
        c = bracket.propose()
        bracket.update(c, c <= wanted)
        solves += 1
        assert solves < 60
    assert np.exp(bracket.low) <= wanted * (1 + 1e-9)
    assert np.exp(bracket.low) == pytest.approx(wanted, rel=3e-5)
    if 1e-3 < wanted < 10:
        assert solves == 20


@pytest.mark.parametrize("success", [True, False])
def test_bracket_gives_up_when_every_c_ends_alike(success: bool) -> None:
    bracket, solves = Bracket(1e-4, 1e2, 20), 0
    while not bracket.done:
        bracket.update(bracket.propose(), success)
        solves += 1
        assert solves < 60
    assert bracket.low_confirmed == success
    assert bracket.high_confirmed != success


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"penalty": "linf"}, ValueError, "penalty must be one of .* got 'linf'"),
        ({"loss": "hinge"}, ValueError, "loss must be one of .* got 'hinge'"),
        ({"c_low": 1.0, "c_high": 1.0}, ValueError, "c_low < c_high"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"confidence": -1.0}, ValueError, "confidence must be finite"),
        ({"bounds": (1.0, 0.0)}, ValueError, "lower <= upper"),
        ({"bounds": (0.5, 1.0)}, ValueError, "inside the bounds"),
        ({"targets": [0.0] * 4}, TypeError, "targets must be integers, got float64"),
        ({"targets": [0, 1, 2, 0]}, ValueError, r"targets must be in \[0, 2\), got 0 to 2"),
        ({"labels": [0]}, ValueError, r"labels must have shape \(4,\), got \(1,\)"),
        ({"images": np.zeros((4, 12), int)}, TypeError, "images must be .* got int64"),
        ({"images": np.zeros((4, 11), np.float32)}, ValueError, "must have 12 values"),
        ({"model": 3}, TypeError, "model must be .* got int"),
    ],
)
def test_misuse_is_named(changes: dict[str, Any], error: Any, text: str) -> None:
    arguments: dict[str, Any] = {"model": affine(), "images": some_images(), **changes}
    with pytest.raises(error, match=text):
        minimize_distortion(arguments.pop("model"), arguments.pop("images"), **arguments)


def test_norm_is_the_former_name_of_penalty() -> None:
    layer = Layer(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    x = np.array([[0.75, 0.25]], np.float32)
    with pytest.warns(FutureWarning, match="norm l2_unsquared is penalty") as caught:
        result = minimize_distortion(Network([layer]), x, norm="l2_unsquared")
    assert result.penalty == "l2_unsquared"
    assert [warning.filename for warning in caught] == [__file__]
