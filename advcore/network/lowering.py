"""Layers under construction, in float64, and the builder that adds them one after the other.

`reading/lower.py` reads the operations of a torch model and calls the builder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .layers import Convolution, Layer, Unsupported, count_windows
from .merge import AnyLayer, Merge

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

    def to_native(self, index: int) -> AnyLayer:
        """Layer number ``index`` in float32; ValueError where a value overflows there."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return Layer(weight, bias, self.activation, self.slope)


@dataclass
class ImageDraft(LinearDraft):
    """A layer of images under construction: weight (features, ...), and the pooling behind it.

    Attributes
    ----------
    sources : tuple of int
        Numbers of the layers that it takes, -1 for the image.
    shapes : tuple of tuple of int
        Their shapes (channels, height, width), as it takes them.
    pooling, window, pooling_stride, pooling_padding, ceil_mode
        See `Convolution`.
    """

    sources: tuple[int, ...] = (-1,)
    shapes: tuple[tuple[int, int, int], ...] = ((1, 1, 1),)
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)
    pooling_stride: tuple[int, int] | None = None
    pooling_padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        return self.shapes[0][1], self.shapes[0][2]

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(features, height, width) after the pooling."""
        step = self.window if self.pooling_stride is None else self.pooling_stride
        extents = zip(self.positions, self.window, step, self.pooling_padding, strict=True)
        rows, columns = (count_windows(*extent, self.ceil_mode) for extent in extents)
        return len(self.bias), rows, columns

    def absorb(self, scale: Float64, shift: Float64) -> bool:
        """See `LinearDraft.absorb`; there is an entry for each position of each feature."""
        scales = scale.reshape(len(self.bias), -1)
        is_uniform = len(scale) > 0 and bool((np.ptp(scales, axis=1) == 0).all())
        shifts = shift.reshape(len(self.bias), -1)
        is_uniform = is_uniform and bool((np.ptp(shifts, axis=1) == 0).all())
        if self.activation != "identity" or self.pooling != "none" or not is_uniform:
            return False
        self.weight = scales[:, 0].reshape(-1, *(1,) * (self.weight.ndim - 1)) * self.weight
        self.bias = scales[:, 0] * self.bias + shifts[:, 0]
        return True

    @property
    def function(self) -> dict[str, Any]:
        """The activation and the pooling as arguments of a native layer."""
        names = ("activation", "slope", "pooling", "window", "pooling_stride", "pooling_padding",
                 "ceil_mode")  # fmt: skip
        return {name: getattr(self, name) for name in names}


@dataclass
class ConvolutionDraft(ImageDraft):
    """A convolution under construction: weight (out, in, y, x)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_value: Float64 | None = None

    @property
    def positions(self) -> tuple[int, int]:
        """See `ImageDraft.positions`."""
        sizes = zip(
            self.shapes[0][1:], self.weight.shape[2:], self.stride, self.padding, strict=True
        )
        rows, columns = ((size + 2 * pad - k) // step + 1 for size, k, step, pad in sizes)
        return rows, columns

    def to_native(self, index: int) -> Convolution:
        """See `LinearDraft.to_native`."""
        channels = self.shapes[0][0]
        value = np.zeros(channels) if self.padding_value is None else self.padding_value
        return Convolution(
            self.weight.astype(np.float32),
            self.bias.astype(np.float32),
            self.shapes[0],
            stride=self.stride,
            padding=self.padding,
            padding_value=value.astype(np.float32),
            source=None if self.sources[0] == index - 1 else self.sources[0],
            **self.function,
        )


@dataclass
class MergeDraft(ImageDraft):
    """A merge under construction: the weight is its scale, the bias its shift."""

    how: str = "sum"

    def to_native(self, index: int) -> Merge:
        """See `LinearDraft.to_native`."""
        scale, shift = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return Merge(self.sources, self.shapes, self.how, scale, shift, **self.function)


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


def _image_shape(value: Value) -> tuple[int, int, int]:
    channels, height, width = value.shape
    return channels, height, width


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
        if value.layer != len(self.layers) - 1 and not isinstance(draft, ImageDraft):
            self.fail("a Linear has a native form only behind all that comes before it")
        if isinstance(draft, ImageDraft) and not self.ends_in_image:
            self.fail("convolutions after a Linear have no native form")
        self.layers.append(draft)
        return Value(len(self.layers) - 1, shape, math.prod(shape))

    @property
    def ends_in_image(self) -> bool:
        """Whether a layer of images may follow."""
        return not self.layers or isinstance(self.layers[-1], ImageDraft)

    def merge(self, values: Sequence[Value], how: str) -> Value:
        """The sum or the concatenation of images (C, H, W)."""
        scales, shifts = [], []
        for value in values:
            if len(value.shape) != 3 or value.order is not None:
                self.fail(f"only images in their order have a native form, got {value.shape}")
            self.check_unpadded(value)
            self.check_map(value)
            maps = np.stack([np.ones(value.size), np.zeros(value.size)])
            if value.scale is not None and value.shift is not None:
                maps = np.stack([value.scale, value.shift])
            maps = maps.reshape(2, value.shape[0], -1)
            if np.ptp(maps, axis=2).any():
                self.fail("the normalisation before it differs from pixel to pixel")
            scales.append(maps[0, :, 0])
            shifts.append(maps[1, :, 0])
        first = 0 if how == "sum" else 1
        if any(value.shape[first:] != values[0].shape[first:] for value in values):
            self.fail(f"shapes {[value.shape for value in values]} do not fit")
        scale, shift = np.concatenate(scales), np.concatenate(shifts)
        if how == "sum":
            if any((other != scales[0]).any() for other in scales):
                values = [
                    self.merge([value], how) if value.scale is not None else value
                    for value in values
                ]
                return self.merge(values, how)
            scale, shift = scales[0], np.sum(shifts, axis=0)
        draft = MergeDraft(
            scale,
            shift,
            sources=tuple(value.layer for value in values),
            shapes=tuple(_image_shape(value) for value in values),
            how=how,
        )
        return self.append(values[0], draft, draft.out_shape)

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
        if not self.ends_in_image:
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
        draft = ConvolutionDraft(
            weight,
            bias,
            sources=(value.layer,),
            shapes=((channels, height, width),),
            stride=stride,
            padding=padding,
            padding_value=padding_value,
        )
        if min(draft.positions) < 1:
            self.fail(f"its kernel does not fit {value.shape}")
        return self.append(value, draft, draft.out_shape)

    def check_map(self, value: Value) -> None:
        """Refuse the output of a convolution that was reshaped after it."""
        layer = self.layers[value.layer] if value.layer >= 0 else None
        if isinstance(layer, ImageDraft) and value.shape != layer.out_shape:
            self.fail(f"the values before it were reshaped from {layer.out_shape} to {value.shape}")

    def open_layer(self, value: Value) -> LinearDraft | None:
        """The layer of a value, where it may be given an activation or a pooling yet."""
        layer = self.layers[value.layer] if value.layer >= 0 else None
        return None if not value.is_plain or value.is_shared else layer

    def activation(self, value: Value, name: str, slope: float = 0.01) -> Value:
        """The activation ``name`` of each value."""
        layer = self.open_layer(value)
        if layer is not None and layer.activation == name == "relu":
            return value  # that of what is not negative
        pooling = layer.pooling if isinstance(layer, ImageDraft) else "none"
        # The largest value stays the largest under a function that rises.
        is_ordered = pooling == "none" or (pooling == "max" and name in RISING and slope >= 0)
        if layer is None or layer.activation != "identity" or not is_ordered:
            if len(value.shape) != 3 or not self.ends_in_image:
                self.fail("it has no Linear or convolution, read by nothing else, before it")
            value = self.merge([value], "sum")
            layer = self.layers[value.layer]
        layer.activation = name
        if name == "leaky_relu":
            layer.slope = slope
        return value

    def pooling(
        self,
        value: Value,
        kind: str,
        window: tuple[int, int],
        stride: tuple[int, int] | None = None,
        padding: tuple[int, int] = (0, 0),
        ceil_mode: bool = False,
    ) -> Value:
        """The largest value, or the mean, over windows; see `Convolution`."""
        if len(value.shape) != 3:
            self.fail(f"it does not take values of shape {value.shape}")
        self.check_map(value)
        extents = list(zip(value.shape[1:], window, stride or window, padding, strict=True))
        counts = tuple(count_windows(*extent, False) for extent in extents)
        is_longer = counts != tuple(count_windows(*extent, ceil_mode) for extent in extents)
        if is_longer and kind != "max":
            self.fail("windows that reach beyond the end (ceil_mode)")
        if min(counts) < 1:
            self.fail(f"its windows do not fit {value.shape}")
        layer = self.open_layer(value)
        if not isinstance(layer, ImageDraft) or layer.pooling != "none":
            value = self.merge([value], "sum")
            layer = self.layers[value.layer]
            assert isinstance(layer, ImageDraft)
        layer.pooling, layer.window, layer.ceil_mode = kind, window, is_longer
        layer.pooling_stride = None if stride == window else stride
        layer.pooling_padding = padding
        return Value(value.layer, layer.out_shape, math.prod(layer.out_shape))

    def finish(self, value: Value) -> list[AnyLayer]:
        """The native layers, of which the last one gives the logits ``value``."""
        self.location = "model"
        self.check_unpadded(value)
        if not self.layers:
            self.fail("it has no Linear or convolution")
        if len(value.shape) != 1:
            self.fail(f"its output has shape {value.shape}, not (K,)")
        last = self.layers[value.layer]
        is_open = not value.is_shared and not isinstance(last, ImageDraft)
        is_open = is_open and last.activation == "identity"
        if value.scale is None and value.order is not None and is_open:
            last.weight, last.bias = last.weight[value.order], last.bias[value.order]
            value = Value(value.layer, value.shape, len(last.bias))
        is_merged = isinstance(last, MergeDraft)
        if value.scale is not None or value.order is not None or is_merged:
            scale = np.ones(value.size) if value.scale is None else value.scale
            shift = np.zeros(value.size) if value.shift is None else value.shift
            order = np.arange(value.size) if value.order is None else value.order
            whole = Value(value.layer, (value.size,), value.size)
            value = self.linear(whole, np.diag(scale)[order], shift[order])
        if value.layer != len(self.layers) - 1:
            self.fail("its output is not that of its last layer")
        if value.shape == (1,):  # a single logit z: two classes with logits (0, z)
            pair, source = np.array([[0.0], [1.0]]), self.layers[-1]
            if source.activation == "identity" and not isinstance(source, ImageDraft):
                self.layers[-1] = LinearDraft(pair @ source.weight, pair @ source.bias)
            else:
                self.linear(value, pair, np.zeros(2))
        output = self.layers[-1]
        if isinstance(output, ImageDraft) and math.prod(value.shape) != len(output.bias):
            self.fail("its logits come from several positions of a convolution")
        try:
            with np.errstate(over="ignore"):
                return [layer.to_native(index) for index, layer in enumerate(self.layers)]
        except ValueError as error:
            self.fail(str(error))
