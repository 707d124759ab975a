"""Layers under construction, in float64, and the builder that adds them one after the other.

`reading/lower.py` reads the operations of a torch model and calls the builder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from .layers import Convolution, Layer, Unsupported

Float64 = NDArray[np.float64]
Integers = NDArray[np.int64]
RISING = ("relu", "leaky_relu", "sigmoid", "tanh", "softplus")
"""Activations that never fall, a leaky ReLU where its slope is not negative."""


@dataclass
class LinearDraft:
    """A fully connected layer under construction, in float64.

    Attributes
    ----------
    weight : ndarray (out, in)
    bias : ndarray (out,)
    activation, slope
        See `Layer`.
    """

    weight: Float64
    bias: Float64
    activation: str = "identity"
    slope: float = 0.01

    def absorb(self, scale: Float64, shift: Float64) -> bool:
        """Put ``h -> scale * h + shift`` into the weight and bias, with an entry for each output.

        The result is False, and nothing changes, where that is not possible.
        """
        if self.activation != "identity":
            return False
        self.weight = scale[:, None] * self.weight
        self.bias = scale * self.bias + shift
        return True

    def to_native(self) -> Layer | Convolution:
        """The layer in float32; ValueError where a value overflows there."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return Layer(weight, bias, self.activation, self.slope)


@dataclass
class ConvolutionDraft(LinearDraft):
    """A convolution under construction, for images of ``shape``: weight (out, in, y, x)."""

    shape: tuple[int, int, int] = (1, 1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_value: Float64 | None = None
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(features, height, width) after the pooling."""
        return self.to_native().out_shape

    def absorb(self, scale: Float64, shift: Float64) -> bool:
        """See `LinearDraft.absorb`; there is an entry for each position of each feature."""
        scales = scale.reshape(len(self.bias), -1)
        is_uniform = len(scale) > 0 and bool((np.ptp(scales, axis=1) == 0).all())
        shifts = shift.reshape(len(self.bias), -1)
        is_uniform = is_uniform and bool((np.ptp(shifts, axis=1) == 0).all())
        if self.activation != "identity" or self.pooling != "none" or not is_uniform:
            return False
        self.weight = scales[:, :1, None, None] * self.weight
        self.bias = scales[:, 0] * self.bias + shifts[:, 0]
        return True

    def to_native(self) -> Convolution:
        """See `LinearDraft.to_native`."""
        value = np.zeros(self.shape[0]) if self.padding_value is None else self.padding_value
        return Convolution(
            self.weight.astype(np.float32),
            self.bias.astype(np.float32),
            self.shape,
            self.activation,
            self.slope,
            self.stride,
            self.padding,
            value.astype(np.float32),
            self.pooling,
            self.window,
        )


@dataclass(frozen=True, eq=False)
class Value:
    """A value of one image between two operations: ``(scale * h + shift)[order]``.

    Attributes
    ----------
    layer : int
        Number of the layer whose flat output h is; -1: h is the image.
    shape : tuple of int
        Shape of the value, without the batch.
    size : int
        Number of values of h.
    scale, shift : ndarray (size,) or None
        A map that waits for a layer to absorb it; None: the identity.
    order : ndarray or None
        Places in h of the values; None: all of them in their order.
    padding : tuple of int
        Rows and columns of zeros around the value, which a convolution is to take as its own.
    is_shared : bool
        Whether another operation reads h too, so that its layer must stay as it is.
    """

    layer: int
    shape: tuple[int, ...]
    size: int
    scale: Float64 | None = None
    shift: Float64 | None = None
    order: Integers | None = None
    padding: tuple[int, int] = (0, 0)
    is_shared: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the value is h itself, in any shape."""
        return self.scale is None and self.order is None and self.padding == (0, 0)


class Builder:
    """Adds layers to values.

    Attributes
    ----------
    layers : list
        Layers under construction.
    location : str
        The operation at work, for error texts.
    """

    def __init__(self) -> None:
        self.layers: list[LinearDraft] = []
        self.location = "model"

    def fail(self, why: str) -> NoReturn:
        """Raise `Unsupported` for the operation at work."""
        raise Unsupported(f"{self.location}: {why}")

    def image(self, shape: tuple[int, ...]) -> Value:
        """The image itself."""
        return Value(-1, shape, math.prod(shape))

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The same values in another shape, in the same order."""
        self.check_unpadded(value)
        return replace(value, shape=shape)

    def reorder(self, value: Value, order: Integers) -> Value:
        """The values at the places ``order``, whose shape is that of the result."""
        self.check_unpadded(value)
        flat = order.reshape(-1)
        places = flat if value.order is None else value.order[flat]
        is_identity = len(places) == value.size and bool((places == np.arange(value.size)).all())
        return replace(value, shape=order.shape, order=None if is_identity else places)

    def check_unpadded(self, value: Value) -> None:
        if value.padding != (0, 0):
            self.fail("zeros around a value have no native form without a convolution")

    def affine(self, value: Value, scale: Float64, shift: Float64, divisor: Float64) -> Value:
        """``(scale * h + shift) / divisor``, each of which broadcasts to the shape of the value."""
        self.check_unpadded(value)
        flat_scale, flat_shift, flat_divisor = (
            np.broadcast_to(part, value.shape).reshape(-1) for part in (scale, shift, divisor)
        )
        if value.order is not None:
            places, count = value.order, len(np.unique(value.order))
            if count != len(places):
                self.fail("values that are there twice are scaled")
            whole = [np.ones(value.size), np.zeros(value.size), np.ones(value.size)]
            for part, flat in zip(whole, (flat_scale, flat_shift, flat_divisor), strict=True):
                part[places] = flat
            flat_scale, flat_shift, flat_divisor = whole
        layer = self.layers[value.layer] if value.layer >= 0 and not value.is_shared else None
        if value.scale is None or value.shift is None:
            total, offset = flat_scale / flat_divisor, flat_shift / flat_divisor
            if layer is not None and layer.absorb(total, offset):
                return value
            return replace(value, scale=total, shift=offset)
        total = flat_scale * value.scale / flat_divisor
        return replace(
            value, scale=total, shift=(flat_scale * value.shift + flat_shift) / flat_divisor
        )

    def linear(self, value: Value, weight: Float64, bias: Float64) -> Value:
        """``weight @ value + bias``, weight (out, in) and bias (out,)."""
        self.check_unpadded(value)
        outputs, inputs = weight.shape
        if value.shape != (inputs,):
            self.fail(f"it takes ({inputs},), the value before it has shape {value.shape}")
        if value.order is not None:
            spread = np.zeros((outputs, value.size))
            np.add.at(spread.T, value.order, weight.T)  # a value may be there twice
            weight = spread
        if value.scale is not None and value.shift is not None:
            bias = bias + weight @ value.shift
            weight = weight * value.scale
        return self.append(value, LinearDraft(weight, bias), (outputs,))

    def append(self, value: Value, draft: LinearDraft, shape: tuple[int, ...]) -> Value:
        """The output of a new layer that reads ``value``."""
        if value.layer != len(self.layers) - 1:
            self.fail("a value that several layers read has no native form")
        self.layers.append(draft)
        return Value(len(self.layers) - 1, shape, math.prod(shape))

    def convolution(
        self,
        value: Value,
        weight: Float64,
        bias: Float64,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Value:
        """A convolution of images (C, H, W), weight (out, C, y, x)."""
        if len(value.shape) != 3 or value.shape[0] != weight.shape[1]:
            self.fail(f"it takes ({weight.shape[1]}, H, W), the value before it has {value.shape}")
        if self.layers and not isinstance(self.layers[-1], ConvolutionDraft):
            self.fail("convolutions after a Linear have no native form")
        if value.order is not None:
            self.fail("the values before it are in another order")
        self.check_map(value)
        channels, height, width = value.shape
        padding_value = np.zeros(channels)
        padding = (padding[0] + value.padding[0], padding[1] + value.padding[1])
        if value.scale is not None and value.shift is not None:
            maps = np.stack([part.reshape(channels, -1) for part in (value.scale, value.shift)])
            if np.ptp(maps, axis=2).any():
                self.fail("the normalisation before it differs from pixel to pixel")
            scale, shift = maps[:, :, 0]
            bias = bias + weight.sum(axis=(2, 3)) @ shift
            if any(padding):  # zero for the convolution is -shift / scale before it
                if not scale.all():
                    self.fail("the normalisation before it has a scale of zero")
                padding_value = -shift / scale
            weight = weight * scale[:, None, None]
        sizes = zip((height, width), weight.shape[2:], stride, padding, strict=True)
        positions = tuple((size + 2 * pad - k) // step + 1 for size, k, step, pad in sizes)
        if min(positions) < 1:
            self.fail(f"its kernel does not fit {value.shape}")
        draft = ConvolutionDraft(
            weight,
            bias,
            shape=(channels, height, width),
            stride=stride,
            padding=padding,
            padding_value=padding_value,
        )
        return self.append(value, draft, (len(weight), *positions))

    def check_map(self, value: Value) -> None:
        """Refuse the output of a convolution that was reshaped after it."""
        layer = self.layers[value.layer] if value.layer >= 0 else None
        if isinstance(layer, ConvolutionDraft) and value.shape != layer.out_shape:
            self.fail(f"the values before it were reshaped from {layer.out_shape} to {value.shape}")

    def open_layer(self, value: Value) -> LinearDraft:
        """The layer of a value that may be given an activation or a pooling yet."""
        layer = self.layers[value.layer] if value.layer >= 0 else None
        if layer is None or not value.is_plain or value.is_shared:
            self.fail("it has no Linear or convolution, read by nothing else, directly before it")
        return layer

    def activation(self, value: Value, name: str, slope: float = 0.01) -> Value:
        """The activation ``name`` of each value."""
        layer = self.open_layer(value)
        pooling = layer.pooling if isinstance(layer, ConvolutionDraft) else "none"
        if layer.activation == name == "relu":
            return value  # that of what is not negative
        # The largest value stays the largest under a function that rises.
        is_ordered = pooling == "none" or (pooling == "max" and name in RISING and slope >= 0)
        if layer.activation != "identity" or not is_ordered:
            self.fail("it has no Linear or convolution directly before it")
        layer.activation = name
        if name == "leaky_relu":
            layer.slope = slope
        return value

    def pooling(self, value: Value, kind: str, window: tuple[int, int]) -> Value:
        """The largest value, or the mean, over windows side by side."""
        layer = self.open_layer(value)
        if not isinstance(layer, ConvolutionDraft) or layer.pooling != "none":
            self.fail("it has no convolution with its activation directly before it")
        if len(value.shape) != 3:
            self.fail(f"it does not take values of shape {value.shape}")
        self.check_map(value)
        height, width = value.shape[1:]
        if window[0] > height or window[1] > width:
            self.fail(f"its windows do not fit {value.shape}")
        layer.pooling, layer.window = kind, window
        shape = (value.shape[0], height // window[0], width // window[1])
        return Value(value.layer, shape, math.prod(shape))

    def finish(self, value: Value) -> list[Layer | Convolution]:
        """The native layers, of which the last one gives the logits ``value``."""
        self.location = "model"
        self.check_unpadded(value)
        if not self.layers:
            self.fail("it has no Linear or convolution")
        if len(value.shape) != 1:
            self.fail(f"its output has shape {value.shape}, not (K,)")
        last = self.layers[value.layer]
        is_open = not value.is_shared and not isinstance(last, ConvolutionDraft)
        is_open = is_open and last.activation == "identity"
        if value.scale is None and value.order is not None and is_open:
            last.weight, last.bias = last.weight[value.order], last.bias[value.order]
            value = Value(value.layer, value.shape, len(last.bias))
        if value.scale is not None or value.order is not None:
            scale = np.ones(value.size) if value.scale is None else value.scale
            shift = np.zeros(value.size) if value.shift is None else value.shift
            order = np.arange(value.size) if value.order is None else value.order
            whole = Value(value.layer, (value.size,), value.size)
            value = self.linear(whole, np.diag(scale)[order], shift[order])
        if value.layer != len(self.layers) - 1:
            self.fail("its output is not that of its last layer")
        if value.shape == (1,):  # a single logit z: two classes with logits (0, z)
            pair, source = np.array([[0.0], [1.0]]), self.layers[-1]
            if source.activation == "identity" and not isinstance(source, ConvolutionDraft):
                self.layers[-1] = LinearDraft(pair @ source.weight, pair @ source.bias)
            else:
                self.linear(value, pair, np.zeros(2))
        output = self.layers[-1]
        if isinstance(output, ConvolutionDraft) and math.prod(value.shape) != len(output.bias):
            self.fail("its logits come from several positions of a convolution")
        try:
            with np.errstate(over="ignore"):
                return [layer.to_native() for layer in self.layers]
        except ValueError as error:
            self.fail(str(error))
