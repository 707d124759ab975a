"""One-image oracles of the reference, with logits and gradients but no cache and no batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from ..network import Convolution, Layer, Merge, Network
from ..oracles import NumpyModel, NumpyOracle, TorchOracle

Vector = NDArray[np.float64]


class ReferenceOracle(Protocol):
    """Evaluates one flat image: its logits, then a vector-Jacobian product at the same point.

    Attributes
    ----------
    kind : str
        "numpy" or "torch".
    inputs, classes : int
    """

    kind: str
    inputs: int
    classes: int

    def forward(self, x: Vector) -> NDArray[Any]:
        """Return logits (K,) of ``x`` (n,) float64. The next call may overwrite them."""
        ...

    def backward(self, dlogits: NDArray[Any]) -> NDArray[Any]:
        """Return the gradient (n,) of ``dlogits @ logits``. The next call may overwrite it."""
        ...


class NumpyNetwork:
    """A network in NumPy for one image at a time, as fast as NumPy allows.

    Weights are in ``dtype`` and C order, and buffers are allocated once. Both directions are one
    BLAS gemv per fully connected layer on the same array. On one core and in float64, 784 -> 100
    takes 7.5 us forward and 7.8 us backward. With a transposed second copy it took 8.3 us.

    Parameters
    ----------
    network : Network
    dtype : numpy float type
        float64, or float32 for half the memory traffic.
    """

    kind = "numpy"

    def __init__(
        self, network: Network, dtype: type[np.float64] | type[np.float32] = np.float64
    ) -> None:
        if not isinstance(network, Network):
            raise TypeError(f"network must be an advcore.Network, got {type(network).__name__}")
        self.inputs = network.inputs
        self.classes = network.classes
        self._dtype = np.dtype(dtype)
        self._layers: list[_NumpyLayer | _NumpyMerge] = []
        for layer in network.layers:
            if isinstance(layer, Layer):
                self._layers.append(_NumpyLayer(layer, self._dtype))
            elif isinstance(layer, Convolution):
                self._layers.append(_NumpyConvolution(layer, self._dtype))
            else:
                self._layers.append(_NumpyMerge(layer, self._dtype))
        self._sources = [network.sources(index) for index in range(len(self._layers))]

    def forward(self, x: Vector) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        values: list[NDArray[Any]] = [x if x.dtype == self._dtype else x.astype(self._dtype)]
        for layer, sources in zip(self._layers, self._sources, strict=True):
            values.append(layer.forward(*(values[source + 1] for source in sources)))
        return values[-1]

    def backward(self, dlogits: NDArray[Any]) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        d = dlogits if dlogits.dtype == self._dtype else dlogits.astype(self._dtype)
        gradients: dict[int, NDArray[Any]] = {len(self._layers) - 1: d}
        for index in reversed(range(len(self._layers))):
            parts = self._layers[index].backward(gradients.pop(index))
            for source, part in zip(self._sources[index], parts, strict=True):
                gradients[source] = gradients[source] + part if source in gradients else part
        return gradients[-1]


class _Activation:
    """An activation and its buffers.

    h, a, d : pre-activation, activation, gradient at h.
    """

    def __init__(
        self, layer: Layer | Convolution | Merge, outputs: int, dtype: np.dtype[Any]
    ) -> None:
        self.name = layer.activation
        self.slope = layer.slope
        self.h = np.empty(outputs, dtype)
        self.a = self.h if layer.activation == "identity" else np.empty(outputs, dtype)
        self.d = np.empty(outputs, dtype)
        special = require("scipy.special", "reference", "advcore.reference")
        self.expit: Callable[..., NDArray[Any]] = special.expit
        self.ndtr: Callable[..., NDArray[Any]] = special.ndtr

    def through_activation(self, d: NDArray[Any]) -> NDArray[Any]:
        if self.name == "identity":
            return d
        np.multiply(d, self.derivative(), out=self.d)
        return self.d

    def activate(self) -> NDArray[Any]:
        h, a = self.h, self.a
        if self.name == "relu":
            np.maximum(h, 0, out=a)
        elif self.name == "leaky_relu":
            np.multiply(h, np.where(h > 0, 1, self.slope), out=a)
        elif self.name == "sigmoid":
            self.expit(h, out=a)
        elif self.name == "tanh":
            np.tanh(h, out=a)
        elif self.name == "softplus":
            np.logaddexp(0, h, out=a)
        elif self.name == "gelu":
            np.multiply(h, self.ndtr(h), out=a)
        elif self.name == "gelu_tanh":
            np.multiply(0.5 * h, 1 + np.tanh(_gelu_argument(h)), out=a)
        return a

    def derivative(self) -> NDArray[Any]:
        h, a = self.h, self.a
        result: NDArray[Any]
        if self.name == "relu":
            result = h > 0
        elif self.name == "leaky_relu":
            result = np.where(h > 0, 1, self.slope)
        elif self.name == "sigmoid":
            result = a * (1 - a)
        elif self.name == "tanh":
            result = 1 - a * a
        elif self.name == "softplus":
            result = self.expit(h)
        elif self.name == "gelu":
            result = self.ndtr(h) + h * np.exp(-0.5 * h * h) / math.sqrt(2 * math.pi)
        else:
            t = np.tanh(_gelu_argument(h))
            inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * h * h)
            result = 0.5 * (1 + t) + 0.5 * h * (1 - t * t) * inner
        return result


class _NumpyLayer(_Activation):
    """The weights and buffers of a layer; dx is the gradient at its input."""

    def __init__(self, layer: Layer | Convolution, dtype: np.dtype[Any]) -> None:
        weight = np.ascontiguousarray(layer.weight, dtype)
        outputs = layer.outputs
        if isinstance(layer, Convolution):  # the outputs of all positions, one after the other
            weight = np.ascontiguousarray(weight.reshape(len(layer.bias), -1))
            outputs = math.prod(layer.positions) * len(layer.bias)
        super().__init__(layer, outputs, dtype)
        self.weight = weight
        self.bias = layer.bias.astype(dtype)
        self.dx = np.empty(layer.inputs, dtype)

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        np.dot(self.weight, x, out=self.h)
        self.h += self.bias
        return self.activate()

    def backward(self, d: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        np.dot(self.through_activation(d), self.weight, out=self.dx)
        return (self.dx,)


class _NumpyConvolution(_NumpyLayer):
    """A convolution as one matrix product with the patches of all positions."""

    def __init__(self, layer: Convolution, dtype: np.dtype[Any]) -> None:
        super().__init__(layer, dtype)
        self.layer = layer
        pads = ((0, 0), *((pad, pad) for pad in layer.padding))
        values = layer.padding_value.astype(dtype)[:, None, None]
        self.padded = np.pad(np.zeros(layer.shape, dtype), pads) + values
        inside = [
            slice(pad, pad + n) for pad, n in zip(layer.padding, layer.shape[1:], strict=True)
        ]
        self.inside = (slice(None), *inside)
        self.pooling = _NumpyPooling(layer)

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        layer = self.layer
        self.padded[self.inside] = x.reshape(layer.shape)
        positions = np.lib.stride_tricks.sliding_window_view(
            self.padded, layer.weight.shape[2:], axis=(1, 2)
        )
        patches = positions[:, :: layer.stride[0], :: layer.stride[1]].transpose(0, 3, 4, 1, 2)
        np.dot(self.weight, patches.reshape(self.weight.shape[1], -1), out=self._maps(self.h))
        self._maps(self.h)[...] += self.bias[:, None]
        return self.pooling.forward(self.activate())

    def backward(self, d: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        layer = self.layer
        spread = self.pooling.backward(d)
        patches = self.weight.T @ self._maps(self.through_activation(spread))
        dx = np.zeros_like(self.padded)
        kernel = layer.weight.shape[2:]
        parts = patches.reshape(-1, *kernel, *layer.positions)
        for y, x in np.ndindex(*kernel):
            ends = [
                i + s * n for i, s, n in zip((y, x), layer.stride, layer.positions, strict=True)
            ]
            place = (slice(y, ends[0], layer.stride[0]), slice(x, ends[1], layer.stride[1]))
            dx[(slice(None), *place)] += parts[:, y, x]
        self.dx[...] = dx[self.inside].ravel()
        return (self.dx,)

    def _maps(self, flat: NDArray[Any]) -> NDArray[Any]:
        return flat.reshape(len(self.bias), -1)


class _NumpyMerge(_Activation):
    """A sum or a concatenation, the map of each channel, and what follows."""

    def __init__(self, layer: Merge, dtype: np.dtype[Any]) -> None:
        super().__init__(layer, layer.inputs, dtype)
        self.layer = layer
        self.scale, self.shift = (
            np.repeat(array.astype(dtype), math.prod(layer.positions))
            for array in (layer.scale, layer.shift)
        )
        self.pooling = _NumpyPooling(layer)

    def forward(self, *values: NDArray[Any]) -> NDArray[Any]:
        whole = sum(values) if self.layer.how == "sum" else np.concatenate(values)
        self.h[...] = self.scale * whole + self.shift
        return self.pooling.forward(self.activate())

    def backward(self, d: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        gradient = self.scale * self.through_activation(self.pooling.backward(d))
        if self.layer.how == "sum":
            return (gradient,) * len(self.layer.sources)
        ends = np.cumsum([math.prod(shape) for shape in self.layer.shapes])
        return tuple(np.split(gradient, ends[:-1]))


class _NumpyPooling:
    """The pooling of an image (features, rows, columns), flat, by an index of its windows."""

    def __init__(self, layer: Convolution | Merge) -> None:
        self.kind = layer.pooling
        self.shape = (layer.features, math.prod(layer.positions))
        # The places of each window, with the number of positions for those outside the image.
        places = np.full((*layer.out_shape[1:], *layer.window), self.shape[1])
        for y, x, i, j in np.ndindex(*places.shape):
            row, column = (
                n * step + offset - pad
                for n, step, offset, pad in zip(
                    (y, x), layer.window_step, (i, j), layer.pooling_padding, strict=True
                )
            )
            if 0 <= row < layer.positions[0] and 0 <= column < layer.positions[1]:
                places[y, x, i, j] = row * layer.positions[1] + column
        self.places = places.reshape(math.prod(layer.out_shape[1:]), -1)
        self.largest: NDArray[Any] = np.empty(0, np.int64)

    def forward(self, a: NDArray[Any]) -> NDArray[Any]:
        if self.kind == "none":
            return a
        outside = -np.inf if self.kind == "max" else 0.0
        maps = np.pad(a.reshape(self.shape), ((0, 0), (0, 1)), constant_values=outside)
        values = maps[:, self.places]
        self.largest = values.argmax(axis=2)
        pooled: NDArray[Any] = values.max(axis=2) if self.kind == "max" else values.mean(axis=2)
        return pooled.ravel()

    def backward(self, d: NDArray[Any]) -> NDArray[Any]:
        if self.kind == "none":
            return d
        maps = np.zeros((self.shape[0], self.shape[1] + 1), d.dtype)
        windows, size = self.places.shape
        spread = d.reshape(self.shape[0], windows)
        for j in range(size):
            part = spread * (self.largest == j) if self.kind == "max" else spread / size
            np.add.at(maps.T, self.places[:, j], part.T)
        return maps[:, :-1].ravel()


def _gelu_argument(h: NDArray[Any]) -> NDArray[Any]:
    argument: NDArray[Any] = math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h)
    return argument


class TorchModel:
    """A torch module or callable in its own precision, one image at a time.

    The cost is that of a library of separate torch calls. Each evaluation is a batch of one with
    float32 logits and gradients, and converts between NumPy and torch.
    """

    kind = "torch"

    def __init__(self, module: Callable[..., Any], image_shape: Sequence[int]) -> None:
        self._rows = _Rows(TorchOracle(module, image_shape))
        self.inputs = math.prod(image_shape)
        self.classes = self._rows.oracle.classes

    def forward(self, x: Vector) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        return self._rows.forward(x)

    def backward(self, dlogits: NDArray[Any]) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        return self._rows.backward(dlogits)


class NumpyObject:
    """An object with NumPy ``forward`` and ``backward`` of batches, one image at a time."""

    kind = "numpy"

    def __init__(self, model: NumpyModel, image_shape: Sequence[int]) -> None:
        self._rows = _Rows(NumpyOracle(model, image_shape))
        self.inputs = math.prod(image_shape)
        self.classes = self._rows.oracle.classes

    def forward(self, x: Vector) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        return self._rows.forward(x)

    def backward(self, dlogits: NDArray[Any]) -> NDArray[Any]:
        """See `ReferenceOracle`."""
        return self._rows.backward(dlogits)


class _Rows:
    """A batch oracle that is called with one row."""

    def __init__(self, oracle: NumpyOracle | TorchOracle) -> None:
        self.oracle = oracle

    def forward(self, x: Vector) -> NDArray[Any]:
        logits: NDArray[Any] = self.oracle.forward(x.astype(np.float32)[None])[0]
        return logits

    def backward(self, dlogits: NDArray[Any]) -> NDArray[Any]:
        gradient: NDArray[Any] = self.oracle.backward(dlogits.astype(np.float32)[None])[0]
        return gradient


def as_reference_oracle(model: Any, image_shape: Sequence[int]) -> ReferenceOracle:
    """Return the reference oracle of a model.

    A reference oracle is returned as it is. A `Network` is evaluated in float64. Torch and NumPy
    models are wrapped.

    Raises
    ------
    TypeError
        ``model`` is none of these.
    ValueError
        The images do not have the number of values that the oracle takes.
    """
    oracle: ReferenceOracle
    if isinstance(model, (NumpyNetwork, TorchModel, NumpyObject)):
        oracle = model
    elif isinstance(model, Network):
        oracle = NumpyNetwork(model)
    elif not callable(model) and hasattr(model, "forward") and hasattr(model, "backward"):
        oracle = NumpyObject(model, image_shape)
    elif callable(model):
        oracle = TorchModel(model, image_shape)
    else:
        raise TypeError(
            "model must be an advcore.Network, a torch module or callable, or an object with "
            f"forward and backward, got {type(model).__name__}"
        )
    if oracle.inputs != math.prod(image_shape):
        raise ValueError(
            f"images must have {oracle.inputs} values each for this model, "
            f"got shape {tuple(image_shape)}"
        )
    return oracle
