"""Fully connected networks that the compiled engine runs by itself.

A `Network` is a list of `Layer`s ``h -> activation(weight @ h + bias)``. It is built from arrays,
from a recognised torch module (`Network.from_torch`) or from a file (`Network.load`). Importing
this file imports neither torch nor the compiled module.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .tensorfile import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

    from .torch_modules import Normalize
else:

    def __getattr__(name: str) -> Any:
        if name == "Normalize":  # a torch module: made when asked for
            from .torch_modules import Normalize

            return Normalize
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ACTIVATIONS", "Layer", "Network", "Normalize", "Unsupported"]

ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "softplus",
    "gelu",
    "gelu_tanh",
)
"""Names shared with the engine; ``gelu`` is the exact form with erf, ``gelu_tanh`` torch's."""

KINKED = ("relu", "leaky_relu")
SATURATING = ("sigmoid", "tanh")
"""These two families have a smoothed form in the engine."""

FILE_FORMAT = "advcore.network.1"


class Unsupported(ValueError):
    """A torch module that has no native form; ``reason`` names the module and says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Layer:
    """``h -> activation(weight @ h + bias)``.

    Attributes
    ----------
    weight : ndarray, shape (out, in), float32
    bias : ndarray, shape (out,), float32
        Both are copied (float64 is rounded) and made read-only.
    activation : str
        One of `ACTIVATIONS`.
    slope : float
        Slope of ``leaky_relu`` below zero; unused by the others.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    activation: str = "identity"
    slope: float = 0.01

    def __post_init__(self) -> None:
        for name, dims in (("weight", 2), ("bias", 1)):
            given = np.asarray(getattr(self, name))
            if given.dtype not in (np.float32, np.float64):
                raise TypeError(f"{name} must be float32 or float64, got {given.dtype}")
            if given.ndim != dims or 0 in given.shape:
                raise ValueError(f"{name} must have {dims} non-empty dimensions, got {given.shape}")
            with np.errstate(over="ignore"):  # an overflow is reported just below
                array = np.array(given, dtype=np.float32, order="C", copy=True)
            if not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite in float32")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.bias.shape != self.weight.shape[:1]:
            raise ValueError(
                f"bias must have shape ({self.weight.shape[0]},) to fit the weight, "
                f"got {self.bias.shape}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if not math.isfinite(self.slope):
            raise ValueError(f"slope must be finite, got {self.slope!r}")

    @property
    def inputs(self) -> int:
        """Width of the input."""
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        """Width of the output."""
        return int(self.weight.shape[0])


class Network:
    """A fully connected network: ``n`` inputs to ``K`` logits.

    Parameters
    ----------
    layers : sequence of Layer
        At least one; each takes what the one before it gives; the last gives K >= 2 logits.

    Notes
    -----
    `forward` and `backward` make it a plain NumPy model. The compiled object behind them is built
    on the first call and remembers the last forward, so one network serves one thread at a time.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)
        if not self._layers:
            raise ValueError("layers must hold at least one Layer, got none")
        for index, layer in enumerate(self._layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{index}] must be a Layer, got {type(layer).__name__}")
            if index and layer.inputs != self._layers[index - 1].outputs:
                raise ValueError(
                    f"layers[{index}] must take {self._layers[index - 1].outputs} values, "
                    f"its weight has shape {layer.weight.shape}"
                )
        if self.classes < 2:
            raise ValueError("the last layer must give at least 2 logits, got 1")
        self.plans: dict[str, Any] = {}  # of GPUs: `cuda_network` keeps them
        self._compiled: Any = None
        self._mirror: Network | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, first to last."""
        return self._layers

    @property
    def inputs(self) -> int:
        """Number n of input values."""
        return self._layers[0].inputs

    @property
    def classes(self) -> int:
        """Number K of logits."""
        return self._layers[-1].outputs

    @property
    def kind(self) -> str:
        """What the engine smooths at first, and how.

        "kinked" where any activation is piecewise linear, "saturating" where any other is a
        sigmoid or tanh, else "smooth".
        """
        used = {layer.activation for layer in self._layers}
        if used & set(KINKED):
            return "kinked"
        return "saturating" if used & set(SATURATING) else "smooth"

    @property
    def core(self) -> Any:
        """The compiled network, built on first use."""
        if self._compiled is None:
            from . import _core

            self._compiled = _core.Network(
                [(layer.weight, layer.bias, layer.activation, layer.slope) for layer in self.layers]
            )
        return self._compiled

    def forward(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Logits (B, K) of inputs (B, n), or (B, ...) with n values an image; float32."""
        array = np.asarray(x)
        if array.dtype.kind != "f":
            raise TypeError(f"x must be floating point, got {array.dtype}")
        if array.ndim < 2 or math.prod(array.shape[1:]) != self.inputs:
            raise ValueError(f"x must have shape (B, {self.inputs}), got {array.shape}")
        rows = np.ascontiguousarray(array.reshape(len(array), self.inputs), dtype=np.float32)
        logits: NDArray[np.float32] = self.core.forward(rows)
        return logits

    def backward(self, dlogits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Pull (B, K) back through the last `forward`: gradient (B, n), float32."""
        seed = np.ascontiguousarray(dlogits, dtype=np.float32)
        if seed.ndim != 2 or seed.shape[1] != self.classes:
            raise ValueError(f"dlogits must have shape (B, {self.classes}), got {seed.shape}")
        gradient: NDArray[np.float32] = self.core.backward(seed)
        return gradient

    @staticmethod
    def from_torch(module: object, input_shape: Sequence[int]) -> Network:
        """Lower a fully connected torch module; its weights are copied.

        Parameters
        ----------
        module : torch.nn.Module in eval mode
            Nested `Sequential` of `Linear`, `Flatten`, `Identity`, `Dropout`, `ReLU`, `LeakyReLU`,
            `Sigmoid`, `Tanh`, `Softplus` (beta 1, threshold 20), `GELU`, `BatchNorm1d`,
            `BatchNorm2d` before the flatten, `Normalize` and torchvision's `Normalize`. Only these
            exact types: the forward of anything else is unknown.
        input_shape : sequence of int
            Shape of one image, without the batch.

        Returns
        -------
        Network
            Normalisations are folded, in float64, into the Linear beside them and the result is
            rounded to float32. A single logit z becomes two classes with logits (0, z).

        Raises
        ------
        Unsupported
            With the module and the reason. Hooks, parametrizations, training mode, weights that
            are not float32 or float64, and non-finite weights are among the reasons.
        """
        from .lowering import lower

        return Network(lower(module, tuple(int(extent) for extent in input_shape)))

    def reversed(self) -> Network:
        """The same function of ``x[:, ::-1]``, with its sums in another order; classes stay."""
        if self._mirror is None:
            layers = []
            for index, layer in enumerate(self._layers):
                step = 1 if index + 1 == len(self._layers) else -1
                weight, bias = layer.weight[::step, ::-1], layer.bias[::step]
                layers.append(Layer(weight, bias, layer.activation, layer.slope))
            self._mirror = Network(layers)
        return self._mirror

    def to_torch(self) -> torch.nn.Sequential:
        """The same network as torch modules, float32 on the CPU, in eval mode."""
        import torch
        from torch import nn

        modules: list[nn.Module] = [nn.Flatten()]
        for layer in self._layers:
            linear = nn.Linear(layer.inputs, layer.outputs, device="meta")  # no random numbers
            linear.weight = nn.Parameter(torch.tensor(layer.weight))
            linear.bias = nn.Parameter(torch.tensor(layer.bias))
            modules.append(linear)
            if layer.activation != "identity":
                modules.append(_torch_activation(layer))
        return nn.Sequential(*modules).eval()

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: ``layers.<i>.weight``, ``layers.<i>.bias`` and metadata.

        ``metadata`` adds strings of the caller's (training, licence) beside ``format``,
        ``activations`` and ``slopes`` (JSON lists, one entry per layer).
        """
        tensors: dict[str, NDArray[np.float32]] = {}
        for index, layer in enumerate(self._layers):
            tensors[f"layers.{index}.weight"] = layer.weight
            tensors[f"layers.{index}.bias"] = layer.bias
        notes = dict(metadata or {})
        notes["format"] = FILE_FORMAT
        notes["activations"] = json.dumps([layer.activation for layer in self._layers])
        notes["slopes"] = json.dumps([layer.slope for layer in self._layers])
        write_tensors(path, tensors, notes)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Network:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            The file is not one of these networks.
        """
        tensors, notes = read_tensors(path)
        if notes.get("format") != FILE_FORMAT:
            raise ValueError(
                f"{path}: metadata 'format' must be {FILE_FORMAT!r}, got {notes.get('format')!r}"
            )
        layers = []
        try:
            pairs = zip(json.loads(notes["activations"]), json.loads(notes["slopes"]), strict=True)
            for index, (activation, slope) in enumerate(pairs):
                weight, bias = (tensors[f"layers.{index}.{part}"] for part in ("weight", "bias"))
                layers.append(Layer(weight, bias, str(activation), float(slope)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a stored network: {error!r}") from error
        return Network(layers)

    def __reduce__(self) -> tuple[type[Network], tuple[tuple[Layer, ...]]]:
        return Network, (self._layers,)  # the compiled object is rebuilt where it is needed

    def __repr__(self) -> str:
        parts = [str(self.inputs)]
        parts += [f"{layer.outputs} {layer.activation}" for layer in self._layers]
        return f"Network({' -> '.join(parts)})"


def _torch_activation(layer: Layer) -> torch.nn.Module:
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
