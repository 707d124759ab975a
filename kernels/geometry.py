"""Places of a network's weights and activations: padded sizes and offsets, all in floats.

Layers are padded with zero weights to 16, 32, 64 or a multiple of 64 columns, the input to a
multiple of 128, so that every tile is whole. For each layer the packed weights hold the matrix
(out, in), its transpose and the bias. For a precision in `precision.SPLIT` the low part of a matrix
follows its high part. Activations of a row lie side by side, layer after layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advcore.network import ACTIVATIONS

from .precision import PRECISIONS, SPLIT, split

if TYPE_CHECKING:
    from advcore.network import Convolution, Layer, Network

INPUT_UNIT = 128
"""The input is padded to a multiple of so many columns, the widest tile."""
LIMIT = 2**31
"""Number of weights of a layer that is too large, as offsets inside a matrix are int32."""


def padded(width: int) -> int:
    """Return the number of columns of a layer of `width` units."""
    if width > 64:
        return -(-width // 64) * 64
    return max(16, 1 << (width - 1).bit_length())


def tile(columns: int, largest: int) -> int:
    """Return the widest tile, a power of two up to `largest`, that divides `columns`."""
    return min(largest, columns & -columns)


def offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the offset of each of these parts that follow each other, and the sum of the sizes."""
    return (0, *accumulate(sizes))


@dataclass(frozen=True)
class Geometry:
    """Sizes of a network.

    widths : number of inputs, then number of outputs of each layer.
    kinds : index in `ACTIVATIONS` of each layer.
    slopes : slope of each layer, which leaky_relu alone uses.
    parts : 1, or 2 for a precision in `precision.SPLIT`, whose weights are stored in two parts.
    """

    widths: tuple[int, ...]
    kinds: tuple[int, ...]
    slopes: tuple[float, ...]
    parts: int

    @staticmethod
    def from_network(network: Network, precision: str) -> Geometry:
        """Return the geometry of a network.

        Raises
        ------
        ValueError : the precision is unknown, or a layer is too large.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        layers = network.layers
        geometry = Geometry(
            (network.inputs, *(layer.outputs for layer in layers)),
            tuple(ACTIVATIONS.index(layer.activation) for layer in layers),
            tuple(layer.slope for layer in layers),
            2 if precision in SPLIT else 1,
        )
        if max(geometry.matrix_floats) >= LIMIT:
            raise ValueError(f"a layer may have 2^31 weights, got widths {geometry.widths}")
        return geometry

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.kinds)

    @property
    def ins(self) -> tuple[int, ...]:
        """Number of inputs of each layer."""
        return self.widths[:-1]

    @property
    def outs(self) -> tuple[int, ...]:
        """Number of outputs of each layer."""
        return self.widths[1:]

    @property
    def padded_outs(self) -> tuple[int, ...]:
        """Number of output columns of each layer, with the padding."""
        return tuple(map(padded, self.outs))

    @property
    def padded_ins(self) -> tuple[int, ...]:
        """Number of input columns of each layer, with the padding."""
        return (-(-self.widths[0] // INPUT_UNIT) * INPUT_UNIT, *self.padded_outs[:-1])

    @property
    def columns(self) -> tuple[int, ...]:
        """First column of each layer in a row of h or dh, and the number of floats of a row."""
        return offsets(self.padded_outs)

    @property
    def matrix_floats(self) -> tuple[int, ...]:
        """Number of floats of each padded matrix."""
        return tuple(i * o for i, o in zip(self.padded_ins, self.padded_outs, strict=True))

    @property
    def matrices(self) -> tuple[int, ...]:
        """Offset of each layer in the packed weights, and the size of all."""
        pairs = zip(self.matrix_floats, self.padded_outs, strict=True)
        return offsets([2 * self.parts * matrix + bias for matrix, bias in pairs])

    @property
    def transposes(self) -> tuple[int, ...]:
        """Offset of each transpose in the packed weights."""
        pairs = zip(self.matrices, self.matrix_floats, strict=False)
        return tuple(offset + self.parts * size for offset, size in pairs)

    @property
    def biases(self) -> tuple[int, ...]:
        """Offset of each bias in the packed weights."""
        pairs = zip(self.transposes, self.matrix_floats, strict=True)
        return tuple(offset + self.parts * size for offset, size in pairs)

    def moment_offsets(self, tiles: Sequence[int]) -> tuple[int, ...]:
        """Return the offset of each layer in a row of moments, and the number of floats of a row.

        tiles : columns of the tiles of each layer.
        """
        pairs = zip(self.padded_outs, tiles, strict=True)
        return offsets([2 * (columns // tile) for columns, tile in pairs])

    def pack(self, layers: Sequence[Layer | Convolution]) -> Tensor:
        """Return the packed weights of the network's layers on the CPU, one float32 tensor."""
        weights = torch.zeros(self.matrices[-1])
        places = zip(self.matrices, self.transposes, self.matrix_floats, self.biases, strict=False)
        for i, (layer, place) in enumerate(zip(layers, places, strict=True)):
            matrix, transpose, size, bias = place
            weight = torch.zeros(self.padded_outs[i], self.padded_ins[i])
            weight[: layer.outputs, : layer.inputs] = torch.tensor(layer.weight)
            for part in split(weight) if self.parts == 2 else (weight,):
                weights[matrix : matrix + size] = part.reshape(-1)
                weights[transpose : transpose + size] = part.T.reshape(-1)
                matrix, transpose = matrix + size, transpose + size
            weights[bias : bias + layer.outputs] = torch.tensor(layer.bias)
        return weights
