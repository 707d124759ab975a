"""Networks and comparisons of the programs that run on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import advcore
from advcore.network import Layer, Network
from advcore.solve.agreement import unlike


def random_network(sizes: tuple[int, ...], activation: str = "tanh", scale: float = 3.0) -> Network:
    """A network whose logits change over images in [0, 1]."""
    rng = np.random.default_rng(sum(sizes))
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        weight = rng.normal(0, scale / np.sqrt(a), (b, a)).astype(np.float32)
        bias = (-weight.sum(axis=1) / 2 + rng.normal(0, 0.1, b)).astype(np.float32)
        layers.append(Layer(weight, bias, activation if i + 2 < len(sizes) else "identity"))
    return Network(layers)


def callable_of(network: Network) -> Callable[[Tensor], Any]:
    """The network as a function of torch, which is not lowered: its rounds are the host's."""
    modules: dict[torch.device, nn.Module] = {}

    def call(x: Tensor) -> Any:
        if x.device not in modules:  # that of the images, as a simulated GPU has those of the CPU
            modules[x.device] = network.to_torch().to(x.device)
        return modules[x.device](x)

    return call


def agree(found: advcore.Result, expected: advcore.Result) -> None:
    """Raise AssertionError unless two results differ by no more than rounding explains."""
    names = ("success", "distortion")
    why = unlike(*({name: getattr(result, name) for name in names} for result in (found, expected)))
    assert why is None, why


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a sum with the input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width

        def unit(a: int, b: int, size: int, step: int = 1) -> list[nn.Module]:
            conv = nn.Conv2d(a, b, size, step, size // 2, bias=False)
            return [conv, nn.BatchNorm2d(b)]

        self.way = nn.Sequential(
            *unit(inputs, width, 1), nn.ReLU(),
            *unit(width, width, 3, stride), nn.ReLU(),
            *unit(width, outputs, 1),
        )  # fmt: skip
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else unit(inputs, outputs, 1, stride)))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 4 width, H / stride, W / stride)."""
        out: Tensor = self.last(self.way(x) + self.shortcut(x))
        return out


def resnet50(classes: int = 1000) -> nn.Module:
    """ResNet-50 (He et al. 2016) with random weights of seed 0 (He et al. 2015), in eval mode."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            layers.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    model = nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
    )
    for part in model.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model.eval().requires_grad_(False)
