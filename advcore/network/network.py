"""Networks that the compiled engine runs by itself.

A `Network` is a graph of `Convolution`s and `Merge`s, if any, and then a chain of `Layer`s
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
from .layers import (
    KINKED,
    SATURATING,
    Convolution,
    Layer,
    Unsupported,
)
from .merge import AnyLayer, Merge
from .safetensors import read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

FILE_FORMAT = "advcore.network.1"
"""Name of the file format for fully connected layers alone."""

CONVOLUTIONAL_FORMAT = "advcore.network.2"
"""Name of the file format with convolutions. It has its own, as readers of the first would fail."""

GRAPH_FORMAT = "advcore.network.3"
"""Name of the file format of networks with what the second does not have: layers that do not take
the one before them, merges, and pooling by windows that overlap or are padded."""

_POOLING_FIELDS = ("pooling", "window", "pooling_stride", "pooling_padding", "ceil_mode")
_FIELDS = ("shape", "stride", "padding", "pooling", "window")


class Network:
    """A network from ``n`` inputs to ``K`` logits.

    Parameters
    ----------
    layers : sequence of Layer, Convolution and Merge
        At least one layer, those of images first. Each takes the flat output of the layer before
        it, or of its sources, which come before it. All but the last are taken by another. The
        last one gives K >= 2 logits; a convolution gives them at a single position.

    Raises
    ------
    TypeError, ValueError
        An entry is not a layer, or does not fit the one before it.

    Notes
    -----
    `forward` and `backward` make it a plain NumPy model. The compiled object behind them is built
    on the first call and remembers the last forward, so one network serves one thread at a time.
    """

    def __init__(self, layers: Sequence[AnyLayer]) -> None:
        self._layers = tuple(layers)
        if not self._layers:
            raise ValueError("layers must hold at least one Layer, got none")
        for index, layer in enumerate(self._layers):
            if not isinstance(layer, (Layer, Convolution, Merge)):
                raise TypeError(f"layers[{index}] must be a Layer, got {type(layer).__name__}")
            self._check_sources(index, layer)
        self._check_readers()
        if self.classes < 2:
            raise ValueError("the last layer must give at least 2 logits, got 1")
        output = self._layers[-1]
        if isinstance(output, Merge):
            raise ValueError("the last layer must be a Layer or a Convolution, got a Merge")
        if isinstance(output, Convolution) and output.out_shape[1:] != (1, 1):
            raise ValueError(
                "the last layer must end at one position, this convolution gives "
                f"{output.out_shape}"
            )
        self._compiled: Any = None
        self._reordered: Network | None = None

    def _check_sources(self, index: int, layer: AnyLayer) -> None:
        """Raise unless the layer takes what its sources give."""
        if isinstance(layer, Layer):
            if index > 0 and layer.inputs != self._layers[index - 1].outputs:
                raise ValueError(
                    f"layers[{index}] must take {self._layers[index - 1].outputs} values, "
                    f"its weight has shape {layer.weight.shape}"
                )
            return
        for source, shape in zip(self.sources(index), layer.shapes, strict=True):
            if source >= index:
                raise ValueError(f"layers[{index}] must take earlier layers, it takes {source}")
            before = self._layers[source] if source >= 0 else None
            given = self.image_shape if before is None else getattr(before, "out_shape", None)
            if given != shape:
                raise ValueError(
                    f"layers[{index}] must follow a convolution that gives {shape}, it "
                    f"follows one that gives {given or getattr(before, 'outputs', None)}"
                )

    def _check_readers(self) -> None:
        """Raise unless every layer is taken by another, and with one value around its image."""
        borders: dict[int, NDArray[np.float32]] = {}
        taken: set[int] = set()
        for index, layer in enumerate(self._layers):
            taken.update(self.sources(index))
            if not isinstance(layer, Convolution) or not any(layer.padding):
                continue
            (source,) = self.sources(index)
            if not np.array_equal(borders.setdefault(source, layer.padding_value),
                                  layer.padding_value):  # fmt: skip
                raise ValueError(
                    f"layers[{index}] must have the padding_value of the other convolutions that "
                    f"take layers[{source}]"
                )
        unread = set(range(len(self._layers) - 1)) - taken
        if unread:
            raise ValueError(f"layers[{min(unread)}] must be taken by a later layer")

    def sources(self, index: int) -> tuple[int, ...]:
        """Numbers of the layers whose outputs layer ``index`` takes; -1: the image."""
        layer = self._layers[index]
        return (index - 1,) if isinstance(layer, Layer) else layer.sources or (index - 1,)

    @property
    def layers(self) -> tuple[AnyLayer, ...]:
        """The layers, first to last."""
        return self._layers

    @property
    def convolutional(self) -> bool:
        """Whether any layer is a convolution."""
        return not isinstance(self._layers[0], Layer)

    @property
    def dense_layers(self) -> tuple[Layer, ...]:
        """The layers of a chain of fully connected ones; ValueError for another network."""
        layers = tuple(layer for layer in self._layers if isinstance(layer, Layer))
        if len(layers) < len(self._layers) or not self.is_chain:
            raise ValueError(f"network must be a chain of fully connected layers, got {self!r}")
        return layers

    @property
    def is_chain(self) -> bool:
        """Whether each layer takes the one before it, and pooling is by windows side by side."""
        return all(
            isinstance(layer, Layer)
            or (
                isinstance(layer, Convolution)
                and layer.source in (None, index - 1)
                and (layer.pooling_stride or layer.window) == layer.window
                and not any(layer.pooling_padding)
                and not layer.ceil_mode
            )
            for index, layer in enumerate(self._layers)
        )

    @property
    def convolution_weights(self) -> int:
        """Number of weights of the convolutions."""
        return sum(each.weight.size for each in self._layers if isinstance(each, Convolution))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the image, or (n,)."""
        first = self._layers[0]
        return (first.inputs,) if isinstance(first, Layer) else first.shapes[0]

    @property
    def inputs(self) -> int:
        """Number n of input values."""
        return math.prod(self.image_shape)

    @property
    def classes(self) -> int:
        """Number K of logits."""
        return self._layers[-1].outputs

    @property
    def kind(self) -> str:
        """Kind of the activations, see `advcore.network.kinds`."""
        activations = {layer.activation for layer in self._layers}
        maps = [layer for layer in self._layers if not isinstance(layer, Layer)]
        return find_kind(
            on_maps=any(layer.activation in KINKED for layer in maps),
            kinked=bool(activations & set(KINKED)),
            saturating=bool(activations & set(SATURATING)),
            pooled=any(layer.pooling == "max" for layer in maps),
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
                    (*layer.factors, layer.activation, layer.slope, layer.geometry)
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
            Whatever its classes are, its forward runs convolutions (one group, no dilation), sums
            of images and concatenations of their channels, and then fully connected layers one
            after the other, with activations of `ACTIVATIONS`, max- and mean pooling, batch norm
            and other maps of each value by itself, and changes of the shape or the order of values.
            It is called on a gray image, and on noise, to see which operations it runs; nothing of
            it is changed.
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
            layers: list[AnyLayer] = []
            for index, layer in enumerate(self._layers):
                source = self._layers[index - 1] if index else None
                groups = self.image_shape if source is None else getattr(source, "out_shape", ())
                channels = groups[0] if groups else layer.inputs
                layers.append(layer.reversed(channels, index + 1 < len(self._layers)))
            self._reordered = Network(layers)
        groups = self.image_shape[0]
        reversed_x = x.reshape(len(x), groups, -1)[:, ::-1]
        return self._reordered.forward(reversed_x.reshape(len(x), self.inputs))

    def to_torch(self) -> torch.nn.Sequential:
        """The same network as torch modules, float32 on the CPU, in eval mode."""
        from .to_torch import to_torch_modules

        return to_torch_modules(self)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file: ``layers.<i>.weight``, ``layers.<i>.bias`` and metadata.

        The metadata are ``format``, ``activations`` and ``slopes`` (JSON lists with one entry per
        layer), and the strings of the argument ``metadata``, for example a licence. Convolutions
        also have ``layers.<i>.padding_value`` and an entry in the list ``convolutions``, and so
        have merges, with ``layers.<i>.scale`` and ``layers.<i>.shift`` as their tensors. The file
        appears at ``path`` only when it is complete, and then takes the place of a former one.
        """
        tensors = {
            f"layers.{index}.{name}": array
            for index, layer in enumerate(self._layers)
            for name, array in layer.arrays.items()
        }
        notes = dict(metadata or {})
        notes["format"] = FILE_FORMAT
        if self.convolutional:
            fields: tuple[str, ...] = _FIELDS
            notes["format"] = CONVOLUTIONAL_FORMAT
            if not self.is_chain:
                fields = ("source", "shape", "stride", "padding", *_POOLING_FIELDS)
                notes["format"] = GRAPH_FORMAT
            merged = ("sources", "shapes", "how", *_POOLING_FIELDS)
            notes["convolutions"] = json.dumps(
                [
                    {
                        name: getattr(layer, name)
                        for name in (merged if isinstance(layer, Merge) else fields)
                    }
                    for layer in self._layers
                    if not isinstance(layer, Layer)
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
        formats = (FILE_FORMAT, CONVOLUTIONAL_FORMAT, GRAPH_FORMAT)
        if notes.get("format") not in formats:
            raise ValueError(
                f"{path}: metadata 'format' must be one of {formats}, got {notes.get('format')!r}"
            )
        layers: list[AnyLayer] = []
        try:
            pairs = zip(json.loads(notes["activations"]), json.loads(notes["slopes"]), strict=True)
            has_images = notes["format"] != FILE_FORMAT
            images = json.loads(notes["convolutions"]) if has_images else []
            for index, (activation, slope) in enumerate(pairs):
                fields: dict[str, Any] = {"activation": str(activation), "slope": float(slope)}
                kind: type[AnyLayer] = Layer
                names = ["weight", "bias"]
                if index < len(images):
                    fields |= images[index]
                    kind, names = Convolution, [*names, "padding_value"]
                    if "sources" in fields:
                        kind, names = Merge, ["scale", "shift"]
                fields |= {name: tensors[f"layers.{index}.{name}"] for name in names}
                layers.append(kind(**fields))
            return Network(layers)
        except Exception as error:  # A damaged file has texts of any kind in the place of numbers.
            raise ValueError(f"{path}: not a stored network: {error!r}") from error

    def __reduce__(self) -> tuple[type[Network], tuple[tuple[AnyLayer, ...]]]:
        return Network, (self._layers,)  # the compiled object is rebuilt where it is needed

    def __repr__(self) -> str:
        parts = [str(self.inputs)]
        for index, layer in enumerate(self._layers):
            shape = "x".join(map(str, getattr(layer, "out_shape", (layer.outputs,))))
            pooling = getattr(layer, "pooling", "none")
            part = f"{shape} {layer.activation}" + (f" {pooling}" * (pooling != "none"))
            if self.sources(index) != (index - 1,):
                part += f" of {', '.join(map(str, self.sources(index)))}"
            parts.append(part)
        return f"Network({' -> '.join(parts)})"
