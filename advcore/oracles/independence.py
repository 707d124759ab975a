"""Does the result of a row depend on its place in the batch, or on the other rows?

With the number of rows fixed, a product of matrices may still sum a row in another order where the
row lies at another alignment, or in the last vector of a tensor. Which numbers of rows are free of
that depends on the model's widths, so it is tried.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .batches import BatchSizes
from .protocol import Oracle

Floats = NDArray[np.float32]
FIXED_ROWS = 64
"""Rows of a batch of fixed size, where the model's activations leave room."""


def fix_rows(oracle: Oracle, sample: Floats) -> None:
    """Fix the batches of the model at the largest number of rows that are independent.

    Tried are the number that is fixed so far and the powers of two below it, on images ``sample``
    (B, n), which are repeated as needed. 1 needs no trial.
    """
    assert oracle.batches is not None
    rows = oracle.batches.most
    while rows > 1 and not _are_independent(oracle, np.resize(sample, (rows, sample.shape[1]))):
        rows = 1 << ((rows - 1).bit_length() - 1)
        oracle.batches = BatchSizes((rows,), True)


def _are_independent(oracle: Oracle, x: Floats) -> bool:
    """Whether logits and gradients of rows ``x`` (B, n), a whole batch, stay in other batches.

    Those of the exact network, and of one in which some rows are smoothed.
    """
    rng = np.random.default_rng(0)
    seeds = rng.standard_normal((len(x), oracle.classes), dtype=np.float32)
    smoothing = np.where(rng.random(len(x)) < 0.5, rng.random(len(x)), 0).astype(np.float32)

    def evaluate(rows: NDArray[np.intp]) -> Floats:
        slots = np.arange(len(rows), dtype=np.int32)
        exact = oracle.forward(x[rows], 0 * smoothing[rows], slots, slots >= 0)
        gradient = oracle.backward(seeds[rows])
        smoothed = oracle.forward(x[rows], smoothing[rows], slots)
        parts = (exact, gradient, smoothed, oracle.backward(seeds[rows]))
        return np.concatenate([*parts, oracle.forward(x[rows], grad=False)], axis=1)

    every = np.arange(len(x))
    whole = evaluate(every)
    others = (every[::-1], np.roll(every, 1), every[:1], every[len(x) // 2 :])
    return all(np.array_equal(evaluate(rows), whole[rows], equal_nan=True) for rows in others)
