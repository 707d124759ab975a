"""A whole round in one kernel: forward, head and backward of a tile of rows.

A program keeps its rows to itself, so what passes from layer to layer goes through memory that its
own threads have just written (the L2 cache holds it) with a barrier between. That leaves every
product in one pipelined loop, with no limit on the widths, the classes or the number of layers.
Activations kept in registers took 4 MB of machine code and 42 s of compilation for hidden layers of
512 units on sm_90, and too much shared memory; this takes 0.5 MB and 7 s.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .head import head_reference, head_rows, write_widths
from .linear import (
    backward_tile,
    forward_tile,
    half_widths,
    linear_backward_reference,
    linear_forward_reference,
    tile_rows,
    vector,
    wanted_rows,
)
from .slots import MEASURE, SIZE, TRIAL, TRIAL_GRADIENT

if TYPE_CHECKING:
    from advcore.network import Network


@triton.jit
def propagate(
    problems, ints, floats, longs, vectors, rows, count, fractions, confidence, weights, widths,
    h, dh, moments,
    LAYERS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr, PADDED_INS: tl.constexpr,
    PADDED_OUTS: tl.constexpr, LOWS: tl.constexpr, MATRICES: tl.constexpr,
    TRANSPOSES: tl.constexpr, BIASES: tl.constexpr, KINDS: tl.constexpr, SLOPES: tl.constexpr,
    ROW: tl.constexpr, COLUMNS: tl.constexpr, MOMENTS: tl.constexpr, AT: tl.constexpr,
    BNS: tl.constexpr, BACK_BNS: tl.constexpr, BKS: tl.constexpr, BACK_BKS: tl.constexpr,
    KP: tl.constexpr, HEAD_BM: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The listed rows ``BM * program + [0, BM)``; every tuple has an entry for each layer."""
    start = tl.program_id(0) * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, live = tile_rows(rows, start, total, BM)
    measured = tl.load(problems + slot * SIZE + MEASURE).to(tl.int32)
    for i in tl.static_range(LAYERS):
        source = vector(longs, vectors, slot, TRIAL) if i == 0 else h + row * ROW + COLUMNS[i - 1]
        half = half_widths(floats, widths, slot, i, LAYERS, KINDS[i])
        for first in range(0, PADDED_OUTS[i], BNS[i]):
            forward_tile(
                source, h + row * ROW + COLUMNS[i], dh + row * ROW + COLUMNS[i], half,
                moments + row * MOMENTS + AT[i] + 2 * (first // BNS[i]), measured, live,
                weights + MATRICES[i], weights + BIASES[i], first,
                INS[i], PADDED_INS[i], LOWS[i], OUTS[i], KINDS[i], SLOPES[i], i == 0,
                BM, BNS[i], BKS[i], PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
    write_widths(problems, slot, row, live, widths, moments, LAYERS, OUTS, BNS, AT, MOMENTS)
    for first in range(0, BM, HEAD_BM):
        head_rows(
            problems, ints, floats, rows, start + first, total, fractions, confidence, h, dh,
            OUTS[LAYERS - 1], PADDED_OUTS[LAYERS - 1], KP, KINDS[LAYERS - 1], ROW,
            COLUMNS[LAYERS - 1], HEAD_BM,
        )  # fmt: skip
    tl.debug_barrier()
    wanted = wanted_rows(problems, slot, live)
    if tl.max(wanted.to(tl.int32)) == 0:
        return
    for i in tl.static_range(LAYERS - 1, 0, -1):
        for first in range(0, PADDED_INS[i], BACK_BNS[i]):
            backward_tile(
                dh + row * ROW + COLUMNS[i], dh + row * ROW + COLUMNS[i - 1], wanted,
                weights + TRANSPOSES[i], first,
                OUTS[i], PADDED_OUTS[i], LOWS[i], INS[i], KINDS[i - 1], False,
                BM, BACK_BNS[i], BACK_BKS[i], PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
    gradient = vector(longs, vectors, slot, TRIAL_GRADIENT)
    for first in range(0, INS[0], BACK_BNS[0]):
        backward_tile(
            dh + row * ROW + COLUMNS[0], gradient, wanted, weights + TRANSPOSES[0], first,
            OUTS[0], PADDED_OUTS[0], LOWS[0], INS[0], 0, True,
            BM, BACK_BNS[0], BACK_BKS[0], PRECISION,
        )  # fmt: skip


def propagate_reference(
    network: Network,
    x: NDArray[np.float32],
    problems: NDArray[Any],
    widths: NDArray[np.float32],
    fractions: NDArray[np.float32],
    confidence: float,
    precision: str = "ieee",
    dtype: torch.dtype = torch.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The round of rows x (B, n): logits (B, K) and gradients (B, n), of `dtype`.

    problems (B): records of `slots.PROBLEM`, changed in place, as is widths (B, layers) where a
    row is measured. Gradients are for every row: the kernels write those that are wanted.
    """
    h = torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    weights = [torch.tensor(layer.weight, dtype=dtype) for layer in network.layers]
    derivatives = []
    for i, layer in enumerate(network.layers):
        k = problems["k"]
        half = np.where(k > 0, k * np.where(k > 0, widths[:, i], 0), 0)
        h, dh, spread = linear_forward_reference(
            h, weights[i], torch.tensor(layer.bias, dtype=dtype), layer.activation, layer.slope,
            torch.from_numpy(half), precision,
        )  # fmt: skip
        derivatives.append(dh)
        widths[problems["measure"], i] = spread.numpy()[problems["measure"]]
    logits = h.numpy()
    seeds = [
        head_reference(z, problem, fractions, confidence)
        for z, problem in zip(logits, problems, strict=True)
    ]
    dz = torch.from_numpy(np.array(seeds)) * derivatives[-1]
    for i in range(len(weights) - 1, 0, -1):
        dz = linear_backward_reference(dz, weights[i], derivatives[i - 1], precision)
    return logits, linear_backward_reference(dz, weights[0], None, precision).numpy()
