"""Logits to margin, log-odds and the seed of the backward pass: solver/margin_loss.h, row by row.

What the head finds is written into the slots, and the seed, times the derivative of the last
layer, where the backward pass begins. Where a logit is not finite only `finite` is written.
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
    AGAINST,
    CLEAN_MARGIN,
    EXCLUDED,
    EXCLUSIONS,
    FINITE,
    FROM_MARGIN,
    KAPPA,
    LABEL,
    LOG_ODDS,
    MARGIN,
    MEASURE,
    PREDICTION,
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
from .spread import write_spread

PAD = tl.constexpr(-1e30)
MASKED = tl.constexpr(100.0)
EPS = tl.constexpr(1.1920929e-7)


@triton.jit
def _largest(z, column, K: tl.constexpr):
    """Largest of each row (BM) and its first column; K - 1 where it is none before that."""
    value = tl.max(z, 1)
    hit = (z == value[:, None]) & (column < K - 1)
    return value, tl.min(tl.where(hit, column, K - 1), 1)


@triton.jit
def head_tile(
    z, slot, live, problems, ints, floats, fractions, confidence,
    K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """z (BM, KP), of which K columns are logits; slot, live (BM) -> seed (BM, KP)."""
    words = slot * WORDS
    column = tl.arange(0, KP)[None, :]
    real = column < K
    z = tl.where(z < PAD, PAD, z)  # masked by -infinity
    finite = tl.sum(tl.where(real, z - z, 0.0), 1) == 0  # else NaN
    flag = problems + slot * SIZE + FINITE
    tl.store(flag, finite.to(tl.int8), mask=live)
    z = tl.where(real, z, PAD)

    label = tl.load(ints + words + LABEL)
    is_label = column == label[:, None]
    z_label = tl.sum(tl.where(is_label, z, 0.0), 1)
    z = tl.where(is_label, PAD, z)
    other, runner_up = _largest(z, column, K)
    largest = tl.maximum(tl.abs(z_label), tl.abs(other))
    clean_margin = tl.load(floats + words + CLEAN_MARGIN)
    masked = tl.minimum(MASKED * tl.maximum(largest, clean_margin), -0.5 * PAD)
    unmasked = tl.where(tl.abs(z) < masked[:, None], tl.abs(z), 0.0)
    largest = tl.maximum(largest, tl.max(unmasked, 1))
    ahead = (z_label > other) | ((z_label == other) & (label < runner_up))
    prediction = tl.where(ahead, label, runner_up)
    exclusions = tl.load(ints + words + EXCLUSIONS)
    if tl.max(exclusions) > 0:
        for i in range(SCHEDULES):
            excluded = tl.load(ints + words + EXCLUDED + i)
            z = tl.where((column == excluded[:, None]) & (exclusions > i)[:, None], PAD, z)
        other, runner_up = _largest(z, column, K)
    against = tl.load(ints + words + AGAINST)
    z_against = tl.sum(tl.where(column == against[:, None], z, 0.0), 1)
    other = tl.where(against >= 0, z_against, other)
    runner_up = tl.where(against >= 0, against, runner_up)

    sign = tl.where(tl.load(problems + slot * SIZE + TARGETED) != 0, 1.0, -1.0)
    rounding = 16 * EPS * largest
    kappa = tl.maximum(tl.maximum(rounding, confidence), 1e-30)
    margin = sign * (z_label - other) - kappa
    T = tl.load(floats + words + TEMPERATURE)
    asked = tl.load(problems + slot * SIZE + TEMPERATURE_RULE) == FROM_MARGIN
    schedule = tl.load(ints + words + SCHEDULE)
    stage = tl.load(ints + words + STAGE)
    fraction = tl.load(fractions + schedule * STAGES + stage, mask=asked, other=0.0)
    T = tl.where(asked, tl.maximum(fraction * tl.abs(margin), 64 * EPS * largest), T)

    soft = T > 0
    scale = 1.0 / tl.where(soft, T, 1.0)
    hard = tl.where(column == runner_up[:, None], 1.0, 0.0)
    p = tl.where(soft[:, None], tl.exp((z - other[:, None]) * scale[:, None]), hard)
    sum_p = tl.where(soft, tl.sum(p, 1), 1.0)
    log_odds = margin - tl.where(soft, sign * T * tl.log(sum_p), 0.0)

    found = live & finite
    tl.store(ints + words + PREDICTION, prediction, mask=found)
    tl.store(ints + words + RUNNER_UP, runner_up, mask=found)
    tl.store(floats + words + ROUNDING, rounding, mask=found)
    tl.store(floats + words + KAPPA, kappa, mask=found)
    tl.store(floats + words + MARGIN, margin, mask=found)
    tl.store(floats + words + LOG_ODDS, log_odds, mask=found)
    tl.store(floats + words + TEMPERATURE, T, mask=found & asked)
    seed = tl.where(is_label, sign[:, None], p * (-sign / sum_p)[:, None])
    return tl.where(finite[:, None] & real, seed, 0.0)


@triton.jit
def head_rows(
    problems, ints, floats, rows, start, count, fractions, confidence, h, dh,
    K: tl.constexpr, PADDED: tl.constexpr, KP: tl.constexpr, KIND: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Rows ``start + [0, BM)``: logits from h to dz of the last layer, in the place of dh.

    h, dh: (rows, ROW), the last layer's PADDED columns from COLUMN on; KP: PADDED or the power of
    two above it.
    """
    row, slot, live = tile_rows(rows, start, count, BM)
    column = tl.arange(0, KP)
    at = (row * ROW + COLUMN)[:, None] + column[None, :]
    inside = (column < PADDED)[None, :]
    z = tl.load(h + at, mask=inside, other=0.0)
    seed = head_tile(z, slot, live, problems, ints, floats, fractions, confidence, K, KP)
    if KIND != IDENTITY:
        seed = seed * tl.load(dh + at, mask=inside, other=0.0)
    tl.store(dh + at, seed, mask=live[:, None] & inside)


@triton.jit
def write_widths(
    problems, slot, row, live, widths, moments,
    LAYERS: tl.constexpr, OUTS: tl.constexpr, BNS: tl.constexpr, AT: tl.constexpr,
    MOMENTS: tl.constexpr,
):  # fmt: skip
    """widths[slot] (LAYERS) of the measured rows from their moments."""
    measured = live & (tl.load(problems + slot * SIZE + MEASURE) != 0)
    if tl.max(measured.to(tl.int32)) > 0:
        for i in tl.static_range(LAYERS):
            of = moments + row * MOMENTS + AT[i]
            write_spread(of, widths + slot * LAYERS + i, measured, OUTS[i], BNS[i])


@triton.jit
def head(
    problems, ints, floats, longs, vectors, rows, count, fractions, confidence, weights, widths,
    h, dh, moments,
    LAYERS: tl.constexpr, OUTS: tl.constexpr, BNS: tl.constexpr, AT: tl.constexpr,
    MOMENTS: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, KP: tl.constexpr,
    KIND: tl.constexpr, ROW: tl.constexpr, COLUMN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The head of every listed row, and the widths of those that are measured."""
    start = tl.program_id(0) * BM
    total = tl.load(count)
    if start >= total:
        return
    row, slot, live = tile_rows(rows, start, total, BM)
    write_widths(problems, slot, row, live, widths, moments, LAYERS, OUTS, BNS, AT, MOMENTS)
    head_rows(
        problems, ints, floats, rows, start, total, fractions, confidence, h, dh,
        K, PADDED, KP, KIND, ROW, COLUMN, BM,
    )  # fmt: skip


def head_reference(
    z: NDArray[Any], problem: Any, fractions: NDArray[np.float32], confidence: float
) -> NDArray[Any]:
    """One row as margin_loss.h: logits z (K) -> seed (K); `problem`: its record of `slots.PROBLEM`.

    The seed is 0 where a logit is not finite.
    """
    z = np.maximum(z, PAD.value)  # masked by -infinity
    problem["finite"] = bool(np.isfinite(z).all())
    seed = np.zeros_like(z)
    if not problem["finite"]:
        return seed
    rest, label = z.copy(), problem["label"]
    rest[label] = PAD.value
    runner_up = int(rest.argmax())
    z_label, other = z[label], rest[runner_up]
    ahead = z_label > other or (z_label == other and label < runner_up)
    problem["prediction"] = label if ahead else runner_up
    largest = max(abs(z_label), abs(other))
    masked = min(MASKED.value * max(largest, problem["clean_margin"]), -0.5 * PAD.value)
    largest = max(largest, np.abs(rest[np.abs(rest) < masked]).max(initial=0))
    rest[problem["excluded"][: problem["exclusions"]]] = PAD.value
    runner_up = problem["against"] if problem["against"] >= 0 else int(rest.argmax())
    other = rest[runner_up]

    sign = 1.0 if problem["targeted"] else -1.0
    eps = EPS.value
    problem["rounding"] = 16 * eps * largest
    problem["kappa"] = max(confidence, problem["rounding"], 1e-30)
    problem["runner_up"] = runner_up
    problem["margin"] = margin = sign * (z_label - other) - problem["kappa"]
    if problem["temperature"] == FROM_MARGIN.value:
        fraction = fractions[problem["schedule"], problem["stage"]]
        problem["T"] = max(fraction * abs(margin), 64 * eps * largest)
    problem["log_odds"] = margin
    seed[runner_up] = -sign
    if problem["T"] > 0:
        p = np.exp((rest - other) / problem["T"])
        problem["log_odds"] = margin - sign * problem["T"] * np.log(p.sum())
        seed = -sign * p / p.sum()
    seed[label] = sign
    return seed
