"""Logits: how a model's output is checked and converted, and the arithmetic of margins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]


class Logits:
    """Checks and converts what a model returns; one for every oracle.

    A single logit z is the binary form: it becomes the logits (0, z) of classes 0 and 1, and of a
    gradient with respect to them the model gets the second column.
    """

    def __init__(self) -> None:
        self.outputs = 0

    @property
    def classes(self) -> int:
        """Number of logits after conversion; 0 before the first forward."""
        return max(2, self.outputs) if self.outputs else 0

    def check(self, shape: tuple[int, ...], rows: int) -> None:
        """Raises unless this is the shape of the logits of ``rows`` images, as it was before."""
        if len(shape) != 2 or shape[0] != rows or shape[1] == 0:
            hint = "; a single logit an image: (B, 1)" if shape == (rows,) else ""
            raise ValueError(
                f"model must return logits of shape (B, K), here ({rows}, K), got {shape}{hint}"
            )
        if self.outputs not in (0, shape[1]):
            raise ValueError(
                f"model returned {self.outputs} logits before, now {shape[1]} an image"
            )
        self.outputs = shape[1]

    def take(self, output: NDArray[Any], rows: int) -> Floats:
        """(B, K) float32, K >= 2, of the model's output for ``rows`` images."""
        if output.dtype.kind != "f":
            raise TypeError(f"model must return floating-point logits, got {output.dtype}")
        self.check(output.shape, rows)
        if self.outputs == 1:
            pair = np.zeros((rows, 2), dtype=np.float32)
            pair[:, 1:] = output
            return pair
        with np.errstate(over="ignore"):  # a float64 logit may overflow: the row is not finite
            return np.array(output, dtype=np.float32, order="C")  # the model may reuse its buffer

    def seed(self, dlogits: Floats) -> Floats:
        """The gradient with respect to the model's own output."""
        return np.ascontiguousarray(dlogits[:, 1:]) if self.outputs == 1 else dlogits


def softmax_output(logits: NDArray[np.floating[Any]]) -> bool:
    """Whether every row looks like probabilities: in [0, 1] and summing to 1 within 1e-4.

    Within 1e-2 where all are numbers of float16 or bfloat16. Such a model ends in a softmax; the
    solver wants what goes into it. (0, z) pairs of a single logit never pass, nor does an empty
    batch or one with NaN.
    """
    rows = np.asarray(logits, dtype=np.float64)
    half = not (np.asarray(logits, dtype=np.float32).view(np.uint32) & 0x1FFF).any()
    if rows.size == 0 or not np.isfinite(rows).all():
        return False
    inside = rows.min() >= 0.0 and rows.max() <= 1.0
    return bool(inside and np.abs(rows.sum(axis=1) - 1.0).max() <= (1e-2 if half else 1e-4))


def sigmoid_output(logits: NDArray[np.floating[Any]]) -> bool:
    """Whether these are pairs (0, z) of a single output, every z in [0, 1]: a probability."""
    return (
        logits.shape[1] == 2
        and len(logits) > 1
        and not logits[:, 0].any()
        and bool((logits[:, 1] >= 0).all() and (logits[:, 1] <= 1).all())
    )


def batched(forward: Forward, x: Floats, size: int) -> Floats:
    """Logits of all rows, ``size`` at a time."""
    return np.concatenate([forward(x[i : i + size]) for i in range(0, len(x), size)])


def margins(
    logits: Floats, labels: NDArray[np.int32], targeted: bool
) -> tuple[Floats, NDArray[np.int64]]:
    """Margin (N,) and predicted class (N,): label's logit minus the best other, or its negative."""
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, labels] = -np.inf
    margin = logits[rows, labels] - others.max(axis=1)
    return margin if targeted else -margin, logits.argmax(axis=1)


def difference(logits: Floats, others: Floats) -> float:
    """Largest finite one between two arrays of logits (N, K), but for masked classes."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        out = np.abs(logits - others)
    return float(out[np.isfinite(out) & unmasked(logits)].max(initial=0.0))


def largest_logit(logits: Floats) -> float:
    """Largest finite |logit|, but for masked classes."""
    return float(np.abs(logits[unmasked(logits)]).max(initial=0.0))


def unmasked(logits: Floats) -> NDArray[np.bool_]:
    """Which (N, K) are finite and at most 100 times the first two of the row.

    The engine has the same rule (csrc/solver/margin_loss.h).
    """
    top = np.abs(np.partition(logits, -2, axis=1)[:, -2:]).max(axis=1, keepdims=True)
    keep: NDArray[np.bool_] = np.isfinite(logits) & (np.abs(logits) <= 100 * top)
    return keep
