"""Layers of the networks that the compiled engine runs by itself; see `advcore.network`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TORCH_NAMES = {
    "identity": "Identity",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "gelu": "GELU",
    "gelu_tanh": "GELU",
}
"""Each activation with its module in ``torch.nn``: ``gelu`` is the exact form with erf,
``gelu_tanh`` torch's approximation."""

ACTIVATIONS = tuple(TORCH_NAMES)
"""Names of activations, shared with the engine."""

KINKED = ("relu", "leaky_relu")
"""Piecewise linear activations, which the engine can smooth by a spline."""

SATURATING = ("sigmoid", "tanh")
"""Sigmoidal activations, which the engine can smooth by stretching them."""

POOLINGS = ("none", "max", "mean")
"""Names of poolings, shared with the engine. It can smooth "max" by a log-sum-exp."""

MAX_VALUES = 2**31 - 1
"""Largest number of values of an image between two layers, and largest stride and padding. The
engine counts them as 32-bit integers."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A fully connected layer, ``h -> activation(weight @ h + bias)``.

    Attributes
    ----------
    weight : ndarray, shape (out, in), float32
    bias : ndarray, shape (out,), float32
        Both arrays are copied, rounded if they are float64, and made read-only.
    activation : str
        One of `ACTIVATIONS`.
    slope : float
        Slope of ``leaky_relu`` below zero; unused by the others.
    """

    weight: Floats
    bias: Floats
    activation: str = "identity"
    slope: float = 0.01

    def __post_init__(self) -> None:
        freeze(self, "weight", 2)
        freeze(self, "bias", 1)
        _check_activation(self)

    @property
    def inputs(self) -> int:
        """Number of values of the input."""
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        """Number of values of the output."""
        return int(self.weight.shape[0])

    @property
    def arrays(self) -> dict[str, Floats]:
        """The arrays by name: weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @property
    def factors(self) -> tuple[Floats, Floats]:
        """The arrays of the compiled layer: weight and bias."""
        return self.weight, self.bias

    @property
    def geometry(self) -> None:
        """Always None; a `Convolution` and a `Merge` have a tuple here."""
        return

    def reversed(self, channels: int, outputs: bool) -> Layer:
        """The same layer with its inputs in reverse order, in ``channels`` groups of equal size.

        The order inside a group stays. With ``outputs`` the outputs are in reverse order too.
        """
        rows = slice(None, None, -1 if outputs else 1)
        groups = self.weight.reshape(self.outputs, channels, -1)[rows, ::-1]
        weight = groups.reshape(self.weight.shape)
        return Layer(weight, self.bias[rows], self.activation, self.slope)


def empty() -> Floats:
    """An array without values, which stands for a default."""
    return np.zeros(0, np.float32)


class Pooled:
    """What layers that give images share: pooling behind an activation."""

    activation: str
    slope: float
    pooling: str
    window: tuple[int, int]
    pooling_stride: tuple[int, int] | None
    pooling_padding: tuple[int, int]
    ceil_mode: bool

    @property
    def features(self) -> int:
        """Number of channels of the output."""
        raise NotImplementedError

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        raise NotImplementedError

    @property
    def window_step(self) -> tuple[int, int]:
        """Rows and columns between two windows."""
        return self.window if self.pooling_stride is None else self.pooling_stride

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """(features, height, width) of the output."""
        extents = zip(
            self.positions, self.window, self.window_step, self.pooling_padding, strict=True
        )
        rows, columns = (count_windows(*extent, self.ceil_mode) for extent in extents)
        return self.features, rows, columns

    @property
    def outputs(self) -> int:
        """Number of values of the output."""
        return math.prod(self.out_shape)

    @property
    def pooling_arguments(self) -> tuple[Any, ...]:
        """The arguments of the compiled layer about its pooling."""
        return self.pooling, self.window, self.window_step, self.pooling_padding, self.ceil_mode

    def check_pooling(self) -> None:
        """Raise ValueError where the pooling is none that there is."""
        for name, minimum in (("window", 1), ("pooling_stride", 1), ("pooling_padding", 0)):
            if getattr(self, name) is not None:
                check_integers(self, name, 2, minimum)
        object.__setattr__(self, "ceil_mode", bool(self.ceil_mode))
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        if self.pooling == "none" and self.window != (1, 1):
            raise ValueError(f"window must be (1, 1) without pooling, got {self.window}")
        if self.pooling == "none" and (self.window_step != (1, 1) or any(self.pooling_padding)):
            raise ValueError(
                "pooling_stride and pooling_padding must be (1, 1) and (0, 0) without pooling, got "
                f"{self.pooling_stride} and {self.pooling_padding}"
            )
        if any(2 * pad > w for pad, w in zip(self.pooling_padding, self.window, strict=True)):
            raise ValueError(
                f"pooling_padding must be at most half of the window {self.window}, got "
                f"{self.pooling_padding}"
            )
        if self.ceil_mode and self.pooling != "max":
            raise ValueError(f"ceil_mode must be False without max-pooling, got {self.pooling!r}")


def count_windows(size: int, window: int, step: int, padding: int, ceil_mode: bool) -> int:
    """Number of windows along a dimension, as torch counts them; below 1 where none fits.

    With ``ceil_mode`` a last window may be incomplete, but it begins before the padding at the end.
    """
    span = size + 2 * padding - window
    if span < 0:
        return 0
    count = (span + step - 1 if ceil_mode else span) // step + 1
    return count - 1 if ceil_mode and (count - 1) * step >= size + padding else count


@dataclass(frozen=True, eq=False)
class Convolution(Pooled):
    """A 2-D convolution (cross-correlation, as torch's), an activation, and then a pooling.

    Attributes
    ----------
    weight : ndarray, shape (features, channels, height, width), float32
    bias : ndarray, shape (features,), float32
        Both arrays are copied, rounded if they are float64, and made read-only.
    shape : tuple of int
        (channels, height, width) of the input.
    activation, slope
        See `Layer`.
    stride : tuple of int
        Step in rows and columns.
    padding : tuple of int
        Rows and columns that are added on each side.
    padding_value : ndarray, shape (channels,), float32
        Value of the padding, zeros by default. It differs from zero where a normalisation of the
        image is folded into the weight.
    pooling : str
        "none", or "max" or "mean" over windows. Rows and columns that fill no window are dropped.
    window : tuple of int
        Rows and columns of a window.
    pooling_stride : tuple of int or None
        Rows and columns from one window to the next; None: windows side by side.
    pooling_padding : tuple of int
        Rows and columns on each side that windows may reach beyond the image, at most half a
        window. They are left out of a maximum, and are zeros in a mean.
    ceil_mode : bool
        Whether a window of max-pooling may reach beyond the end, as torch's.
    source : int or None
        Number of the layer whose output it takes, -1 for the image; None: the layer before it.

    Notes
    -----
    Inputs and outputs are flat, in the order (channel, row, column).
    """

    weight: Floats
    bias: Floats
    shape: tuple[int, int, int]
    activation: str = "identity"
    slope: float = 0.01
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_value: Floats = field(default_factory=empty)
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)
    pooling_stride: tuple[int, int] | None = None
    pooling_padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    source: int | None = None

    def __post_init__(self) -> None:
        freeze(self, "weight", 4)
        freeze(self, "bias", 1)
        _check_activation(self)
        for name, length, minimum in (("shape", 3, 1), ("stride", 2, 1), ("padding", 2, 0)):
            check_integers(self, name, length, minimum)
        if self.source is not None:
            check_integers(self, "source", 0, -1)
        self.check_pooling()
        if not np.asarray(self.padding_value).size:
            object.__setattr__(self, "padding_value", np.zeros(self.shape[0], np.float32))
        freeze(self, "padding_value", 1)
        channels = self.weight.shape[1]
        if self.shape[0] != channels or len(self.padding_value) != channels:
            raise ValueError(
                f"shape and padding_value must have {channels} channels to fit the weight, got "
                f"{self.shape} and {len(self.padding_value)}"
            )
        if min(self.positions) < 1 or min(self.out_shape) < 1:
            raise ValueError(
                f"shape must hold the kernel and the window, got {self.shape} for a weight "
                f"{self.weight.shape}, padding {self.padding} and window {self.window}"
            )
        largest = max(self.inputs, len(self.weight) * math.prod(self.positions))
        if largest > MAX_VALUES:
            raise ValueError(
                f"a convolution must have at most {MAX_VALUES} values at its input and before the "
                f"pooling, got {largest}"
            )

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        sizes = zip(self.shape[1:], self.weight.shape[2:], self.stride, self.padding, strict=True)
        rows, columns = ((size + 2 * pad - k) // step + 1 for size, k, step, pad in sizes)
        return rows, columns

    @property
    def features(self) -> int:
        """Number of channels of the output."""
        return len(self.weight)

    @property
    def inputs(self) -> int:
        """Number of values of the input."""
        return math.prod(self.shape)

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the layers that it takes; empty: the layer before it."""
        return () if self.source is None else (self.source,)

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Shapes of what it takes."""
        return (self.shape,)

    @property
    def arrays(self) -> dict[str, Floats]:
        """The arrays by name: weight, bias and padding_value."""
        return {"weight": self.weight, "bias": self.bias, "padding_value": self.padding_value}

    @property
    def factors(self) -> tuple[Floats, Floats]:
        """The arrays of the compiled layer: weight and bias."""
        return self.weight, self.bias

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The arguments of the compiled layer beyond weight, bias and activation."""
        return (
            self.sources,
            "",
            self.shape,
            self.stride,
            self.padding,
            self.padding_value,
            *self.pooling_arguments,
        )

    def reversed(self, channels: int, outputs: bool) -> Convolution:
        """The same layer with its channels, and with ``outputs`` its features, in reverse order."""
        rows = slice(None, None, -1 if outputs else 1)
        return replace(
            self,
            weight=self.weight[rows, ::-1],
            bias=self.bias[rows],
            padding_value=self.padding_value[::-1],
        )


def check_integers(layer: Any, name: str, length: int, minimum: int) -> None:
    """Replace a tuple of integers, or one where ``length`` is 0, by a checked one."""
    argument = getattr(layer, name)
    arguments = tuple(argument) if length else (argument,)
    values = tuple(int(value) for value in arguments)
    count = length or 1
    fits = len(values) == count and values == arguments
    if not fits or min(values) < minimum or max(values) > MAX_VALUES:
        raise ValueError(
            f"{name} must be {count} integers >= {minimum} and <= {MAX_VALUES}, got {argument!r}"
        )
    object.__setattr__(layer, name, values if length else values[0])


def freeze(layer: Any, name: str, dims: int) -> None:
    """Replace an array of the layer by a checked copy in float32 that cannot be written to."""
    argument = np.asarray(getattr(layer, name))
    if argument.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64, got {argument.dtype}")
    if argument.ndim != dims or 0 in argument.shape:
        raise ValueError(f"{name} must have {dims} non-empty dimensions, got {argument.shape}")
    with np.errstate(over="ignore"):  # an overflow is reported just below
        array = np.array(argument, dtype=np.float32, order="C", copy=True)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite in float32")
    array.flags.writeable = False
    object.__setattr__(layer, name, array)


def _check_activation(layer: Layer | Convolution) -> None:
    if layer.bias.shape != layer.weight.shape[:1]:
        raise ValueError(
            f"bias must have shape ({layer.weight.shape[0]},) to fit the weight, "
            f"got {layer.bias.shape}"
        )
    check_function(layer)


def check_function(layer: Any) -> None:
    """Raise ValueError unless the activation and the slope of a layer are valid."""
    if layer.activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {layer.activation!r}")
    if not math.isfinite(layer.slope):
        raise ValueError(f"slope must be finite, got {layer.slope!r}")


class Unsupported(ValueError):
    """Raised for a torch module without a native form.

    Attributes
    ----------
    reason : str
        The module and why it has none.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
