"""A whole round in one kernel: forward, margin loss and backward of a tile of rows.

A program has its rows to itself. Activations pass from layer to layer through memory that the
program's own threads have just written, which the L2 cache holds, with a barrier between. So every
product is one pipelined loop, and nothing limits the widths, the classes or the number of layers.
Activations in registers took 4 MB of machine code and 42 s of compilation for hidden layers of 512
units on sm_90, and too much shared memory. This takes 0.5 MB and 7 s.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .linear import (
    backward_tile,
    forward_tile,
    gradient_rows,
    half_widths,
    linear_backward_reference,
    linear_forward_reference,
    tile_rows,
    vector,
)
from .margin_loss import margin_loss_reference, margin_loss_rows, write_scales
from .slots import RECORD_SCALES, SIZE, TRIAL, TRIAL_GRADIENT

if TYPE_CHECKING:
    from advcore.network import Network


@triton.jit
def propagate(
    problems, ints, floats, longs, vectors, rows, count, temperatures, confidence, weights, scales,
    h, dh, moments,
    LAYERS: tl.constexpr, INS: tl.constexpr, OUTS: tl.constexpr, PADDED_INS: tl.constexpr,
    PADDED_OUTS: tl.constexpr, LOW_OFFSETS: tl.constexpr, MATRICES: tl.constexpr,
    TRANSPOSES: tl.constexpr, BIASES: tl.constexpr, KINDS: tl.constexpr, SLOPES: tl.constexpr,
    ROW: tl.constexpr, COLUMNS: tl.constexpr, MOMENTS: tl.constexpr, MOMENT_OFFSETS: tl.constexpr,
    BNS: tl.constexpr, BACK_BNS: tl.constexpr, BKS: tl.constexpr, BACK_BKS: tl.constexpr,
    KP: tl.constexpr, LOSS_BM: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Do a round of the listed rows ``BM * program + [0, BM)``.

    Each tuple of constants has an entry for each layer.
    """
    start = tl.program_id(0) * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, mask = tile_rows(rows, start, total, BM)
    record = tl.load(problems + slot * SIZE + RECORD_SCALES).to(tl.int32)
    for i in tl.static_range(LAYERS):
        source = vector(longs, vectors, slot, TRIAL) if i == 0 else h + row * ROW + COLUMNS[i - 1]
        d = half_widths(floats, scales, slot, i, LAYERS, KINDS[i])
        for first_column in range(0, PADDED_OUTS[i], BNS[i]):
            forward_tile(
                source, h + row * ROW + COLUMNS[i], dh + row * ROW + COLUMNS[i], d,
                moments + row * MOMENTS + MOMENT_OFFSETS[i] + 2 * (first_column // BNS[i]),
                record, mask, weights + MATRICES[i], weights + BIASES[i], first_column,
                INS[i], PADDED_INS[i], LOW_OFFSETS[i], OUTS[i], KINDS[i], SLOPES[i], i == 0,
                BM, BNS[i], BKS[i], PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
    write_scales(
        problems, slot, row, mask, scales, moments, LAYERS, OUTS, BNS, MOMENT_OFFSETS, MOMENTS
    )
    for first_row in range(0, BM, LOSS_BM):
        margin_loss_rows(
            problems, ints, floats, rows, start + first_row, total, temperatures, confidence, h, dh,
            OUTS[LAYERS - 1], PADDED_OUTS[LAYERS - 1], KP, KINDS[LAYERS - 1], ROW,
            COLUMNS[LAYERS - 1], LOSS_BM,
        )  # fmt: skip
    tl.debug_barrier()
    mask = gradient_rows(problems, slot, mask)
    if tl.max(mask.to(tl.int32)) == 0:
        return
    for i in tl.static_range(LAYERS - 1, 0, -1):
        for first_column in range(0, PADDED_INS[i], BACK_BNS[i]):
            backward_tile(
                dh + row * ROW + COLUMNS[i], dh + row * ROW + COLUMNS[i - 1], mask,
                weights + TRANSPOSES[i], first_column,
                OUTS[i], PADDED_OUTS[i], LOW_OFFSETS[i], INS[i], KINDS[i - 1], False,
                BM, BACK_BNS[i], BACK_BKS[i], PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
    gradient = vector(longs, vectors, slot, TRIAL_GRADIENT)
    for first_column in range(0, INS[0], BACK_BNS[0]):
        backward_tile(
            dh + row * ROW + COLUMNS[0], gradient, mask, weights + TRANSPOSES[0], first_column,
            OUTS[0], PADDED_OUTS[0], LOW_OFFSETS[0], INS[0], 0, True,
            BM, BACK_BNS[0], BACK_BKS[0], PRECISION,
        )  # fmt: skip


def propagate_reference(
    network: Network,
    x: NDArray[np.float32],
    problems: NDArray[Any],
    scales: NDArray[np.float32],
    temperatures: NDArray[np.float32],
    confidence: float,
    precision: str = "ieee",
    dtype: torch.dtype = torch.float32,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the logits (B, K) and the gradients (B, n) of a round of rows x (B, n), in `dtype`.

    The kernels write the gradients of some rows only, this function returns those of all.

    Parameters
    ----------
    problems : records of `slots.PROBLEM`, (B,), which are changed in place.
    scales : smoothing scales (B, layers), changed where a row's are to be recorded.
    temperatures : (schedules, stages), as fractions of a margin.
    confidence : the margin required, in logits.
    """
    h = torch.from_numpy(np.ascontiguousarray(x)).to(dtype)
    weights = [torch.tensor(layer.weight, dtype=dtype) for layer in network.dense_layers]
    derivatives = []
    for i, layer in enumerate(network.dense_layers):
        k = problems["k"]
        d = np.where(k > 0, k * np.where(k > 0, scales[:, i], 0), 0)
        h, dh, scale = linear_forward_reference(
            h, weights[i], torch.tensor(layer.bias, dtype=dtype), layer.activation, layer.slope,
            torch.from_numpy(d), precision,
        )  # fmt: skip
        derivatives.append(dh)
        scales[problems["record_scales"], i] = scale.numpy()[problems["record_scales"]]
    logits = h.numpy()
    dlogits = [
        margin_loss_reference(z, problem, temperatures, confidence)
        for z, problem in zip(logits, problems, strict=True)
    ]
    dz = torch.from_numpy(np.array(dlogits)) * derivatives[-1]
    for i in range(len(weights) - 1, 0, -1):
        dz = linear_backward_reference(dz, weights[i], derivatives[i - 1], precision)
    return logits, linear_backward_reference(dz, weights[0], None, precision).numpy()
