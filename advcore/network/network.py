"""Networks that the compiled engine runs by itself.

A `Network` is a chain of `Convolution`s, if any, and then of `Layer`s
``h -> activation(weight @ h + bias)``. It is built from arrays, from a recognised torch module
(`Network.from_torch`) or from a file (`Network.load`). Importing this file imports neither torch
nor the compiled module.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .layers import KINKED, SATURATING, Convolution, Layer, Unsupported
from .safetensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch


FILE_FORMAT = "advcore.network.1"
CONVOLUTIONAL_FORMAT = "advcore.network.2"
"""Of a file with convolutions, which readers of the first do not know."""


class Network:
    """A network: ``n`` inputs to ``K`` logits.

    Parameters
    ----------
    layers : sequence of Layer and Convolution
        At least one; each takes what the one before it gives, flat; convolutions come first; the
        last gives K >= 2 logits, a convolution at a single position.

    Notes
    -----
    `forward` and `backward` make it a plain NumPy model. The compiled object behind them is built
    on the first call and remembers the last forward, so one network serves one thread at a time.
    """

    def __init__(self, layers: Sequence[Layer | Convolution]) -> None:
        self._layers = tuple(layers)
        if not self._layers:
            raise ValueError("layers must hold at least one Layer, got none")
        for index, layer in enumerate(self._layers):
            if not isinstance(layer, (Layer, Convolution)):
                raise TypeError(f"layers[{index}] must be a Layer, got {type(layer).__name__}")
            if index == 0:
                continue
            before = self._layers[index - 1]
            if isinstance(layer, Convolution) and (
                not isinstance(before, Convolution) or before.out_shape != layer.shape
            ):
                raise ValueError(
                    f"layers[{index}] must follow a convolution that gives {layer.shape}, it "
                    f"follows one that gives {getattr(before, 'out_shape', before.outputs)}"
                )
            if layer.inputs != before.outputs:
                raise ValueError(
                    f"layers[{index}] must take {before.outputs} values, "
                    f"its weight has shape {layer.weight.shape}"
                )
        if self.classes < 2:
            raise ValueError("the last layer must give at least 2 logits, got 1")
        last = self._layers[-1]
        if isinstance(last, Convolution) and last.out_shape[1:] != (1, 1):
            raise ValueError(
                f"the last layer must end at one position, this convolution gives {last.out_shape}"
            )
        self._compiled: Any = None
        self._reordered: Network | None = None

    @property
    def layers(self) -> tuple[Layer | Convolution, ...]:
        """The layers, first to last."""
        return self._layers

    @property
    def convolutional(self) -> bool:
        """Whether there are convolutions among them."""
        return isinstance(self._layers[0], Convolution)

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

        "convolutional" where a convolution has a piecewise linear activation; else "kinked" where
        any layer has; else "saturating" where any has a sigmoid or tanh; else "convolutional" where
        there is max-pooling; else "smooth".
        """
        used = {layer.activation for layer in self._layers}
        convolutions = [layer for layer in self._layers if isinstance(layer, Convolution)]
        if any(layer.activation in KINKED for layer in convolutions):
            return "convolutional"
        if used & set(KINKED):
            return "kinked"
        if used & set(SATURATING):
            return "saturating"
        pooled = any(layer.pooling == "max" for layer in convolutions)
        return "convolutional" if pooled else "smooth"

    @property
    def core(self) -> Any:
        """The compiled network, built on first use."""
        if self._compiled is None:
            from .. import _core

            self._compiled = _core.Network(
                [
                    (layer.weight, layer.bias, layer.activation, layer.slope, layer.geometry)
                    for layer in self.layers
                ]
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
        """Lower a torch module that is a chain of known layers; its weights are copied.

        Parameters
        ----------
        module : torch.nn.Module in eval mode
            Nested `Sequential` of `Linear`, `Conv2d` (one group, no dilation, zero padding),
            `MaxPool2d`, `AvgPool2d` and `AdaptiveAvgPool2d` with windows side by side, `Flatten`,
            `Unflatten`, `Identity`, `Dropout`, `Dropout2d`, `ReLU`, `LeakyReLU`, `Sigmoid`, `Tanh`,
            `Softplus` (beta 1, threshold 20), `GELU`, `BatchNorm1d`, `BatchNorm2d`, `Normalize` and
            torchvision's `Normalize`. Only these exact types: the forward of anything else is
            unknown.
        input_shape : sequence of int
            Shape of one image, without the batch.

        Returns
        -------
        Network
            Normalisations are folded, in float64, into the Linear or Conv2d beside them and the
            result is rounded to float32. A single logit z becomes two classes with logits (0, z).

        Raises
        ------
        Unsupported
            With the module and the reason. Hooks, parametrizations, training mode, weights that
            are not float32 or float64, and non-finite weights are among the reasons.
        """
        from .lowering import lower

        layers = lower(module, tuple(int(extent) for extent in input_shape))
        try:
            return Network(layers)
        except ValueError as error:
            raise Unsupported(str(error)) from error

    def forward_reordered(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K) of ``x`` (B, n) from the same network with all units in reverse.

        Its sums are in another order, so that the difference to `forward` is rounding alone. In
        images only the channels are reversed.
        """
        if self._reordered is None:
            layers: list[Layer | Convolution] = []
            for index, layer in enumerate(self._layers):
                before = self._layers[index - 1] if index else layer
                images = before if isinstance(before, Convolution) else None
                channels = layer.inputs
                if images is not None:
                    channels = images.out_shape[0] if index else images.shape[0]
                layers.append(layer.reversed(channels, index + 1 < len(self._layers)))
            self._reordered = Network(layers)
        first = self._layers[0]
        groups = first.shape[0] if isinstance(first, Convolution) else first.inputs
        reversed_x = x.reshape(len(x), groups, -1)[:, ::-1]
        return self._reordered.forward(reversed_x.reshape(len(x), self.inputs))

    def to_torch(self) -> torch.nn.Sequential:
        """The same network as torch modules, float32 on the CPU, in eval mode."""
        from .to_torch import raised

        return raised(self._layers)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: ``layers.<i>.weight``, ``layers.<i>.bias`` and metadata.

        ``metadata`` adds strings of the caller's (training, licence) beside ``format``,
        ``activations`` and ``slopes`` (JSON lists, one entry per layer). Convolutions also have
        ``layers.<i>.padding_value`` and an entry in the list ``convolutions``.
        """
        tensors: dict[str, NDArray[np.float32]] = {}
        for index, layer in enumerate(self._layers):
            tensors[f"layers.{index}.weight"] = layer.weight
            tensors[f"layers.{index}.bias"] = layer.bias
            if isinstance(layer, Convolution):
                tensors[f"layers.{index}.padding_value"] = layer.padding_value
        notes = dict(metadata or {})
        notes["format"] = CONVOLUTIONAL_FORMAT if self.convolutional else FILE_FORMAT
        if self.convolutional:
            fields = ("shape", "stride", "padding", "pooling", "window")
            notes["convolutions"] = json.dumps(
                [
                    {name: getattr(layer, name) for name in fields}
                    for layer in self._layers
                    if isinstance(layer, Convolution)
                ]
            )
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
        if notes.get("format") not in (FILE_FORMAT, CONVOLUTIONAL_FORMAT):
            raise ValueError(
                f"{path}: metadata 'format' must be {FILE_FORMAT!r} or {CONVOLUTIONAL_FORMAT!r}, "
                f"got {notes.get('format')!r}"
            )
        layers: list[Layer | Convolution] = []
        try:
            pairs = zip(json.loads(notes["activations"]), json.loads(notes["slopes"]), strict=True)
            images = notes["format"] == CONVOLUTIONAL_FORMAT
            convolutions = json.loads(notes["convolutions"]) if images else []
            for index, (activation, slope) in enumerate(pairs):
                weight, bias = (tensors[f"layers.{index}.{part}"] for part in ("weight", "bias"))
                about: dict[str, Any] = {"activation": str(activation), "slope": float(slope)}
                if index < len(convolutions):
                    about |= convolutions[index]
                    about["padding_value"] = tensors[f"layers.{index}.padding_value"]
                    layers.append(Convolution(weight, bias, **about))
                else:
                    layers.append(Layer(weight, bias, **about))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a stored network: {error!r}") from error
        return Network(layers)

    def __reduce__(self) -> tuple[type[Network], tuple[tuple[Layer | Convolution, ...]]]:
        return Network, (self._layers,)  # the compiled object is rebuilt where it is needed

    def __repr__(self) -> str:
        parts = [str(self.inputs)]
        for layer in self._layers:
            shape = "x".join(map(str, getattr(layer, "out_shape", (layer.outputs,))))
            pooled = getattr(layer, "pooling", "none")
            parts.append(f"{shape} {layer.activation}" + (f" {pooled}" * (pooled != "none")))
        return f"Network({' -> '.join(parts)})"
