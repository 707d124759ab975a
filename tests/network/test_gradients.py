"""Native layers against torch in float64: logits and input gradients, exact and smoothed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcore import _core
from advcore.network import ACTIVATIONS, Layer, Network
from advcore.network.to_torch import torch_activation

torch = pytest.importorskip("torch")

SHAPES = [(1, 1, 2), (3, 7, 2), (16, 16, 16), (17, 33, 10), (50, 5, 1000), (784, 100, 10)]
SMOOTHED = ["relu", "leaky_relu", "sigmoid", "tanh"]
SLOPE = 0.2


def network(shape: tuple[int, ...], activation: str, depth: int = 2) -> Network:
    """``depth`` hidden layers; pre-activations of order 2, so that both sides of a kink are met."""
    rng = np.random.default_rng(sum(shape))
    inputs, hidden, classes = shape
    sizes = [inputs, *[hidden] * depth, classes]
    layers = []
    for i in range(depth + 1):
        weight = 2 * rng.standard_normal((sizes[i + 1], sizes[i])) / np.sqrt(sizes[i])
        bias = rng.standard_normal(sizes[i + 1])
        name = activation if i < depth else "identity"
        layers.append(Layer(weight.astype(np.float32), bias.astype(np.float32), name, SLOPE))
    return Network(layers)


def activate(h: Any, layer: Layer, d: Any) -> Any:
    """Float64; with d > 0 (B, 1) the smoothed form, as its formula says."""
    functional = torch.nn.functional
    if layer.activation in ("relu", "leaky_relu"):
        slope = layer.slope if layer.activation == "leaky_relu" else 0.0
        safe = d.clamp_min(1e-300)
        spline = torch.where(h <= -d, 0 * h, torch.where(h >= d, h, (h + d) ** 2 / (4 * safe)))
        spline = torch.where(d > 0, spline, functional.relu(h))
        return slope * h + (1 - slope) * spline
    if layer.activation == "sigmoid":
        return torch.sigmoid(h / torch.sqrt(1 + np.pi * d**2 / 8))
    if layer.activation == "tanh":
        return torch.tanh(h / torch.sqrt(1 + np.pi * d**2 / 2))
    return torch_activation(layer)(h)


def exact(net: Network, x: Any, seed: Any, d: Any = None) -> tuple[Any, Any, Any]:
    """Logits, input gradient and pre-activations by float64 autograd; d (B, layers) half-widths."""
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    h, before = leaf, []
    for i, layer in enumerate(net.layers):
        weight, bias = (torch.tensor(v, dtype=torch.float64) for v in (layer.weight, layer.bias))
        z = h @ weight.T + bias
        before.append(z.detach().numpy())
        width = torch.zeros(len(x), 1, dtype=torch.float64)
        if d is not None:
            width = torch.tensor(d[:, i : i + 1], dtype=torch.float64)
        h = activate(z, layer, width)
    (gradient,) = torch.autograd.grad(h, leaf, torch.tensor(seed, dtype=torch.float64))
    return h.detach().numpy(), gradient.numpy(), before


def away_from_kinks(before: Any, kinks: tuple[float, ...] = (0.0,)) -> Any:
    """Rows whose pre-activations are all far enough from a kink to be on the same side twice."""
    rows = np.ones(len(before[0]), bool)
    for z in before[:-1]:
        for kink in kinks:
            rows &= (np.abs(z - kink) > 1e-5).all(axis=1)
    return rows


def close(ours: Any, theirs: Any, tolerance: float = 3e-6) -> None:
    """Relative to the largest entry of all rows, as float32 sums cancel."""
    assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


def rows_of(shape: tuple[int, ...], count: int = 37) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((count, shape[0])).astype(np.float32)
    return x, rng.standard_normal((count, shape[2])).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_and_gradient(activation: str, shape: tuple[int, ...]) -> None:
    net = network(shape, activation)
    x, seed = rows_of(shape)
    logits, gradient, before = exact(net, x, seed)
    keep = away_from_kinks(before)
    assert keep.sum() > 30
    close(net.forward(x), logits)
    close(net.backward(seed)[keep], gradient[keep])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 9, 24, 25, 100])
def test_any_number_of_rows(activation: str, count: int) -> None:
    """A row's result does not depend on how many come with it, bit for bit."""
    shape = (17, 33, 10)
    net = network(shape, activation)
    x, seed = rows_of(shape, 100)
    logits, gradient = net.forward(x), net.backward(seed)
    np.testing.assert_array_equal(net.forward(x[:count]), logits[:count])
    np.testing.assert_array_equal(net.backward(seed[:count]), gradient[:count])


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_and_derivative_over_all_magnitudes(activation: str, scale: float) -> None:
    """One unit, so that nothing is averaged out; to 1e-6 relative, or 1e-7 of the scale."""
    one = np.ones((1, 1), np.float32)
    pair = np.array([[1.0], [0.0]], np.float32)
    net = Network(
        [
            Layer(one, np.zeros(1, np.float32), activation, SLOPE),
            Layer(pair, np.zeros(2, np.float32)),
        ]
    )
    x = (scale * np.linspace(-1, 1, 400, dtype=np.float32))[:, None]
    seed = np.tile(np.array([1, 0], np.float32), (400, 1))
    logits, gradient, _ = exact(net, x, seed)
    floor = 1e-7 * min(1.0, scale) + 1e-30
    ours = net.forward(x)[:, 0]
    np.testing.assert_allclose(ours, logits[:, 0], rtol=1e-6, atol=floor)
    np.testing.assert_allclose(net.backward(seed), gradient, rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("k", [0.05, 0.8, 4.0])
@pytest.mark.parametrize("shape", [(3, 7, 2), (17, 33, 10), (784, 100, 10)])
@pytest.mark.parametrize("activation", SMOOTHED)
def test_smoothed_form(activation: str, shape: tuple[int, ...], k: float) -> None:
    net = network(shape, activation)
    x, seed = rows_of(shape)
    ks = np.where(np.arange(len(x)) % 3 == 0, 0, k).astype(np.float32)  # rows of several stages
    rng = np.random.default_rng(7)
    scales = rng.uniform(0.2, 2, (len(x), len(net.layers))).astype(np.float32)
    d = (ks[:, None] * scales).astype(np.float32).astype(np.float64)
    logits, gradient, before = exact(net, x, seed, d)
    keep = away_from_kinks(before)
    close(net.core.forward(x, ks, scales), logits)
    # inside the spline the derivative turns rounding of h into rounding / 2d
    close(net.core.backward(seed)[keep], gradient[keep], 3e-6 * max(1, 0.5 / k))
    if k >= 0.8:
        assert np.abs(net.forward(x) - logits)[ks > 0].max() > 1e-3  # it is another network


def test_smoothing_leaves_the_other_activations_alone() -> None:
    kinds = {
        "relu": "kinked",
        "leaky_relu": "kinked",
        "sigmoid": "saturating",
        "tanh": "saturating",
    }
    for activation in ACTIVATIONS:
        net = network((17, 33, 10), activation)
        assert net.kind == kinds.get(activation, "smooth")
        assert net.core.smoothable == (activation in SMOOTHED)
        if activation in SMOOTHED:
            continue
        x, _ = rows_of((17, 33, 10))
        scales = np.ones((len(x), 3), np.float32)
        smoothed = net.core.forward(x, np.full(len(x), 0.8, np.float32), scales)
        np.testing.assert_array_equal(smoothed, net.forward(x))


@pytest.mark.parametrize("activation", SMOOTHED)
def test_scales_are_the_deviations_of_the_own_pre_activations(activation: str) -> None:
    shape = (17, 33, 10)
    net = network(shape, activation)
    x, seed = rows_of(shape)
    _, _, before = exact(net, x, seed)
    scales = np.zeros((len(x), len(net.layers)), np.float32)
    logits = net.core.forward(x, None, scales, True)
    np.testing.assert_array_equal(logits, net.forward(x))
    for i in range(2):
        z = before[i]
        expected = np.maximum(z.std(axis=1), 1e-3 * np.sqrt((z**2).mean(axis=1)))
        np.testing.assert_allclose(scales[:, i], expected, rtol=1e-5)


def test_width_of_equal_pre_activations_is_floored() -> None:
    """std 0: 1e-3 of their rms; all zero: 1e-30."""
    zeros = np.zeros((5, 3), np.float32)
    for bias, expected in ((2.0, 2e-3), (0.0, 1e-30)):
        net = Network(
            [
                Layer(zeros, np.full(5, bias, np.float32), "relu"),
                Layer(np.ones((2, 5), np.float32), np.zeros(2, np.float32)),
            ]
        )
        scales = np.zeros((1, 2), np.float32)
        net.core.forward(np.ones((1, 3), np.float32), None, scales, True)
        assert scales[0, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_stays_in_its_row(activation: str, bad: float) -> None:
    net = network((17, 33, 10), activation)
    x, seed = rows_of((17, 33, 10))
    logits, gradient = net.forward(x), net.backward(seed)
    spoilt = x.copy()
    spoilt[5, 3] = bad
    others = np.arange(len(x)) != 5
    again = net.forward(spoilt)
    if np.isnan(bad):
        assert np.isnan(again[5]).all()
    np.testing.assert_array_equal(again[others], logits[others])
    np.testing.assert_array_equal(net.backward(seed)[others], gradient[others])


def test_the_isa_is_one_of_the_known() -> None:
    assert _core.isa() in ("base", "v3", "v4")
