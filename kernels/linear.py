"""One layer forward and backward for a tile of rows, and the kernels of one layer each.

Forward writes h = activation(W h_before + b) and the derivative dh. Backward turns dz of a layer,
the gradient at its pre-activations, into dz of the layer before it: (dz W) * dh, in the place of
dh; the gradient of the first layer goes into the slots.

Both multiply by a matrix whose row holds the weights of one output column, as tensor cores want
their second operand: forward by W (out, in), backward by its transpose. Columns beyond a layer's
width are padding: their weights are 0 and what they hold is finite and not used.
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
    MEASURE,
    SIZE,
    SMOOTHING,
    TRIAL,
    TRIAL_GRADIENT,
    WANT_GRADIENT,
    WORDS,
)
from .spread import spread_reference, write_moments


@triton.jit
def tile_rows(rows, start, count, BM: tl.constexpr):
    """Rows and slots (BM), int64, of a tile, and which are live: the rest repeat the last."""
    row = start + tl.arange(0, BM)
    live = row < count
    row = tl.minimum(row, count - 1)
    return row.to(tl.int64), tl.load(rows + row).to(tl.int64), live


@triton.jit
def vector(longs, vectors, slot, FIELD: tl.constexpr):
    """Pointers (BM) to a vector of each slot: a multiple of 16 floats behind `vectors`."""
    behind = tl.load(longs + slot * LONGS + FIELD) - vectors.to(tl.int64)
    return vectors + tl.multiple_of(behind >> 2, 16)


@triton.jit
def half_widths(
    floats, widths, slot, LAYER: tl.constexpr, LAYERS: tl.constexpr, KIND: tl.constexpr
):
    """Half-width d (BM) of the smoothing: k * widths[slot, LAYER]; 0 on the exact network."""
    k = tl.load(floats + slot * WORDS + SMOOTHING)
    half = k * 0.0
    if SMOOTHED[KIND]:
        half = tl.where(k > 0, k * tl.load(widths + slot * LAYERS + LAYER), 0.0)
    return half


@triton.jit
def forward_tile(
    source, h, dh, half, moments, measured, live, weights, bias, first,
    IN: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr, OUT: tl.constexpr,
    KIND: tl.constexpr, SLOPE: tl.constexpr, GATHERED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Columns ``first + [0, BN)`` of a layer.

    source, h, dh, moments (BM): pointers to the rows of the input, of the outputs and of the
    moments of this tile. weights: (out, STEP) row-major. GATHERED: source is in the slots, where
    only whole groups of 16 floats that begin below IN may be read.
    """
    column = first + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, IN, BK):
        k = start + tl.arange(0, BK)
        if GATHERED and IN % BK != 0:
            inside = (k < (IN + 15) // 16 * 16)[None, :]
            a = tl.load(source[:, None] + k[None, :], mask=inside, other=0.0)
            if IN % 16 != 0:
                a = tl.where((k < IN)[None, :], a, 0.0)
        else:
            a = tl.load(source[:, None] + k[None, :])
        acc = multiply(acc, a, weights + k[:, None] + column[None, :] * STEP, LOW, PRECISION)
    z = acc + tl.load(bias + column)[None, :]
    if tl.max(measured) > 0:
        write_moments(z, moments, live & (measured > 0), first, OUT, BN)
    value, slope = activate(z, half[:, None], KIND, SLOPE)
    tl.store(h[:, None] + column[None, :], value, mask=live[:, None])
    if KIND != IDENTITY:
        tl.store(dh[:, None] + column[None, :], slope, mask=live[:, None])


@triton.jit
def backward_tile(
    source, target, live, weights, first,
    IN: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr, OUT: tl.constexpr,
    KIND: tl.constexpr, GATHERED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Columns ``first + [0, BN)`` of the gradient at a layer's input.

    source (BM): pointers to the rows of dz (IN columns); target (BM): to dh of the layer before,
    of activation KIND, or to the slots (GATHERED, OUT columns). weights: (out, STEP) row-major.
    """
    column = first + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, IN, BK):
        k = start + tl.arange(0, BK)
        a = tl.load(source[:, None] + k[None, :])
        acc = multiply(acc, a, weights + k[:, None] + column[None, :] * STEP, LOW, PRECISION)
    at = target[:, None] + column[None, :]
    if GATHERED:
        tl.store(at, acc, mask=live[:, None] & (column < OUT)[None, :])
    else:
        if KIND != IDENTITY:
            acc = acc * tl.load(at)
        tl.store(at, acc, mask=live[:, None])


@triton.jit
def wanted_rows(problems, slot, live):
    """Rows (BM) whose gradient is wanted and whose logits were finite; after the head."""
    base = problems + slot * SIZE
    return live & (tl.load(base + WANT_GRADIENT) != 0) & (tl.load(base + FINITE) != 0)


@triton.jit
def linear_forward(
    problems, ints, floats, longs, vectors, rows, count, fractions, confidence, weights, widths,
    h, dh, moments,
    LAYER: tl.constexpr, LAYERS: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr,
    LOW: tl.constexpr, OUT: tl.constexpr, TILES: tl.constexpr, MATRIX: tl.constexpr,
    BIAS: tl.constexpr, ROW: tl.constexpr, BEFORE: tl.constexpr, COLUMN: tl.constexpr,
    MOMENT: tl.constexpr, MOMENTS: tl.constexpr, KIND: tl.constexpr, SLOPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Layer LAYER of every listed row; program ``i * TILES + j`` has row tile i, column tile j."""
    start = tl.program_id(0) // TILES * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, live = tile_rows(rows, start, total, BM)
    source = vector(longs, vectors, slot, TRIAL) if LAYER == 0 else h + row * ROW + BEFORE
    tile = tl.program_id(0) % TILES
    forward_tile(
        source, h + row * ROW + COLUMN, dh + row * ROW + COLUMN,
        half_widths(floats, widths, slot, LAYER, LAYERS, KIND),
        moments + row * MOMENTS + MOMENT + 2 * tile,
        tl.load(problems + slot * SIZE + MEASURE).to(tl.int32), live,
        weights + MATRIX, weights + BIAS, tile * BN,
        IN, STEP, LOW, OUT, KIND, SLOPE, LAYER == 0, BM, BN, BK, PRECISION,
    )  # fmt: skip


@triton.jit
def linear_backward(
    problems, ints, floats, longs, vectors, rows, count, fractions, confidence, weights, widths,
    h, dh, moments,
    LAYER: tl.constexpr, IN: tl.constexpr, STEP: tl.constexpr, LOW: tl.constexpr,
    OUT: tl.constexpr, TILES: tl.constexpr, MATRIX: tl.constexpr, ROW: tl.constexpr,
    COLUMN: tl.constexpr, AFTER: tl.constexpr, KIND: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dz of layer LAYER to the layer before it or, for the first, into the slots."""
    start = tl.program_id(0) // TILES * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, live = tile_rows(rows, start, total, BM)
    wanted = wanted_rows(problems, slot, live)
    if tl.max(wanted.to(tl.int32)) == 0:
        return
    target = vector(longs, vectors, slot, TRIAL_GRADIENT) if LAYER == 0 else dh + row * ROW + AFTER
    backward_tile(
        dh + row * ROW + COLUMN, target, wanted, weights + MATRIX,
        tl.program_id(0) % TILES * BN,
        IN, STEP, LOW, OUT, KIND, LAYER == 0, BM, BN, BK, PRECISION,
    )  # fmt: skip


def linear_forward_reference(
    x: Tensor, weight: Tensor, bias: Tensor, kind: str, slope: float, half: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, in), weight (out, in), bias (out), half (B) -> h, dh (B, out), spread of z (B)."""
    z = product(x, weight.T, precision) + bias
    h, dh = activation_reference(z, half, kind, slope)
    return h, dh, spread_reference(z)


def linear_backward_reference(
    dz: Tensor, weight: Tensor, dh: Tensor | None, precision: str
) -> Tensor:
    """dz (B, out), dh (B, in) of the layer before or None -> its dz (B, in)."""
    g = product(dz, weight, precision)
    return g if dh is None else torch.mul(g, dh)
