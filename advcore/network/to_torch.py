"""Conversion of native layers to torch modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .layers import TORCH_NAMES, Convolution, Layer

if TYPE_CHECKING:
    import torch


def to_torch_modules(layers: Sequence[Layer | Convolution]) -> torch.nn.Sequential:
    """The same network as torch modules, float32 on the CPU, in eval mode.

    Images go in as (B, ...) with as many values as the first layer takes.
    """
    import torch
    from torch import nn

    from .normalize import Normalize

    modules: list[nn.Module] = [nn.Flatten()]
    if isinstance(layers[0], Convolution):
        modules.append(nn.Unflatten(1, layers[0].shape))
    is_flat = not isinstance(layers[0], Convolution)
    for layer in layers:
        weight, bias = torch.tensor(layer.weight), torch.tensor(layer.bias)
        # Modules on the device "meta" draw no random numbers for their initial weights.
        module: nn.Linear | nn.Conv2d
        if isinstance(layer, Convolution):
            features, channels, *kernel = layer.weight.shape
            if layer.padding_value.any():
                # torch pads with zeros, which is the padding value of x - padding_value.
                modules.append(Normalize(layer.padding_value.tolist(), 1.0))
                shift = layer.weight.sum(axis=(2, 3), dtype=np.float64) @ layer.padding_value
                bias = torch.tensor((layer.bias + shift).astype(np.float32))
            size = (kernel[0], kernel[1])
            module = nn.Conv2d(channels, features, size, layer.stride, layer.padding, device="meta")
        else:
            if not is_flat:
                modules.append(nn.Flatten())
                is_flat = True
            module = nn.Linear(layer.inputs, layer.outputs, device="meta")
        module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
        modules.append(module)
        if layer.activation != "identity":
            modules.append(torch_activation(layer))
        if isinstance(layer, Convolution) and layer.pooling != "none":
            pool = nn.MaxPool2d if layer.pooling == "max" else nn.AvgPool2d
            modules.append(pool(layer.window))
    if not is_flat:
        modules.append(nn.Flatten())
    return nn.Sequential(*modules).eval()


def torch_activation(layer: Layer | Convolution) -> torch.nn.Module:
    """The module of the layer's activation."""
    from torch import nn

    if layer.activation == "leaky_relu":
        return nn.LeakyReLU(layer.slope)
    if layer.activation == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    module: nn.Module = getattr(nn, TORCH_NAMES[layer.activation])()
    return module
