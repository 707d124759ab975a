"""The margin loss, row by row: margin, log-odds and dlogits from logits.

It is the twin of csrc/solver/margin_loss.h. Margin and log-odds go into the slots. dlogits, the
gradient of the log-odds by the logits, times the derivative of the last layer, goes where the
backward pass begins. Where a logit is not finite, only the field `finite` is written.
The terms of a squashing function are not here: such a network runs through torch on a GPU.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
import triton
import triton.language as tl
from numpy.typing import NDArray

from .activation import IDENTITY
from .linear import tile_rows
from .slots import (
    CLASS_INDEX,
    CLEAN_MARGIN,
    EXCLUDED_CLASSES,
    EXCLUSIONS,
    FINITE,
    FROM_MARGIN,
    LOG_ODDS,
    MARGIN,
    PREDICTION,
    RECORD_SCALES,
    REQUIRED_MARGIN,
    RIVAL_CLASS,
    ROUNDING,
    RUNNER_UP,
    SCHEDULE,
    SCHEDULES,
    SIZE,
    STAGE,
    STAGES,
    TARGETED,
    TEMPERATURE,
    TEMPERATURE_RULE,
    WORDS,
)
from .standard_deviation import write_standard_deviation

PAD = tl.constexpr(-1e30)
"""kPadLogit of csrc/problem.h."""
MASKED = tl.constexpr(100.0)
"""kMasked of csrc/solver/margin_loss.h."""
EPS = tl.constexpr(1.1920929e-7)
"""The float32 machine epsilon."""


@triton.jit
def _largest(z, column, K: tl.constexpr):
    """Return the largest of each row (BM), and its first column or, if none has it, K - 1."""
    value = tl.max(z, 1)
    equal = (z == value[:, None]) & (column < K - 1)
    return value, tl.min(tl.where(equal, column, K - 1), 1)


@triton.jit
def margin_loss_tile(
    z, slot, mask, problems, ints, floats, temperatures, confidence,
    K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """Return the dlogits (BM, KP) of z (BM, KP), of which K columns are logits.

    slot, mask : (BM), the slots of the rows, and whether they are to be written.
    """
    words = slot * WORDS
    column = tl.arange(0, KP)[None, :]
    is_logit = column < K
    z = tl.where(z < PAD, PAD, z)  # Models mask classes by -infinity.
    finite = tl.sum(tl.where(is_logit, z - z, 0.0), 1) == 0  # z - z is 0 or NaN.
    flag = problems + slot * SIZE + FINITE
    tl.store(flag, finite.to(tl.int8), mask=mask)
    z = tl.where(is_logit, z, PAD)

    index = tl.load(ints + words + CLASS_INDEX)
    is_index = column == index[:, None]
    z_index = tl.sum(tl.where(is_index, z, 0.0), 1)
    z = tl.where(is_index, PAD, z)
    z_rival, runner_up = _largest(z, column, K)
    largest = tl.maximum(tl.abs(z_index), tl.abs(z_rival))
    clean_margin = tl.load(floats + words + CLEAN_MARGIN)
    masked = tl.minimum(MASKED * tl.maximum(largest, clean_margin), -0.5 * PAD)
    unmasked = tl.where(tl.abs(z) < masked[:, None], tl.abs(z), 0.0)
    largest = tl.maximum(largest, tl.max(unmasked, 1))
    is_predicted = (z_index > z_rival) | ((z_index == z_rival) & (index < runner_up))
    prediction = tl.where(is_predicted, index, runner_up)
    exclusions = tl.load(ints + words + EXCLUSIONS)
    if tl.max(exclusions) > 0:
        for i in range(SCHEDULES):
            excluded = tl.load(ints + words + EXCLUDED_CLASSES + i)
            z = tl.where((column == excluded[:, None]) & (exclusions > i)[:, None], PAD, z)
        z_rival, runner_up = _largest(z, column, K)
    rival = tl.load(ints + words + RIVAL_CLASS)
    z_given_rival = tl.sum(tl.where(column == rival[:, None], z, 0.0), 1)
    z_rival = tl.where(rival >= 0, z_given_rival, z_rival)
    runner_up = tl.where(rival >= 0, rival, runner_up)

    sign = tl.where(tl.load(problems + slot * SIZE + TARGETED) != 0, 1.0, -1.0)
    rounding = 16 * EPS * largest
    required_margin = tl.maximum(tl.maximum(rounding, confidence), 1e-30)
    margin = sign * (z_index - z_rival) - required_margin
    T = tl.load(floats + words + TEMPERATURE)
    from_margin = tl.load(problems + slot * SIZE + TEMPERATURE_RULE) == FROM_MARGIN
    schedule = tl.load(ints + words + SCHEDULE)
    stage = tl.load(ints + words + STAGE)
    fraction = tl.load(temperatures + schedule * STAGES + stage, mask=from_margin, other=0.0)
    T = tl.where(from_margin, tl.maximum(fraction * tl.abs(margin), 64 * EPS * largest), T)

    smooth = T > 0
    scale = 1.0 / tl.where(smooth, T, 1.0)
    one_hot = tl.where(column == runner_up[:, None], 1.0, 0.0)
    p = tl.where(smooth[:, None], tl.exp((z - z_rival[:, None]) * scale[:, None]), one_hot)
    sum_p = tl.where(smooth, tl.sum(p, 1), 1.0)
    log_odds = margin - tl.where(smooth, sign * T * tl.log(sum_p), 0.0)

    mask = mask & finite
    tl.store(ints + words + PREDICTION, prediction, mask=mask)
    tl.store(ints + words + RUNNER_UP, runner_up, mask=mask)
    tl.store(floats + words + ROUNDING, rounding, mask=mask)
    tl.store(floats + words + REQUIRED_MARGIN, required_margin, mask=mask)
    tl.store(floats + words + MARGIN, margin, mask=mask)
    tl.store(floats + words + LOG_ODDS, log_odds, mask=mask)
    tl.store(floats + words + TEMPERATURE, T, mask=mask & from_margin)
    dlogits = tl.where(is_index, sign[:, None], p * (-sign / sum_p)[:, None])
    return tl.where(finite[:, None] & is_logit, dlogits, 0.0)


@triton.jit
def margin_loss_rows(
    problems, ints, floats, rows, start, count, temperatures, confidence, h, dh,
    K: tl.constexpr, PADDED: tl.constexpr, KP: tl.constexpr, KIND: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Replace dh of the last layer by its dz in the rows ``start + [0, BM)``, from the logits in h.

    h, dh : (rows, ROW), with PADDED columns of the last layer from COLUMN on.
    KP : PADDED, or the power of two above it.
    """
    row, slot, mask = tile_rows(rows, start, count, BM)
    column = tl.arange(0, KP)
    offset = (row * ROW + COLUMN)[:, None] + column[None, :]
    inside = (column < PADDED)[None, :]
    z = tl.load(h + offset, mask=inside, other=0.0)
    dz = margin_loss_tile(z, slot, mask, problems, ints, floats, temperatures, confidence, K, KP)
    if KIND != IDENTITY:
        dz = dz * tl.load(dh + offset, mask=inside, other=0.0)
    tl.store(dh + offset, dz, mask=mask[:, None] & inside)


@triton.jit
def write_scales(
    problems, slot, row, mask, scales, moments,
    LAYERS: tl.constexpr, OUTS: tl.constexpr, BNS: tl.constexpr, MOMENT_OFFSETS: tl.constexpr,
    MOMENTS: tl.constexpr,
):  # fmt: skip
    """Write ``scales[slot]`` (LAYERS) from the moments, for the rows that record them."""
    mask = mask & (tl.load(problems + slot * SIZE + RECORD_SCALES) != 0)
    if tl.max(mask.to(tl.int32)) > 0:
        for i in tl.static_range(LAYERS):
            layer_moments = moments + row * MOMENTS + MOMENT_OFFSETS[i]
            scale = scales + slot * LAYERS + i
            write_standard_deviation(layer_moments, scale, mask, OUTS[i], BNS[i])


@triton.jit
def margin_loss(
    problems, ints, floats, longs, vectors, rows, count, temperatures, confidence, weights, scales,
    h, dh, moments,
    LAYERS: tl.constexpr, OUTS: tl.constexpr, BNS: tl.constexpr, MOMENT_OFFSETS: tl.constexpr,
    MOMENTS: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, KP: tl.constexpr,
    KIND: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Compute the margin loss of every listed row, and write the scales where they are recorded."""
    start = tl.program_id(0) * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, mask = tile_rows(rows, start, total, BM)
    write_scales(
        problems, slot, row, mask, scales, moments, LAYERS, OUTS, BNS, MOMENT_OFFSETS, MOMENTS
    )
    margin_loss_rows(
        problems, ints, floats, rows, start, total, temperatures, confidence, h, dh,
        K, PADDED, KP, KIND, ROW, COLUMN, BM,
    )  # fmt: skip


def margin_loss_reference(
    z: NDArray[Any], problem: Any, temperatures: NDArray[np.float32], confidence: float
) -> NDArray[Any]:
    """Return the dlogits (K) of one row of logits z (K), 0 where a logit is not finite.

    problem : its record of `slots.PROBLEM`, which is changed in place.
    """
    z = np.maximum(z, PAD.value)  # Models mask classes by -infinity.
    problem["finite"] = bool(np.isfinite(z).all())
    dlogits = np.zeros_like(z)
    if not problem["finite"]:
        return dlogits
    rivals, index = z.copy(), problem["class_index"]
    rivals[index] = PAD.value
    runner_up = int(rivals.argmax())
    z_index, z_rival = z[index], rivals[runner_up]
    is_predicted = z_index > z_rival or (z_index == z_rival and index < runner_up)
    problem["prediction"] = index if is_predicted else runner_up
    largest = max(abs(z_index), abs(z_rival))
    masked = min(MASKED.value * max(largest, problem["clean_margin"]), -0.5 * PAD.value)
    largest = max(largest, np.abs(rivals[np.abs(rivals) < masked]).max(initial=0))
    rivals[problem["excluded_classes"][: problem["exclusions"]]] = PAD.value
    rival = problem["rival_class"]
    runner_up = rival if rival >= 0 else int(rivals.argmax())
    z_rival = rivals[runner_up]

    sign = 1.0 if problem["targeted"] else -1.0
    eps = EPS.value
    problem["rounding"] = 16 * eps * largest
    problem["required_margin"] = max(confidence, problem["rounding"], 1e-30)
    problem["runner_up"] = runner_up
    problem["margin"] = margin = sign * (z_index - z_rival) - problem["required_margin"]
    if problem["temperature"] == FROM_MARGIN.value:
        fraction = temperatures[problem["schedule"], problem["stage"]]
        problem["T"] = max(fraction * abs(margin), 64 * eps * largest)
    problem["log_odds"] = margin
    dlogits[runner_up] = -sign
    if problem["T"] > 0:
        p = np.exp((rivals - z_rival) / problem["T"])
        problem["log_odds"] = margin - sign * problem["T"] * np.log(p.sum())
        dlogits = -sign * p / p.sum()
    dlogits[index] = sign
    return dlogits
