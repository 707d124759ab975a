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
        _freeze(self, "weight", 2)
        _freeze(self, "bias", 1)
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
    def geometry(self) -> None:
        """Always None; a `Convolution` has a tuple here."""
        return

    def reversed(self, channels: int, outputs: bool) -> Layer:
        """The same layer with its inputs in reverse order, in ``channels`` groups of equal size.

        The order inside a group stays. With ``outputs`` the outputs are in reverse order too.
        """
        rows = slice(None, None, -1 if outputs else 1)
        groups = self.weight.reshape(self.outputs, channels, -1)[rows, ::-1]
        weight = groups.reshape(self.weight.shape)
        return Layer(weight, self.bias[rows], self.activation, self.slope)


def _no_padding_value() -> Floats:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class Convolution:
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
        "none", or "max" or "mean" over windows side by side. Rows and columns that fill no window
        are dropped.
    window : tuple of int
        Rows and columns of a window.

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
    padding_value: Floats = field(default_factory=_no_padding_value)
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        _freeze(self, "weight", 4)
        _freeze(self, "bias", 1)
        _check_activation(self)
        for name, length, minimum in (
            ("shape", 3, 1),
            ("stride", 2, 1),
            ("padding", 2, 0),
            ("window", 2, 1),
        ):
            argument = getattr(self, name)
            values = tuple(int(value) for value in argument)
            fits = len(values) == length and values == tuple(argument)
            if not fits or min(values) < minimum or max(values) > MAX_VALUES:
                raise ValueError(
                    f"{name} must be {length} integers >= {minimum} and <= {MAX_VALUES}, "
                    f"got {argument!r}"
                )
            object.__setattr__(self, name, values)
        if not np.asarray(self.padding_value).size:
            object.__setattr__(self, "padding_value", np.zeros(self.shape[0], np.float32))
        _freeze(self, "padding_value", 1)
        channels = self.weight.shape[1]
        if self.shape[0] != channels or len(self.padding_value) != channels:
            raise ValueError(
                f"shape and padding_value must have {channels} channels to fit the weight, got "
                f"{self.shape} and {len(self.padding_value)}"
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}")
        if self.pooling == "none" and self.window != (1, 1):
            raise ValueError(f"window must be (1, 1) without pooling, got {self.window}")
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
    def out_shape(self) -> tuple[int, int, int]:
        """(features, height, width) of the output."""
        rows, columns = (n // w for n, w in zip(self.positions, self.window, strict=True))
        return len(self.weight), rows, columns

    @property
    def inputs(self) -> int:
        """Number of values of the input."""
        return math.prod(self.shape)

    @property
    def outputs(self) -> int:
        """Number of values of the output."""
        return math.prod(self.out_shape)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The arguments of the compiled layer beyond weight, bias and activation."""
        return (
            self.shape,
            self.stride,
            self.padding,
            self.padding_value,
            self.pooling,
            self.window,
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


def _freeze(layer: Layer | Convolution, name: str, dims: int) -> None:
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
