"""What a success promises, and what the last look along the line finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Layer, Network, Status
from advcore.solve import segment


def drifting(inputs: int, classes: int, seed: int = 0) -> Network:
    """An affine network whose weights have a mean: sums are long, differences of logits small."""
    random = np.random.default_rng(seed)
    weight = 0.05 + random.uniform(-0.018, 0.018, (classes, inputs))
    return Network([Layer(weight.astype(np.float32), random.uniform(-0.02, 0.02, classes))])


def other_orders(network: Network, x: Any) -> list[Any]:
    """Logits (N, K) of images (N, n), summed in several orders in float32, and in float64."""
    ((weight, bias),) = [(layer.weight, layer.bias) for layer in network.layers]
    one = np.stack([weight @ row for row in x]) + bias
    halves = x[:, ::2] @ weight[:, ::2].T + x[:, 1::2] @ weight[:, 1::2].T + bias
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    return [x @ weight.T + bias, one, halves, network.forward_reordered(x), exact]


def batches(module: Any, x: Any) -> list[Any]:
    """Logits (N, K) of a module in batches of several sizes."""
    import torch

    with torch.no_grad():
        return [
            torch.cat([module(part) for part in torch.from_numpy(x).split(size)]).numpy()
            for size in (1, 7, 32, len(x))
        ]


def false_successes(all_logits: list[Any], result: Any, labels: Any) -> int:
    """Number of successes to which some of the logits give the label."""
    wrong = np.zeros(len(labels), bool)
    for logits in all_logits:
        wrong |= logits.argmax(axis=1) == labels
    return int((wrong & result.success).sum())


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("form", ["network", "module", "torch", "NumPy"])
@pytest.mark.parametrize("kind", ["each image", "wide", "unbounded"])
def test_no_order_of_the_sums_refutes_a_success(form: str, kind: str, classes: int) -> None:
    """Bounds that say nothing of the images' size: rounding is measured at the results."""
    network = drifting(1024, classes)
    random = np.random.default_rng(1)
    x = (random.random((150, 1024)) * (60_000 if kind == "wide" else 255)).astype(np.float32)
    labels = network.forward(x).argmax(axis=1)
    bounds: Any = {
        "each image": (np.maximum(x - 16, 0), np.minimum(x + 16, 255)),
        "wide": (0, 65535),
        "unbounded": (-np.inf, np.inf),
    }[kind]
    model: Any = network
    if form in ("module", "torch"):
        pytest.importorskip("torch")
        module = network.to_torch()
        model = module if form == "module" else lambda images: 1 * module(images)
    elif form == "NumPy":
        model = AsNumpy(network)
    result = advcore.minimize_distortion(
        model, x, labels=labels, bounds=bounds, confidence=0, effort="fast"
    )
    assert result.success.mean() > 0.8
    seen = [network.forward(result.adversarial)]
    if form == "network":
        seen += other_orders(network, result.adversarial)
    elif form != "NumPy":
        seen = batches(module, result.adversarial)
    assert false_successes(seen, result, labels) == 0


def test_rounding_at_a_result_does_not_depend_on_the_others() -> None:
    network = drifting(1024, 10)
    x = (np.random.default_rng(1).random((40, 1024)) * 255).astype(np.float32)
    low, high = np.maximum(x - 16, 0), np.minimum(x + 16, 255)
    whole = advcore.minimize_distortion(network, x, bounds=(low, high), effort="fast")
    part = advcore.minimize_distortion(
        network, x[7:12], bounds=(low[7:12], high[7:12]), effort="fast"
    )
    np.testing.assert_array_equal(part.adversarial, whole.adversarial[7:12])
    np.testing.assert_array_equal(part.success, whole.success[7:12])


@pytest.mark.parametrize("levels", [256, 65536])
def test_rounding_makes_no_grid_point_a_success(levels: int) -> None:
    """The repair asks for the margin that the verification needs, also where bounds are narrow."""
    network = drifting(256, 5)
    x = np.random.default_rng(1).integers(0, levels, (300, 256)).astype(np.float32)
    labels = network.forward(x).argmax(axis=1)
    result = advcore.minimize_distortion(
        network, x, bounds=(0, levels - 1), levels=levels, effort="fast"
    )
    assert result.success.mean() > 0.9
    assert (result.adversarial == np.rint(result.adversarial)).all()
    assert false_successes(other_orders(network, result.adversarial), result, labels) == 0


class AsNumpy:
    """A network as a NumPy model."""

    def __init__(self, network: Network) -> None:
        self.forward, self.backward = network.forward, network.backward


class Clipping:
    """A NumPy model that clips its input where it is, as ``np.clip(x, ..., out=x)`` does."""

    def __init__(self, network: Network) -> None:
        self.network, self.backward = network, network.backward

    def forward(self, x: Any) -> Any:
        np.maximum(x, np.float32(0.2), out=x)
        return self.network.forward(x)


def test_a_numpy_model_may_write_to_its_input(random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="tanh"), random_images(30)
    before = x.copy()
    result = advcore.minimize_distortion(Clipping(network), x)
    np.testing.assert_array_equal(x, before)
    assert result.success.all()
    r = np.linalg.norm(result.adversarial - before, axis=1)
    np.testing.assert_allclose(result.distortion, r, rtol=1e-5)
    seen = network.forward(np.maximum(result.adversarial, np.float32(0.2)))
    label = network.forward(np.maximum(before, np.float32(0.2))).argmax(axis=1)
    assert (seen.argmax(axis=1) != label).all()


@pytest.mark.parametrize("levels", [None, 256])
@pytest.mark.parametrize("forwards", [0, 60])
def test_a_torch_model_cannot_change_what_was_verified(
    forwards: int, levels: int | None, random_network: Any, random_images: Any
) -> None:
    """It writes to forwards without a gradient, where values are large or after some calls."""
    torch = pytest.importorskip("torch")
    network = random_network(activation="tanh")
    module, calls = network.to_torch(), [0]

    class Writing(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            calls[0] += 1
            logits = module(x * 1.0)
            if not x.requires_grad and calls[0] > forwards:
                seen = x.detach().numpy()
                if forwards:
                    seen *= 0.5
                else:
                    seen[seen > 0.999] = 0
            return logits

    x = np.clip(random_images(50), 0, np.float32(0.99))
    if levels:
        x = np.rint(x * 255).astype(np.float32) / np.float32(255)
    before = x.copy()
    result = advcore.minimize_distortion(Writing().eval(), x, levels=levels)
    np.testing.assert_array_equal(x, before)
    label = network.forward(x).argmax(axis=1)
    assert result.success.mean() > 0.9
    found = result.success
    assert (network.forward(result.adversarial[found]).argmax(axis=1) != label[found]).all()
    np.testing.assert_array_equal(result.adversarial[~found], x[~found])


@pytest.mark.parametrize("form", ["network", "torch"])
def test_subnormal_bounds_are_kept(form: str, random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="tanh"), random_images(30)
    x[:, 0], x[:, 1] = 1e-41, 3e-40
    low, high = np.zeros(20, np.float32), np.ones(20, np.float32)
    low[:2], high[:2] = (1e-41, 2e-40), (1e-41, 4e-40)
    model: Any = network
    if form == "torch":
        pytest.importorskip("torch")
        module = network.to_torch()
        model = lambda images: 1 * module(images)  # noqa: E731
    result = advcore.minimize_distortion(model, x, bounds=(low, high))
    assert result.success.mean() > 0.9
    assert (result.adversarial >= low).all()
    assert (result.adversarial <= high).all()


# --- the last look


class Sine:
    """One logit sin(20 a.x), |a| = 1: it changes its sign wherever a.x is a multiple of pi/20."""

    def __init__(self, n: int) -> None:
        a = np.random.default_rng(0).normal(size=n)
        self.a = (a / np.linalg.norm(a)).astype(np.float32)

    def forward(self, x: Any) -> Any:
        self.s = 20 * (x @ self.a)
        return np.sin(self.s)[:, None]

    def backward(self, dlogits: Any) -> Any:
        return dlogits * 20 * np.cos(self.s)[:, None] * self.a


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
def test_an_oscillating_logit_is_met_at_its_first_zero(effort: str) -> None:
    model = Sine(300)
    x = (0.3 + 0.4 * np.random.default_rng(0).random((120, 300))).astype(np.float32)
    result = advcore.minimize_distortion(model, x, effort=effort)
    phase = (20 * x.astype(np.float64) @ model.a.astype(np.float64)) % np.pi
    exact = np.minimum(phase, np.pi - phase) / 20
    assert result.success.all()
    # At most the distance to the zero on its other side, where the search went there.
    assert (result.distortion < np.pi / 20 * 1.01 + 1e-3).all()
    assert result.distortion.sum() < 1.02 * exact.sum()


@pytest.mark.parametrize("levels", [None, 4096])
@pytest.mark.parametrize("through", ["torch", "NumPy"])
def test_no_nearer_point_on_the_line_where_activations_jump(
    through: str, levels: int | None
) -> None:
    """The 20 largest of 80 units pass. Exact but for the grid, where the line is off it."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    first = torch.from_numpy(random.normal(0, 0.1, (80, 100)).astype(np.float32))
    last = torch.from_numpy(random.normal(0, 0.3, (6, 80)).astype(np.float32))

    def model(images: Any) -> Any:
        h = images @ first.T
        return (h * (h >= h.topk(20, 1)[0][:, -1:])) @ last.T

    x = random.random((60, 100), dtype=np.float32)
    result = advcore.minimize_distortion(
        model if through == "torch" else Differentiated(model), x, levels=levels
    )
    label = model(torch.from_numpy(x)).argmax(1).numpy()
    t = np.linspace(0.01, 0.95, 95, dtype=np.float32)[:, None]
    nearer = 0
    for i in np.flatnonzero(result.success & (result.distortion > 0)):
        line = x[i] + t * (result.adversarial[i] - x[i])
        z = model(torch.from_numpy(line)).numpy()
        own = z[:, label[i]].copy()
        z[:, label[i]] = -np.inf
        nearer += bool((z.max(axis=1) - own >= 2e-4).any())
    assert result.success.mean() > 0.9
    if levels is None:
        assert nearer == 0
        rows = np.flatnonzero(result.success)
        z = model(torch.from_numpy(result.adversarial[rows])).numpy()
        assert (z.argmax(axis=1) != label[rows]).all()


class Differentiated:
    """A torch function as a NumPy model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def forward(self, x: Any) -> Any:
        import torch

        self.x = torch.from_numpy(x).requires_grad_(True)
        with torch.enable_grad():
            self.z = self.model(self.x)
        return self.z.detach().numpy()

    def backward(self, dlogits: Any) -> Any:
        import torch

        return torch.autograd.grad(self.z, self.x, torch.from_numpy(dlogits))[0].numpy()


def test_the_line_by_the_network_in_threads(random_network: Any, random_images: Any) -> None:
    network, clean = random_network(activation="relu"), random_images(101)
    end = random_images(101)[::-1].copy()
    t = np.array([0.0, 0.3, 1.0], np.float32)
    slow = np.stack([network.forward(clean + s * (end - clean)) for s in t], axis=1)
    for threads in (1, 3):
        logits = network.core.along(clean, end, t, threads)
        np.testing.assert_allclose(logits, slow, rtol=1e-5, atol=1e-5)
    assert network.core.along(clean[:0], end[:0], t, 2).shape == (0, 3, network.classes)
    with pytest.raises(ValueError, match="clean and end"):
        network.core.along(clean, end[:5], t, 1)


def test_unevenness() -> None:
    t = segment.COARSE
    straight = np.float32(2) * (t - 1)
    jump = np.array([-1.2, 0.3, -0.2], np.float32)
    missing = np.array([-1.2, np.nan, -0.2], np.float32)
    uneven = segment.unevenness(np.stack([straight, jump, missing]), np.zeros(3, np.float32), t)
    assert uneven[0] < 1e-5
    assert uneven[1] > segment.JUMPY
    assert np.isinf(uneven[2])


# --- grids


def test_clean_images_on_the_grid_that_are_adversarial_cost_nothing(
    random_network: Any, random_images: Any
) -> None:
    network = random_network(activation="relu")
    x = np.rint(random_images(40) * 255).astype(np.float32) / np.float32(255)
    x[30:] *= np.float32(0.9973)  # off the grid
    right = network.forward(x).argmax(axis=1)
    result = advcore.minimize_distortion(
        network, x, labels=(right + (np.arange(40) % 2)) % network.classes, levels=256
    )
    wrong = np.arange(40) % 2 == 1
    on_grid = np.arange(40) < 30
    rows = wrong & on_grid
    assert (result.status[rows] == Status.already_adversarial).all()
    assert result.success[rows].all()
    free = advcore.minimize_distortion(
        network, x, labels=(right + (np.arange(40) % 2)) % network.classes
    )
    np.testing.assert_array_equal(result.evaluations[rows], free.evaluations[rows])
    np.testing.assert_array_equal(result.adversarial[rows], x[rows])
    assert (result.evaluations[~rows & ~on_grid] > free.evaluations[~rows & ~on_grid]).all()
    assert (result.adversarial[wrong & ~on_grid] != x[wrong & ~on_grid]).any(axis=1).all()


# --- two constant logits


@pytest.mark.filterwarnings("error")
def test_a_model_with_two_constant_logits_is_no_sigmoid() -> None:
    class Constant:
        def forward(self, x: Any) -> Any:
            return np.zeros((len(x), 2), np.float32)

        def backward(self, dlogits: Any) -> Any:
            return np.zeros((len(dlogits), 6), np.float32)

    x = np.random.default_rng(0).random((4, 6), dtype=np.float32)
    assert not advcore.minimize_distortion(Constant(), x, effort="fast").success.any()


def test_one_output_in_0_1_is_named() -> None:
    class Probability:
        def forward(self, x: Any) -> Any:
            self.p = 1 / (1 + np.exp(-x.sum(axis=1, keepdims=True)))
            return self.p

        def backward(self, dlogits: Any) -> Any:
            return np.repeat(dlogits * self.p * (1 - self.p), 6, axis=1)

    x = np.random.default_rng(0).random((4, 6), dtype=np.float32)
    with pytest.warns(UserWarning, match="output of a sigmoid"):
        advcore.minimize_distortion(Probability(), x, effort="fast")
