"""Native layers as torch modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .layers import Convolution, Layer

if TYPE_CHECKING:
    import torch


def raised(layers: Sequence[Layer | Convolution]) -> torch.nn.Sequential:
    """Native layers as torch modules, float32 on the CPU, in eval mode."""
    import torch
    from torch import nn

    from .normalize import Normalize

    modules: list[nn.Module] = [nn.Flatten()]
    if isinstance(layers[0], Convolution):
        modules.append(nn.Unflatten(1, layers[0].shape))
    flat = not isinstance(layers[0], Convolution)
    for layer in layers:
        weight, bias = torch.tensor(layer.weight), torch.tensor(layer.bias)
        module: nn.Linear | nn.Conv2d  # both on "meta": no random numbers
        if isinstance(layer, Convolution):
            out, inside, *kernel = layer.weight.shape
            if layer.padding_value.any():  # zero there: of x - padding_value
                modules.append(Normalize(layer.padding_value.tolist(), 1.0))
                moved = layer.weight.sum(axis=(2, 3), dtype=np.float64) @ layer.padding_value
                bias = torch.tensor((layer.bias + moved).astype(np.float32))
            size = (kernel[0], kernel[1])
            module = nn.Conv2d(inside, out, size, layer.stride, layer.padding, device="meta")
        else:
            if not flat:
                modules.append(nn.Flatten())
                flat = True
            module = nn.Linear(layer.inputs, layer.outputs, device="meta")
        module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
        modules.append(module)
        if layer.activation != "identity":
            modules.append(_torch_activation(layer))
        if isinstance(layer, Convolution) and layer.pooling != "none":
            pool = nn.MaxPool2d if layer.pooling == "max" else nn.AvgPool2d
            modules.append(pool(layer.window))
    if not flat:
        modules.append(nn.Flatten())
    return nn.Sequential(*modules).eval()


def _torch_activation(layer: Layer | Convolution) -> torch.nn.Module:
    from torch import nn

    if layer.activation == "leaky_relu":
        return nn.LeakyReLU(layer.slope)
    if layer.activation == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    plain: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "softplus": nn.Softplus,
        "gelu": nn.GELU,
    }
    return plain[layer.activation]()
