"""One layer forward and backward for a tile of rows, and the kernels of one layer each.

Forward writes h = activation(W x + b), where x is the h of the layer before, and the derivative dh.
dz is the gradient at the pre-activations of a layer. Backward turns it into that of the layer
before, (dz W) * dh, which takes the place of dh. The gradient at the first layer's input goes into
the slots.

Both multiply by a matrix whose row holds the weights of one output column, as tensor cores need
their second operand. Forward multiplies by W (out, in), backward by its transpose. Columns beyond a
layer's width are padding. Their weights are 0, and their values are finite and not used.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .activation import IDENTITY, SMOOTHED, activate, activation_reference
from .precision import multiply, product
from .slots import (
    FINITE,
    LONGS,
    RECORD_SCALES,
    SIZE,
    SMOOTHING,
    TRIAL,
    TRIAL_GRADIENT,
    WANT_GRADIENT,
    WORDS,
)
from .standard_deviation import standard_deviation_reference, write_moments


@triton.jit
def tile_rows(rows, start, count, BM: tl.constexpr):
    """Return the rows and slots (BM), int64, of a tile, and a mask (BM) of those that exist.

    Where there are fewer than BM, the last row is repeated.
    """
    row = start + tl.arange(0, BM)
    mask = row < count
    row = tl.minimum(row, count - 1)
    return row.to(tl.int64), tl.load(rows + row).to(tl.int64), mask


@triton.jit
def vector(longs, vectors, slot, FIELD: tl.constexpr):
    """Return pointers (BM) to a vector of each slot, a multiple of 16 floats behind `vectors`."""
    distance = tl.load(longs + slot * LONGS + FIELD) - vectors.to(tl.int64)  # in bytes
    return vectors + tl.multiple_of(distance >> 2, 16)


@triton.jit
def half_widths(
    floats, scales, slot, LAYER: tl.constexpr, LAYERS: tl.constexpr, KIND: tl.constexpr
):
    """Return d (BM), k times the recorded scale of the layer. On the exact network it is 0."""
    k = tl.load(floats + slot * WORDS + SMOOTHING)
    d = k * 0.0
    if SMOOTHED[KIND]:
        d = tl.where(k > 0, k * tl.load(scales + slot * LAYERS + LAYER), 0.0)
    return d


@triton.jit
def forward_tile(
    source, h, dh, d, moments, record, mask, weights, bias, first_column,
    IN: tl.constexpr, STEP: tl.constexpr, LOW_OFFSET: tl.constexpr, OUT: tl.constexpr,
    KIND: tl.constexpr, SLOPE: tl.constexpr, IN_SLOTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the columns ``first_column + [0, BN)`` of a layer.

    source, h, dh, moments : pointers (BM) to the rows of the input, of the outputs and of the
        moments of this tile.
    d : half-widths of the smoothing (BM).
    record : int32 (BM), nonzero where the moments are to be written.
    weights : (out, STEP) row-major.
    IN_SLOTS : whether source is in the slots, where only whole groups of 16 floats that begin below
        IN may be read.
    """
    column = first_column + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, IN, BK):
        k = start + tl.arange(0, BK)
        if IN_SLOTS and IN % BK != 0:
            inside = (k < (IN + 15) // 16 * 16)[None, :]
            a = tl.load(source[:, None] + k[None, :], mask=inside, other=0.0)
            if IN % 16 != 0:
                a = tl.where((k < IN)[None, :], a, 0.0)
        else:
            a = tl.load(source[:, None] + k[None, :])
        acc = multiply(acc, a, weights + k[:, None] + column[None, :] * STEP, LOW_OFFSET, PRECISION)
    z = acc + tl.load(bias + column)[None, :]
    if tl.max(record) > 0:
        write_moments(z, moments, mask & (record > 0), first_column, OUT, BN)
    value, slope = activate(z, d[:, None], KIND, SLOPE)
    tl.store(h[:, None] + column[None, :], value, mask=mask[:, None])
    if KIND != IDENTITY:
        tl.store(dh[:, None] + column[None, :], slope, mask=mask[:, None])


@triton.jit
def backward_tile(
    source, target, mask, weights, first_column,
    IN: tl.constexpr, STEP: tl.constexpr, LOW_OFFSET: tl.constexpr, OUT: tl.constexpr,
    KIND: tl.constexpr, IN_SLOTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the columns ``first_column + [0, BN)`` of the gradient at a layer's input.

    source : pointers (BM) to the rows of dz, of IN columns.
    target : pointers (BM) to dh of the layer before, whose activation is KIND, or to the gradient
        in the slots, of OUT columns.
    weights : (out, STEP) row-major.
    IN_SLOTS : whether target is in the slots.
    """
    column = first_column + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, IN, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(source[:, None] + k[None, :])
        acc = multiply(acc, a, weights + k[:, None] + column[None, :] * STEP, LOW_OFFSET, PRECISION)
    pointers = target[:, None] + column[None, :]
    if IN_SLOTS:
        tl.store(pointers, acc, mask=mask[:, None] & (column < OUT)[None, :])
    else:
        if KIND != IDENTITY:
            acc = acc * tl.load(pointers)
        tl.store(pointers, acc, mask=mask[:, None])


@triton.jit
def gradient_rows(problems, slot, mask):
    """Return a mask (BM) of the rows that want a gradient and, by the margin loss, are finite."""
    base = problems + slot * SIZE
    return mask & (tl.load(base + WANT_GRADIENT) != 0) & (tl.load(base + FINITE) != 0)


@triton.jit
def linear_forward(
    problems, ints, floats, longs, vectors, rows, count, temperatures, confidence, weights, scales,
    h, dh, moments,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr,
    LOW_OFFSET: tl.constexpr, OUT: tl.constexpr, TILES: tl.constexpr, MATRIX: tl.constexpr,
    BIAS: tl.constexpr, ROW: tl.constexpr, SOURCE: tl.constexpr, COLUMN: tl.constexpr,
    MOMENT: tl.constexpr, MOMENTS: tl.constexpr, KIND: tl.constexpr, SLOPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a layer of every listed row.

    The program ``i * TILES + j`` has the tile i of rows and the tile j of columns.
    """
    start = tl.program_id(0) // TILES * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, mask = tile_rows(rows, start, total, BM)
    source = vector(longs, vectors, slot, TRIAL) if LAYER == 0 else h + row * ROW + SOURCE
    tile = tl.program_id(0) % TILES
    forward_tile(
        source, h + row * ROW + COLUMN, dh + row * ROW + COLUMN,
        half_widths(floats, scales, slot, LAYER, LAYERS, KIND),
        moments + row * MOMENTS + MOMENT + 2 * tile,
        tl.load(problems + slot * SIZE + RECORD_SCALES).to(tl.int32), mask,
        weights + MATRIX, weights + BIAS, tile * BN,
        IN, STEP, LOW_OFFSET, OUT, KIND, SLOPE, LAYER == 0, BM, BN, BK, PRECISION,
    )  # fmt: skip


@triton.jit
def linear_backward(
    problems, ints, floats, longs, vectors, rows, count, temperatures, confidence, weights, scales,
    h, dh, moments,
    LAYER: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr, LOW_OFFSET: tl.constexpr,
    OUT: tl.constexpr, TILES: tl.constexpr, MATRIX: tl.constexpr, ROW: tl.constexpr,
    COLUMN: tl.constexpr, TARGET: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient at a layer's input from its dz.

    It goes to the layer before or, for the first layer, into the slots.
    """
    start = tl.program_id(0) // TILES * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, mask = tile_rows(rows, start, total, BM)
    mask = gradient_rows(problems, slot, mask)
    if tl.max(mask.to(tl.int32)) == 0:
        return
    target = vector(longs, vectors, slot, TRIAL_GRADIENT) if LAYER == 0 else dh + row * ROW + TARGET
    backward_tile(
        dh + row * ROW + COLUMN, target, mask, weights + MATRIX,
        tl.program_id(0) % TILES * BN,
        IN, STEP, LOW_OFFSET, OUT, KIND, LAYER == 0, BM, BN, BK, PRECISION,
    )  # fmt: skip


def linear_forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor, kind: str, slope: float, d: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return h and dh (B, out) of a layer, and the standard deviation (B) of its pre-activations.

    x : (B, in)
    weight : (out, in)
    bias : (out,)
    d : half-widths of the smoothing (B,)
    """
    z = product(x, weight.T, precision) + bias
    h, dh = activation_reference(z, d, kind, slope)
    return h, dh, standard_deviation_reference(z)


def linear_backward_reference(
    dz: Tensor, weight: Tensor, dh: Tensor | None, precision: str
) -> Tensor:
    """Return the dz (B, in) of the layer before.

    dz : (B, out)
    weight : (out, in)
    dh : derivatives (B, in) of the layer before. None stands for the network's input.
    """
    gradient = product(dz, weight, precision)
    return gradient if dh is None else torch.mul(gradient, dh)
