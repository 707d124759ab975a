"""Conversion of native layers to torch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .layers import TORCH_NAMES, Convolution, Layer
from .merge import AnyLayer, Merge

if TYPE_CHECKING:
    import torch

    from .network import Network


def to_torch_modules(network: Network) -> torch.nn.Sequential:
    """The same network as torch modules, float32 on the CPU, in eval mode.

    Images go in as (B, ...) with as many values as the first layer takes.
    """
    from torch import nn

    modules: list[nn.Module] = [nn.Flatten()]
    steps = [_modules(layer) for layer in network.layers]
    if network.convolutional:
        modules.append(nn.Unflatten(1, network.image_shape))
        count = sum(not isinstance(layer, Layer) for layer in network.layers)
        images, steps = steps[:count], steps[count:]
        if all(network.sources(index) == (index - 1,) for index in range(count)):
            modules += [module for step in images for module in step]
        else:
            from .branches import Branches

            hows = [getattr(layer, "how", "sum") for layer in network.layers[:count]]
            sources = [network.sources(index) for index in range(count)]
            modules.append(Branches([nn.Sequential(*step) for step in images], sources, hows))
        modules.append(nn.Flatten())
    return nn.Sequential(*modules, *(module for step in steps for module in step)).eval()


def _modules(layer: AnyLayer) -> list[torch.nn.Module]:
    """The modules of a layer, without the sum or the concatenation of a merge."""
    import torch
    from torch import nn

    from .normalize import Normalize

    modules: list[nn.Module] = []
    arrays = {name: torch.tensor(array) for name, array in layer.arrays.items()}
    # Modules on the device "meta" draw no random numbers for their initial weights.
    if isinstance(layer, Merge):
        if not (np.all(layer.scale == 1) and not layer.shift.any()):
            norm = nn.BatchNorm2d(layer.features, eps=0.0)  # of running means 0 and variances 1
            norm.weight, norm.bias = nn.Parameter(arrays["scale"]), nn.Parameter(arrays["shift"])
            modules.append(norm)
    else:
        module: nn.Linear | nn.Conv2d
        if isinstance(layer, Convolution):
            features, channels, *kernel = layer.weight.shape
            if layer.padding_value.any():
                # torch pads with zeros, which is the padding value of x - padding_value.
                modules.append(Normalize(layer.padding_value.tolist(), 1.0))
                shift = layer.weight.sum(axis=(2, 3), dtype=np.float64) @ layer.padding_value
                arrays["bias"] = torch.tensor((layer.bias + shift).astype(np.float32))
            size = (kernel[0], kernel[1])
            module = nn.Conv2d(channels, features, size, layer.stride, layer.padding, device="meta")
        else:
            module = nn.Linear(layer.inputs, layer.outputs, device="meta")
        module.weight, module.bias = nn.Parameter(arrays["weight"]), nn.Parameter(arrays["bias"])
        modules.append(module)
    if layer.activation != "identity":
        modules.append(torch_activation(layer))
    if not isinstance(layer, Layer) and layer.pooling != "none":
        pool = nn.MaxPool2d if layer.pooling == "max" else nn.AvgPool2d
        modules.append(
            pool(
                layer.window,
                layer.pooling_stride,
                layer.pooling_padding,
                ceil_mode=layer.ceil_mode,
            )
        )
    return modules


def torch_activation(layer: AnyLayer) -> torch.nn.Module:
    """The module of the layer's activation."""
    from torch import nn

    if layer.activation == "leaky_relu":
        return nn.LeakyReLU(layer.slope)
    if layer.activation == "gelu_tanh":
        return nn.GELU(approximate="tanh")
    module: nn.Module = getattr(nn, TORCH_NAMES[layer.activation])()
    return module
