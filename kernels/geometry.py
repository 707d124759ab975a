"""Where a network's weights and activations lie: padded sizes and offsets, all in floats.

Layers are padded with zero weights to 16, 32, 64 or a multiple of 64 columns, the input to a
multiple of 128, so that every tile is whole. For each layer the packed weights hold the matrix
(out, in), its transpose and the bias; where a precision wants them in two parts, the small part of
a matrix follows the large one. Activations of a row lie side by side, layer after layer.
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
    from advcore.network import Network

INPUT_UNIT = 128  # the widest tile of columns
LIMIT = 2**31  # offsets inside a matrix are int32


def padded(width: int) -> int:
    """Columns of a layer of `width` units."""
    if width > 64:
        return -(-width // 64) * 64
    return max(16, 1 << (width - 1).bit_length())


def tile(columns: int, largest: int) -> int:
    """The widest tile, a power of two up to `largest`, that divides `columns`."""
    return min(largest, columns & -columns)


def starts(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where each begins, and in the end their sum."""
    return (0, *accumulate(sizes))


@dataclass(frozen=True)
class Geometry:
    """Sizes of a network: `widths` (inputs, then outputs of each layer), kinds, slopes."""

    widths: tuple[int, ...]
    kinds: tuple[int, ...]
    slopes: tuple[float, ...]
    parts: int  # of the weights: 1, or 2 for a precision in SPLIT

    @staticmethod
    def of(network: Network, precision: str) -> Geometry:
        """The geometry of a network in a precision."""
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
        return len(self.kinds)

    @property
    def ins(self) -> tuple[int, ...]:
        return self.widths[:-1]

    @property
    def outs(self) -> tuple[int, ...]:
        return self.widths[1:]

    @property
    def padded_outs(self) -> tuple[int, ...]:
        return tuple(map(padded, self.outs))

    @property
    def padded_ins(self) -> tuple[int, ...]:
        return (-(-self.widths[0] // INPUT_UNIT) * INPUT_UNIT, *self.padded_outs[:-1])

    @property
    def columns(self) -> tuple[int, ...]:
        """First column of each layer in the rows of h and dh; in the end the floats of a row."""
        return starts(self.padded_outs)

    @property
    def matrix_floats(self) -> tuple[int, ...]:
        return tuple(i * o for i, o in zip(self.padded_ins, self.padded_outs, strict=True))

    @property
    def matrices(self) -> tuple[int, ...]:
        """Offset of each layer in the packed weights; in the end their size."""
        pairs = zip(self.matrix_floats, self.padded_outs, strict=True)
        return starts([2 * self.parts * matrix + bias for matrix, bias in pairs])

    @property
    def transposes(self) -> tuple[int, ...]:
        pairs = zip(self.matrices, self.matrix_floats, strict=False)
        return tuple(at + self.parts * matrix for at, matrix in pairs)

    @property
    def biases(self) -> tuple[int, ...]:
        pairs = zip(self.transposes, self.matrix_floats, strict=True)
        return tuple(at + self.parts * matrix for at, matrix in pairs)

    def moments(self, tiles: Sequence[int]) -> tuple[int, ...]:
        """First moments of each layer in a row of them, for tiles of so many columns."""
        pairs = zip(self.padded_outs, tiles, strict=True)
        return starts([2 * (columns // tile) for columns, tile in pairs])

    def pack(self, network: Network) -> Tensor:
        """The packed weights on the CPU: one float32 tensor."""
        out = torch.zeros(self.matrices[-1])
        places = zip(self.matrices, self.transposes, self.matrix_floats, self.biases, strict=False)
        for i, (layer, place) in enumerate(zip(network.layers, places, strict=True)):
            matrix, transpose, size, bias = place
            whole = torch.zeros(self.padded_outs[i], self.padded_ins[i])
            whole[: layer.outputs, : layer.inputs] = torch.tensor(layer.weight)
            for part in split(whole) if self.parts == 2 else (whole,):
                out[matrix : matrix + size] = part.reshape(-1)
                out[transpose : transpose + size] = part.T.reshape(-1)
                matrix, transpose = matrix + size, transpose + size
            out[bias : bias + layer.outputs] = torch.tensor(layer.bias)
        return out
