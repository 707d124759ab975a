"""Lipschitz constants, in the Euclidean norm, of the layers of networks."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advcore.models.modules import ReverseChannels
from advcore.models.pretrained import Expand
from advcore.network import Normalize

from .spectral import Norm, circular_norm, jacobian_norm, largest_singular_value, operator_norm

# These maps never move two points apart. Dropout is meant in eval mode.
NONEXPANSIVE = (nn.Flatten, nn.Unflatten, nn.Dropout, nn.ReLU, ReverseChannels)
_KINDS: dict[type, str] = {nn.Conv2d: "conv", nn.Linear: "fc", nn.MaxPool2d: "pool"}
ENTRIES_AT_ONCE = 100_000  # number of pixels of the images that are evaluated together


@dataclass(frozen=True)
class Layer:
    """One layer of a network, and the shape (1, ...) of its input."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def layers_of(network: nn.Sequential, shape: Sequence[int]) -> list[Layer]:
    """Return the layers of nested `Sequential` modules, in order.

    A layer is called by its name in the network. If that is a mere number, it is called by its kind
    and a count, for example conv1.

    shape : the shape (...) of one image.
    """
    layers: list[Layer] = []
    kinds: Counter[str] = Counter()
    hidden = torch.zeros(1, *shape, dtype=next(network.parameters()).dtype)
    for path, module in _leaves(network):
        name = path
        if path.rpartition(".")[2].isdigit():
            kind = _KINDS.get(type(module), type(module).__name__.lower())
            kinds[kind] += 1
            name = f"{kind}{kinds[kind]}"
        layers.append(Layer(name, module, tuple(hidden.shape)))
        hidden = module(hidden)
    return layers


def lipschitz(layer: Layer, *, tolerance: float) -> Norm:
    """Return the Lipschitz constant of a layer on all of its input space, whatever its bias.

    For a convolution it is the norm of the operator itself, with its stride and padding, at its
    input size. Max-pooling moves two points apart where windows overlap. An entry may be the
    largest of ceil(k / s) windows along each side, so that the constant is the root of their
    number, not 1.

    Raises
    ------
    TypeError : the constant of this kind of layer is not known.
    """
    module = layer.module
    if isinstance(module, NONEXPANSIVE):
        return Norm(1.0)
    if isinstance(module, nn.Sigmoid):
        return Norm(0.25)
    if isinstance(module, nn.Linear):
        return Norm(float(largest_singular_value(module.weight.double())))
    if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1):
        _plain(module)  # the same matrix at every position
        return Norm(float(largest_singular_value(module.weight.double().flatten(1))))
    if isinstance(module, nn.Conv2d | Expand):
        return operator_norm(without_bias(module), layer.shape, tolerance=tolerance)
    if isinstance(module, Normalize):
        return Norm(float((1 / module.std.double()).max()))
    if isinstance(module, nn.MaxPool2d):
        size, stride = _pair(module.kernel_size), _pair(module.stride)
        if _pair(module.dilation) != (1, 1):
            raise TypeError(f"{layer.name}: max-pooling with dilation is not known")
        overlaps = [math.ceil(k / s) for k, s in zip(size, stride, strict=True)]
        return Norm(math.sqrt(math.prod(overlaps)))
    if isinstance(module, nn.AdaptiveAvgPool2d):
        inputs, outputs = layer.shape[2:], tuple(module(torch.zeros(layer.shape)).shape[2:])
        if any(i % o for i, o in zip(inputs, outputs, strict=True)):
            raise TypeError(f"{layer.name}: unequal windows of average pooling are not known")
        return Norm(math.sqrt(math.prod(outputs) / math.prod(inputs)))
    raise TypeError(f"{layer.name}: the Lipschitz constant of {type(module).__name__} is not known")


def fourier_bound(layer: Layer) -> float | None:
    """Return an upper bound of a convolution's norm, from the Fourier transform.

    On a period that holds the padded input, the convolution is a part of the circular one. The
    result is None for 1x1 convolutions, whose norm is exact, and for other layers.
    """
    if not isinstance(layer.module, nn.Conv2d | Expand):
        return None
    kernel, stride, padding = kernel_of(layer.module)
    if kernel.shape[2:] == (1, 1) and stride == 1:
        return None
    height, width = (
        math.ceil((side + 2 * pad) / stride) * stride
        for side, pad in zip(layer.shape[2:], padding, strict=True)
    )
    return circular_norm(kernel, stride, (height, width))


def kernel_of(module: nn.Conv2d | Expand) -> tuple[Tensor, int, tuple[int, int]]:
    """Return weights (D, C, kh, kw), stride and padding of a convolution.

    An `Expand` counts as one 3x3 convolution.
    """
    if isinstance(module, Expand):
        padded = nn.functional.pad(module.expand1x1.weight, (1, 1, 1, 1))
        return torch.cat([padded, module.expand3x3.weight]), 1, (1, 1)
    _plain(module)
    rows, columns = (int(pad) for pad in module.padding)
    return module.weight, module.stride[0], (rows, columns)


def parts_bound(layer: Layer, *, tolerance: float) -> float | None:
    """Return sqrt(a^2 + b^2) with the norms a and b of the two halves of an `Expand`, else None."""
    if not isinstance(layer.module, Expand):
        return None
    halves = (layer.module.expand1x1, layer.module.expand3x3)
    return math.hypot(
        *(lipschitz(Layer("", half, layer.shape), tolerance=tolerance).value for half in halves)
    )


def without_bias(module: nn.Module) -> nn.Module:
    """Copy an affine layer in float64 and without its bias, as a linear map."""
    copied = copy.deepcopy(module).double()
    for part in copied.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.bias = None
    return copied


def describe(layer: Layer) -> str:
    """Return name and size as in the paper, for example "conv1, 3×11×11×96, stride 4"."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return f"{layer.name}, {module.in_features}×{module.out_features}"
    if isinstance(module, nn.Conv2d | Expand):
        kernel, stride, _ = kernel_of(module)
        outputs, inputs, height, width = kernel.shape
        size = f"{layer.name}, {inputs}×{height}×{width}×{outputs}"
        return size if stride == 1 else f"{size}, stride {stride}"
    if isinstance(module, nn.MaxPool2d):
        return f"{layer.name}, {module.kernel_size}×{module.kernel_size}, stride {module.stride}"
    return layer.name


@dataclass(frozen=True)
class Bounds:
    """Bounds of the layers (L,) of one network, with NaN where one does not apply.

    constant : Lipschitz constants (`lipschitz`).
    iterations : number of power iterations.
    fourier, parts : results of `fourier_bound` and `parts_bound`.
    """

    constant: NDArray[np.float64]
    iterations: NDArray[np.float64]
    fourier: NDArray[np.float64]
    parts: NDArray[np.float64]

    @property
    def product(self) -> NDArray[np.float64]:
        """The products (L,) of the constants up to each layer."""
        return np.cumprod(self.constant, dtype=np.float64)


def bounds(layers: Sequence[Layer], *, tolerance: float) -> Bounds:
    """Compute the bounds of all layers."""
    norms = [lipschitz(layer, tolerance=tolerance) for layer in layers]
    return Bounds(
        np.array([norm.value for norm in norms]),
        np.array([norm.iterations or math.nan for norm in norms]),
        np.array([fourier_bound(layer) for layer in layers], np.float64),
        np.array([parts_bound(layer, tolerance=tolerance) for layer in layers], np.float64),
    )


@dataclass(frozen=True)
class Response:
    """The response of one network to N adversarial examples.

    A run's cache has the arrays under the names of these fields.

    grown, noise : (L, N) ||h(x') - h(x)|| / ||x' - x|| of every layer's output h, at the
        adversarial examples and at Gaussian noise of the same norms.
    jacobian : norms of the Jacobian of the logits at the first of the clean images.
    excluded : (N,) norms of x' - x below which the bound excludes adversarial examples.
    found : (N,) norms of x' - x of the adversarial examples.
    """

    grown: NDArray[np.float64]
    noise: NDArray[np.float64]
    jacobian: NDArray[np.float64]
    excluded: NDArray[np.float64]
    found: NDArray[np.float64]


def response(
    network: nn.Sequential,
    images: NDArray[np.float32],
    adversarial: NDArray[np.float32],
    targets: NDArray[np.int64],
    *,
    bound: float,
    jacobians: int,
) -> Response:
    """Measure `network` at N images and their adversarial examples.

    bound : Lipschitz constant L of the logits. Two logits approach each other by no more than
        sqrt(2) L ||r||, so that a lead m over the target lasts up to ||r|| = m / (sqrt(2) L).
    jacobians : number of images, from the first on, whose Jacobian is measured, to 1e-3.
    """
    exact = copy.deepcopy(network).double()
    layers = layers_of(exact, images.shape[1:])
    rows = np.arange(len(images))
    r = adversarial.astype(np.float64) - images
    lengths = np.linalg.norm(r.reshape(len(r), -1), axis=1)
    noise = np.random.default_rng(0).standard_normal(r.shape)
    scale = lengths / np.linalg.norm(noise.reshape(len(r), -1), axis=1)
    noise *= scale.reshape(-1, *[1] * (r.ndim - 1))
    growths, noise_growths, leads = [], [], []
    with torch.inference_mode():
        for part in np.array_split(rows, math.ceil(images.size / ENTRIES_AT_ONCE)):
            clean = torch.from_numpy(images[part]).double()
            growths.append(growth(layers, clean, clean + torch.from_numpy(r[part])))
            noise_growths.append(growth(layers, clean, clean + torch.from_numpy(noise[part])))
            logits = exact(clean)
            target_index = torch.from_numpy(targets[part])[:, None]
            leads.append(logits.amax(1) - logits.gather(1, target_index)[:, 0])
    return Response(
        torch.cat(growths, 1).numpy(),
        torch.cat(noise_growths, 1).numpy(),
        np.array(
            [
                jacobian_norm(network, torch.from_numpy(images[row : row + 1]), tolerance=1e-3)
                for row in rows[:jacobians]
            ]
        ),
        torch.cat(leads).numpy() / (math.sqrt(2) * bound),
        lengths,
    )


def growth(layers: Sequence[Layer], images: Tensor, moved_images: Tensor) -> Tensor:
    """Return (L, B) ||h(x') - h(x)|| / ||x' - x|| for the outputs h of every layer."""
    start = (moved_images - images).flatten(1).norm(dim=1)
    ratios = []
    for layer in layers:
        images, moved_images = layer.module(images), layer.module(moved_images)
        ratios.append((moved_images - images).flatten(1).norm(dim=1) / start)
    return torch.stack(ratios)


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(module, nn.Sequential):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _leaves(child, f"{path}.{name}" if path else name)


def _plain(module: nn.Conv2d) -> None:
    if (module.groups, *module.dilation, module.padding_mode) != (1, 1, 1, "zeros") or (
        isinstance(module.padding, str) or module.stride[0] != module.stride[1]
    ):
        raise TypeError(f"no Fourier form of {module}")


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else value
