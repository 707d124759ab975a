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
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .kinds import find_kind
from .layers import KINKED, SATURATING, Convolution, Layer, Unsupported
from .safetensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FILE_FORMAT = "advcore.network.1"
"""Name of the file format for fully connected layers alone."""

CONVOLUTIONAL_FORMAT = "advcore.network.2"
"""Name of the file format with convolutions. It has its own, as readers of the first would fail."""


class Network:
    """A network from ``n`` inputs to ``K`` logits.

    Parameters
    ----------
    layers : sequence of Layer and Convolution
        At least one layer, convolutions first. Each takes the flat output of the layer before it.
        The last one gives K >= 2 logits; a convolution gives them at a single position.

    Raises
    ------
    TypeError, ValueError
        An entry is not a layer, or does not fit the one before it.

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
            source = self._layers[index - 1]
            if isinstance(layer, Convolution) and (
                not isinstance(source, Convolution) or source.out_shape != layer.shape
            ):
                raise ValueError(
                    f"layers[{index}] must follow a convolution that gives {layer.shape}, it "
                    f"follows one that gives {getattr(source, 'out_shape', source.outputs)}"
                )
            if layer.inputs != source.outputs:
                raise ValueError(
                    f"layers[{index}] must take {source.outputs} values, "
                    f"its weight has shape {layer.weight.shape}"
                )
        if self.classes < 2:
            raise ValueError("the last layer must give at least 2 logits, got 1")
        output = self._layers[-1]
        if isinstance(output, Convolution) and output.out_shape[1:] != (1, 1):
            raise ValueError(
                "the last layer must end at one position, this convolution gives "
                f"{output.out_shape}"
            )
        self._compiled: Any = None
        self._reordered: Network | None = None

    @property
    def layers(self) -> tuple[Layer | Convolution, ...]:
        """The layers, first to last."""
        return self._layers

    @property
    def convolutional(self) -> bool:
        """Whether any layer is a convolution."""
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
        """Kind of the activations, see `advcore.network.kinds`."""
        activations = {layer.activation for layer in self._layers}
        convolutions = [layer for layer in self._layers if isinstance(layer, Convolution)]
        return find_kind(
            on_maps=any(layer.activation in KINKED for layer in convolutions),
            kinked=bool(activations & set(KINKED)),
            saturating=bool(activations & set(SATURATING)),
            pooled=any(layer.pooling == "max" for layer in convolutions),
        )

    def unsquashed(self) -> Network:
        """The network without a sigmoid or tanh behind its logits; itself where there is none.

        It has the same decisions, and its gradient does not vanish where the logits are large.
        """
        last = self._layers[-1]
        if not isinstance(last, Layer) or last.activation not in SATURATING:
            return self
        return Network([*self._layers[:-1], Layer(last.weight, last.bias)])

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
        """Gradient (B, n) float32 of the last `forward` for ``dlogits`` (B, K): ``dlogits @ J``."""
        cotangent = np.ascontiguousarray(dlogits, dtype=np.float32)
        if cotangent.ndim != 2 or cotangent.shape[1] != self.classes:
            raise ValueError(f"dlogits must have shape (B, {self.classes}), got {cotangent.shape}")
        gradient: NDArray[np.float32] = self.core.backward(cotangent)
        return gradient

    @staticmethod
    def from_torch(module: object, input_shape: Sequence[int]) -> Network:
        """Lower a torch module by the operations that it runs; its weights are copied.

        Parameters
        ----------
        module : torch.nn.Module in eval mode
            Whatever its classes are, its forward runs fully connected layers and convolutions (one
            group, no dilation) one after the other, with activations of `ACTIVATIONS`, pooling by
            windows side by side, batch norm and other maps of each value by itself, and changes of
            the shape or the order of values. It is called on a gray image, and on noise, to see
            which operations it runs; nothing of it is changed.
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
            The module has no native form, and the error names the reason. Among the reasons are
            other operations, a forward that depends on the values of the image, a backward that is
            not the derivative of the forward, training mode, weights that are not float32 or
            float64, and non-finite weights.
        ValueError
            ``input_shape`` is empty, or an entry is not positive.
        """
        shape = tuple(int(extent) for extent in input_shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"input_shape must be positive integers, got {shape}")
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(module, torch.nn.Module):
            raise Unsupported(f"model ({type(module).__name__}): not a torch.nn.Module")
        from .reading.lower import lower

        layers = lower(module, shape)
        try:
            return Network(layers)
        except ValueError as error:
            raise Unsupported(str(error)) from error

    def forward_reordered(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, K) of ``x`` (B, n) from the same network with all units in reverse order.

        The sums run in another order, so that only rounding makes these logits differ from those of
        `forward`. In images the channels are reversed, not the pixels.
        """
        if self._reordered is None:
            layers: list[Layer | Convolution] = []
            for index, layer in enumerate(self._layers):
                source = self._layers[index - 1] if index else layer
                channels = layer.inputs
                if isinstance(source, Convolution):
                    channels = source.out_shape[0] if index else source.shape[0]
                layers.append(layer.reversed(channels, index + 1 < len(self._layers)))
            self._reordered = Network(layers)
        layer = self._layers[0]
        groups = layer.shape[0] if isinstance(layer, Convolution) else layer.inputs
        reversed_x = x.reshape(len(x), groups, -1)[:, ::-1]
        return self._reordered.forward(reversed_x.reshape(len(x), self.inputs))

    def to_torch(self) -> torch.nn.Sequential:
        """The same network as torch modules, float32 on the CPU, in eval mode."""
        from .to_torch import to_torch_modules

        return to_torch_modules(self._layers)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: ``layers.<i>.weight``, ``layers.<i>.bias`` and metadata.

        The metadata are ``format``, ``activations`` and ``slopes`` (JSON lists with one entry per
        layer), and the strings of the argument ``metadata``, for example a licence. Convolutions
        also have ``layers.<i>.padding_value`` and an entry in the list ``convolutions``. The file
        appears at ``path`` only when it is complete, and then takes the place of a former one.
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
        """Read a network from a file that `save` wrote.

        The file may come from anywhere: nothing of it is run, and all of it is checked.

        Raises
        ------
        ValueError
            The file is not one of these networks, or is damaged.
        OSError
            The file cannot be read.
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
            has_convolutions = notes["format"] == CONVOLUTIONAL_FORMAT
            convolutions = json.loads(notes["convolutions"]) if has_convolutions else []
            for index, (activation, slope) in enumerate(pairs):
                weight, bias = (tensors[f"layers.{index}.{part}"] for part in ("weight", "bias"))
                fields: dict[str, Any] = {"activation": str(activation), "slope": float(slope)}
                if index < len(convolutions):
                    fields |= convolutions[index]
                    fields["padding_value"] = tensors[f"layers.{index}.padding_value"]
                    layers.append(Convolution(weight, bias, **fields))
                else:
                    layers.append(Layer(weight, bias, **fields))
            return Network(layers)
        except Exception as error:  # A damaged file has texts of any kind in the place of numbers.
            raise ValueError(f"{path}: not a stored network: {error!r}") from error

    def __reduce__(self) -> tuple[type[Network], tuple[tuple[Layer | Convolution, ...]]]:
        return Network, (self._layers,)  # the compiled object is rebuilt where it is needed

    def __repr__(self) -> str:
        parts = [str(self.inputs)]
        for layer in self._layers:
            shape = "x".join(map(str, getattr(layer, "out_shape", (layer.outputs,))))
            pooling = getattr(layer, "pooling", "none")
            parts.append(f"{shape} {layer.activation}" + (f" {pooling}" * (pooling != "none")))
        return f"Network({' -> '.join(parts)})"
