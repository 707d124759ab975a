"""Models with branches lowered to native networks: values, gradients and smoothing beside torch."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from advcore.network import Merge, Network, Unsupported  # noqa: E402
from advcore.oracles import TorchOracle  # noqa: E402

SHAPE = (3, 20, 20)


class Basic(nn.Module):
    """Two 3x3 convolutions and the input, added in place."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down: nn.Module | None = None
        if stride != 1 or channels != width:
            self.down = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Any) -> Any:
        h = self.last_norm(self.second(self.relu(self.norm(self.first(x)))))
        h += x if self.down is None else self.down(x)
        return self.relu(h)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the shortcut as mean pooling and a 1x1 convolution."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 4 * width, 1), nn.BatchNorm2d(4 * width)),
        )
        self.down = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(channels, 4 * width, 1))

    def forward(self, x: Any) -> Any:
        return nn.functional.relu(self.body(x) + self.down(x))


class Preactivated(nn.Module):
    """Normalisation and activation before each convolution; the sum itself goes on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        )

    def forward(self, x: Any) -> Any:
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(torch.relu(norm(h)))
        return x + 0.5 * h


class Fire(nn.Module):
    """The 1x1 and 3x3 convolutions of one input, concatenated."""

    def __init__(self, channels: int, squeezed: int, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.small = nn.Conv2d(squeezed, width, 1)
        self.large = nn.Conv2d(squeezed, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        x = self.relu(self.squeeze(x))
        return torch.cat([self.relu(self.small(x)), self.relu(self.large(x))], 1)


class Dense(nn.Module):
    """Each layer takes the concatenation of all before it."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth), nn.ReLU(inplace=True),
                nn.Conv2d(channels + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )  # fmt: skip

    def forward(self, x: Any) -> Any:
        values = [x]
        for layer in self.layers:
            values.append(layer(torch.cat(values, 1)))
        return torch.cat(values, 1)


def stem(width: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(width)
    return [nn.Conv2d(3, width, 7, 2, 3, bias=False), norm, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 7)]


MODELS: dict[str, Callable[[], list[nn.Module]]] = {
    "basic": lambda: [*stem(8), Basic(8, 8, 1), Basic(8, 18, 2), *head(18)],
    "bottleneck": lambda: [*stem(8), Bottleneck(8, 5), *head(20)],
    "preactivated": lambda: [
        *(nn.Conv2d(3, 9, 3, 2, 1), Preactivated(9), nn.BatchNorm2d(9), nn.ReLU()),
        *(nn.MaxPool2d(2), Preactivated(9), nn.ReLU(), *head(9)),
    ],
    "fire": lambda: [
        *(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(6, 4, 9)),
        *(nn.MaxPool2d(3, 2, ceil_mode=True), Fire(18, 4, 5), nn.Dropout(), nn.Conv2d(10, 7, 1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    "dense": lambda: [
        *(*stem(6), Dense(6, 5, 3), nn.BatchNorm2d(21), nn.ReLU(), nn.Conv2d(21, 8, 1)),
        *(nn.AvgPool2d(2, 2), nn.BatchNorm2d(8), nn.ReLU(), *head(8)),
    ],
    "pool first": lambda: [nn.MaxPool2d(3, 2), nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ReLU(),
                           *head(4)],
    "falling": lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.LeakyReLU(-0.2), *head(4)],
}  # fmt: skip


def build(name: str) -> nn.Sequential:
    """The model with batch norms as after a training."""
    torch.manual_seed(3)
    module = nn.Sequential(*MODELS[name]())
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.6, 1.4)
            nn.init.uniform_(part.bias, -0.3, 0.3)
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval().requires_grad_(False)


def images() -> Any:
    return np.random.default_rng(1).random((4, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_torch(name: str) -> None:
    module, x = build(name), images()
    network = Network.from_torch(module, SHAPE)
    assert any(isinstance(layer, Merge) for layer in network.layers)
    seed = np.random.default_rng(2).standard_normal((len(x), 7)).astype(np.float32)
    for other in (module, network.to_torch()):
        rows = torch.from_numpy(x).double().requires_grad_(True)
        z = copy.deepcopy(other).double()(rows)
        (expected,) = torch.autograd.grad(z, rows, torch.from_numpy(seed).double())
        gradient = expected.numpy().reshape(len(x), -1)
        np.testing.assert_allclose(network.forward(x), z.numpy(force=True), rtol=0, atol=5e-6)
        np.testing.assert_allclose(
            network.backward(seed), gradient, rtol=0, atol=1e-5 * np.abs(gradient).max()
        )


@pytest.mark.parametrize("name", MODELS)
def test_smoothed_values_and_gradients_are_those_through_torch(name: str) -> None:
    module, x = build(name), images().reshape(4, -1)
    core, oracle = Network.from_torch(module, SHAPE).core, TorchOracle(module, SHAPE)
    slots = np.arange(4, dtype=np.int32)
    oracle.forward(x, np.zeros(4, np.float32), slots, np.ones(4, np.bool_), grad=False)
    scales = np.zeros((4, core.scales), np.float32)
    core.forward(x, None, scales, True)
    k = np.array([0.0, 0.05, 0.3, 1.0], np.float32)
    seed = np.random.default_rng(2).standard_normal((4, 7)).astype(np.float32)
    logits = oracle.forward(x, k, slots)
    np.testing.assert_allclose(core.forward(x, k, scales, False), logits, rtol=0, atol=1e-5)
    gradient = oracle.backward(seed)
    np.testing.assert_allclose(
        core.backward(seed), gradient, rtol=0, atol=2e-5 * np.abs(gradient).max()
    )


def test_sums_and_activations_are_one_layer_where_they_may_be() -> None:
    layers = Network.from_torch(build("basic"), SHAPE).layers
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Convolution"] * 3 + ["Merge"] + ["Convolution"] * 3 + ["Merge", "Layer"]
    block = layers[7]
    assert dataclasses.astuple(block)[:1] == ((5, 6),)
    assert (block.activation, block.pooling) == ("relu", "mean")


class Between(nn.Module):
    """A function of two values of the image between a convolution and a Linear."""

    def __init__(self, function: Callable[[Any, Any], Any], flat: bool = False) -> None:
        super().__init__()
        self.function, self.flat = function, flat
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last = nn.LazyLinear(3)

    def forward(self, x: Any) -> Any:
        values = (self.first(x), self.second(x))
        if self.flat:
            values = (values[0].flatten(1), values[1].flatten(1))
        return self.last(self.function(*values).flatten(1))


@pytest.mark.parametrize(
    ("function", "flat", "why"),
    [
        (lambda a, b: a * b, False, "depends on the image"),
        (lambda a, b: torch.cat([a, b], 2), False, "only concatenations of channels"),
        (lambda a, b: a + b, True, "only images in their order"),
        (lambda a, b: a + b.flip(3), False, "only images in their order"),
        (lambda a, b: a + b.mean((2, 3), keepdim=True), False, "do not fit"),
    ],
)
def test_what_has_no_native_form_is_named(function: Any, flat: bool, why: str) -> None:
    module = Between(function, flat)
    module(torch.zeros(1, 3, 6, 6))
    with pytest.raises(Unsupported, match=why):
        Network.from_torch(module.eval(), (3, 6, 6))


def test_values_that_are_changed_in_place_after_they_were_read() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.last = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

        def forward(self, x: Any) -> Any:
            h = self.convolution(x)
            nn.functional.relu_(h)  # h is another value from here on
            return self.last((h + x).mean((2, 3)))

    torch.manual_seed(0)
    module, x = Changed().eval(), images()
    network = Network.from_torch(module, SHAPE)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(network.forward(x), expected, rtol=0, atol=5e-6)
