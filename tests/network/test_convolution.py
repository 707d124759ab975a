"""Native convolutions: values and gradients against torch in float64, smoothing, lowering, runs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.network import Convolution, Layer, Network, Normalize, Unsupported
from advcore.reference.oracles import NumpyNetwork

torch = pytest.importorskip("torch")
nn = torch.nn
from advcore.oracles import TorchOracle  # noqa: E402

Shape = tuple[int, int, int]


def seeded(build: Callable[[], Any]) -> Any:
    """A module in eval mode with weights, and statistics of its batch norms, of seed 0."""
    torch.manual_seed(0)
    module = build()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0.0, 0.3)
            part.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.0, 0.3)
    return module.eval().requires_grad_(False)


def steep(build: Callable[[], Any]) -> Any:
    """The same with larger weights, so that random images are of several classes."""
    module = seeded(build)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            part.weight.mul_(3)
            if part.bias is not None:
                part.bias.sub_(part.weight.flatten(1).sum(1) / 4)
    return module


def small(act: Callable[[], Any] = nn.ReLU) -> Any:
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 3), act(), nn.MaxPool2d(2), nn.Conv2d(5, 18, 2, padding=1), act()),
        *(nn.Flatten(), nn.Linear(18 * 16, 7), act(), nn.Linear(7, 4)),
    )


def normalised(act: Callable[[], Any] = nn.LeakyReLU) -> Any:
    """Normalisation before padding, uneven strides, batch norm before and after the activation."""
    return nn.Sequential(
        Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)),
        *(nn.Conv2d(3, 6, (3, 2), (2, 1), (1, 2), bias=False), nn.BatchNorm2d(6), act()),
        *(nn.BatchNorm2d(6), nn.Conv2d(6, 33, 3, padding="same"), act(), nn.AvgPool2d((2, 3))),
        *(nn.Dropout2d(), nn.Flatten(), nn.Linear(33 * 2 * 3, 5)),
    )


def all_convolutions(act: Callable[[], Any] = nn.Tanh) -> Any:
    """Logits from a convolution and the mean over the whole image."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Unflatten(1, (2, 6, 7))),
        *(nn.Conv2d(2, 50, 3), act(), nn.MaxPool2d((2, 2)), nn.Conv2d(50, 6, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def single_logit(act: Callable[[], Any] = nn.Sigmoid) -> Any:
    return nn.Sequential(nn.Conv2d(1, 3, 4), act(), nn.Flatten(), nn.Linear(3, 1))


CASES: dict[str, tuple[Callable[..., Any], Shape]] = {
    "small": (small, (1, 8, 8)),
    "normalised": (normalised, (3, 9, 7)),
    "all_convolutions": (all_convolutions, (2, 6, 7)),
    "single_logit": (single_logit, (1, 4, 4)),
}


def images(shape: Shape, rows: int = 6) -> Any:
    return np.random.default_rng(1).random((rows, *shape), dtype=np.float32)


def in_torch(module: Any, x: Any, seed: Any) -> tuple[Any, Any]:
    """Logits and gradient in float64, with a single logit z as (0, z)."""
    rows = torch.from_numpy(x).double().requires_grad_(True)
    z = copy.deepcopy(module).double()(rows)
    if z.shape[1] == 1:
        z = torch.cat([torch.zeros_like(z), z], 1)
    (gradient,) = torch.autograd.grad(z, rows, torch.from_numpy(seed).double())
    return z.detach().numpy(), gradient.numpy().reshape(len(x), -1)


@pytest.mark.parametrize("act", [nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ReLU])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_torch(name: str, act: Any) -> None:
    build, shape = CASES[name]
    module, x = seeded(lambda: build(act)), images(shape)
    network = Network.from_torch(module, shape)
    assert network.convolutional
    seed = np.random.default_rng(2).standard_normal((len(x), network.classes)).astype(np.float32)
    logits, gradient = in_torch(module, x, seed)
    np.testing.assert_allclose(network.forward(x), logits, rtol=0, atol=2e-6)
    np.testing.assert_allclose(
        network.backward(seed), gradient, rtol=0, atol=3e-6 * np.abs(gradient).max()
    )


@pytest.mark.parametrize("name", CASES)
def test_the_twin_in_numpy_and_the_way_back_to_torch(name: str) -> None:
    build, shape = CASES[name]
    network = Network.from_torch(seeded(build), shape)
    x = images(shape)
    logits = network.forward(x)
    seed = np.random.default_rng(2).standard_normal(logits.shape)
    gradient = network.backward(seed)
    twin = NumpyNetwork(network)
    for row in range(len(x)):
        np.testing.assert_allclose(
            twin.forward(x[row].ravel().astype(float)), logits[row], atol=2e-6
        )
        np.testing.assert_allclose(
            twin.backward(seed[row]), gradient[row], atol=3e-6 * np.abs(gradient).max()
        )
    again = network.to_torch()
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.from_numpy(x)).numpy(), logits, atol=2e-6)
    np.testing.assert_allclose(Network.from_torch(again, shape).forward(x), logits, atol=2e-6)
    noise = np.abs(network.forward_reordered(x.reshape(len(x), -1)) - logits).max()
    assert noise < 2e-6


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("name", CASES)
def test_smoothed_forms_are_those_of_the_torch_oracle(name: str, act: Any) -> None:
    build, shape = CASES[name]
    module, x = seeded(lambda: build(act)), images(shape)
    network, oracle = Network.from_torch(module, shape), TorchOracle(module, shape)
    assert network.kind == oracle.kind
    flat = x.reshape(len(x), -1)
    slots, zeros = np.arange(len(x), dtype=np.int32), np.zeros(len(x), np.float32)
    oracle.forward(flat, zeros, slots, np.ones(len(x), np.bool_), grad=False)
    scales = np.zeros((len(x), network.core.scales), np.float32)
    network.core.forward(flat, None, scales, True)
    recorded = oracle._scales.table[: len(x)].numpy()
    for value in recorded.ravel():  # ours has also those of layers without a smoothed form
        assert np.isclose(scales, value, rtol=1e-4).any()
    seed = np.random.default_rng(2).standard_normal((len(x), network.classes)).astype(np.float32)
    for k in (0.8, 0.1):
        ks = np.full(len(x), k, np.float32)
        logits = oracle.forward(flat, ks, slots)
        gradient = oracle.backward(seed)
        np.testing.assert_allclose(network.core.forward(flat, ks, scales, False), logits, atol=3e-6)
        np.testing.assert_allclose(
            network.core.backward(seed), gradient, atol=2e-5 * np.abs(gradient).max()
        )


def test_of_equal_values_the_first_is_the_largest() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten()))
    x = np.full((1, 1, 2, 2), 0.5, np.float32)
    network = Network.from_torch(module, (1, 2, 2))
    seed = np.array([[1.0, -2.0]], np.float32)
    np.testing.assert_allclose(network.forward(x), in_torch(module, x, seed)[0], atol=1e-6)
    gradient = network.backward(seed)
    np.testing.assert_allclose(gradient, in_torch(module, x, seed)[1], atol=1e-6)
    assert np.count_nonzero(gradient) == 1


def test_nan_reaches_the_logits() -> None:
    build, shape = CASES["small"]
    network = Network.from_torch(seeded(build), shape)
    x = images(shape)
    clean = network.forward(x)
    x[2, 0, 3, 3] = np.nan
    logits = network.forward(x)
    assert np.isnan(logits[2]).any()
    np.testing.assert_array_equal(np.delete(logits, 2, 0), np.delete(clean, 2, 0))


def test_files_pickles_and_text(tmp_path: Path) -> None:
    build, shape = CASES["normalised"]
    network = Network.from_torch(seeded(build), shape)
    network.save(tmp_path / "net.safetensors")
    x = images(shape)
    loaded = Network.load(tmp_path / "net.safetensors")
    for again in (loaded, pickle.loads(pickle.dumps(network))):
        np.testing.assert_array_equal(again.forward(x), network.forward(x))
    assert repr(network) == (
        "Network(189 -> 6x5x10 leaky_relu -> 33x2x3 leaky_relu mean -> 5 identity)"
    )
    assert loaded.kind == "convolutional"


def reshaped() -> list[Any]:
    return [nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Unflatten(1, (1, 12, 12))]


REFUSED: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "groups": (lambda: [nn.Conv2d(2, 4, 3, groups=2)], "one group"),
    "dilation": (lambda: [nn.Conv2d(2, 4, 2, dilation=2)], "no dilation"),
    "reflect": (
        lambda: [nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")],
        "reflection_pad2d",
    ),
    "even same": (lambda: [nn.Conv2d(2, 4, 2, padding="same")], "even kernel"),
    "too large": (lambda: [nn.Conv2d(2, 4, 9)], "the model raised RuntimeError"),
    "channels": (lambda: [nn.Conv2d(3, 4, 2)], "the model raised RuntimeError"),
    "ceil": (lambda: [nn.Conv2d(2, 4, 2), nn.AvgPool2d(3, ceil_mode=True)], "ceil_mode"),
    "uncounted": (
        lambda: [nn.Conv2d(2, 4, 2), nn.AvgPool2d(3, padding=1, count_include_pad=False)],
        "does not count",
    ),
    "uneven": (lambda: [nn.Conv2d(2, 4, 2), nn.AdaptiveAvgPool2d(2)], "differ in size"),
    "after linear": (
        lambda: [nn.Flatten(), nn.Linear(72, 4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2)],
        "after a Linear",
    ),
    "reshaped": (lambda: [*reshaped(), nn.MaxPool2d(2), nn.Flatten()], "reshaped from"),
    "reshaped, convolved": (lambda: [*reshaped(), nn.Conv2d(1, 3, 12), nn.Flatten()], "reshaped"),
    "many positions": (lambda: [nn.Conv2d(2, 4, 2), nn.Flatten()], "several positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_native_form_is_named(name: str) -> None:
    build, why = REFUSED[name]
    module = seeded(lambda: nn.Sequential(*build()))
    with pytest.raises(Unsupported, match=why):
        Network.from_torch(module, (2, 6, 6))


def test_metadata_named_as_ours_and_infinite_values(tmp_path: Path) -> None:
    dense = Network([Layer(np.ones((2, 3), np.float32), np.zeros(2, np.float32))])
    dense.save(tmp_path / "dense.safetensors", {"convolutions": "none"})
    assert Network.load(tmp_path / "dense.safetensors").inputs == 3
    module = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2), nn.Flatten()))
    twin = NumpyNetwork(Network.from_torch(module, (1, 2, 2)))
    x = np.array([0.5, 0.25, -np.inf, 0.0])
    with np.errstate(invalid="ignore"):
        assert not np.isnan(twin.forward(x)).any()


def test_bad_layers_are_named() -> None:
    weight, bias = np.zeros((4, 1, 3, 3), np.float32), np.zeros(4, np.float32)
    conv = Convolution(weight, bias, (1, 5, 5))
    for changes, why in (
        ({"shape": (2, 5, 5)}, "1 channels"),
        ({"shape": (1, 2, 2)}, "hold the kernel"),
        ({"stride": (0, 1)}, "stride must be 2 integers >= 1"),
        ({"padding": (1.5, 1)}, "padding must be 2 integers >= 0"),
        ({"pooling": "median"}, "pooling must be one of"),
        ({"window": (2, 2)}, r"window must be \(1, 1\)"),
        ({"pooling": "max", "window": (4, 4)}, "hold the kernel and the window"),
        ({"padding_value": np.zeros(3, np.float32)}, "padding_value must have 1"),
    ):
        with pytest.raises(ValueError, match=why):
            Convolution(**{"weight": weight, "bias": bias, "shape": (1, 5, 5), **changes})
    with pytest.raises(ValueError, match="must follow a convolution"):
        Network([Layer(np.zeros((25, 25), np.float32), np.zeros(25, np.float32)), conv])
    with pytest.raises(ValueError, match=r"layers\[1\] must take 36 values"):
        Network([conv, Layer(np.zeros((3, 4), np.float32), np.zeros(3, np.float32))])
    with pytest.raises(ValueError, match="one position"):
        Network([conv])


def test_a_run_is_native_and_independent_of_the_others() -> None:
    build, shape = CASES["small"]
    module, x = steep(build), images(shape, 24)
    labels = module(torch.from_numpy(x)).argmax(1).numpy()
    targets = (labels + 1) % 4
    result = advcore.minimize_distortion(module, x, targets, threads=2)
    assert result.engine["path"] == "native"
    assert result.success.all()
    found = module(torch.from_numpy(result.adversarial)).argmax(1).numpy()
    np.testing.assert_array_equal(found, targets)
    for rows, threads, slots in ((slice(3, 4), 1, None), (slice(None, None, -1), 1, 5)):
        again = advcore.minimize_distortion(
            module, x[rows], targets[rows], threads=threads, batch_size=slots
        )
        np.testing.assert_array_equal(again.adversarial, result.adversarial[rows])
        np.testing.assert_array_equal(again.evaluations, result.evaluations[rows])


def test_native_and_torch_find_the_same() -> None:
    build, shape = CASES["normalised"]
    module, x = steep(build), images(shape, 40)
    targets = (module(torch.from_numpy(x)).argmax(1).numpy() + 2) % 5
    native = advcore.minimize_distortion(module, x, targets)
    by_torch = advcore.minimize_distortion(lambda rows: 1 * module(rows), x, targets)
    assert native.engine["path"] == "native"
    assert by_torch.engine["path"] == "torch"
    assert native.success.all()
    assert by_torch.success.all()
    close = np.isclose(native.distortion, by_torch.distortion, rtol=2e-3)
    assert close.mean() > 0.9
    assert native.distortion.mean() == pytest.approx(by_torch.distortion.mean(), rel=5e-3)
