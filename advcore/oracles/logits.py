"""Logits: checks and conversion of a model's output, and the arithmetic of margins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .hints import ONE_IMAGE, is_one_image

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]
SquashFunction = Callable[[float], float]
"""An increasing function behind the logits: an output, of its logit."""
REACH = 1e6
"""Argument at which a squashing function has reached its limit."""


class Logits:
    """Checks and converts the output of a model; every oracle has one.

    A single logit z is the binary form. It becomes the logits (0, z) of classes 0 and 1, and the
    model gets the second column of a gradient with respect to them.

    Attributes
    ----------
    outputs : int
        Number of logits that the model returns for an image; 0 before the first forward.
    image_shape : tuple of int
        Shape of an image, for hints in errors.
    """

    def __init__(self, image_shape: tuple[int, ...] = ()) -> None:
        self.outputs = 0
        self.image_shape = image_shape

    @property
    def classes(self) -> int:
        """Number of logits after conversion; 0 before the first forward."""
        return max(2, self.outputs) if self.outputs else 0

    def check(self, shape: tuple[int, ...], rows: int) -> None:
        """Check the shape of the output for ``rows`` images, and remember the number of logits.

        Raises
        ------
        ValueError
            It is not (rows, K), or K differs from that of an earlier forward.
        """
        if len(shape) != 2 or shape[0] != rows or shape[1] == 0:
            raise ValueError(
                f"model must return logits of shape (B, K), here ({rows}, K), got {shape}"
                f"{self._shape_hint(shape, rows)}"
            )
        if self.outputs not in (0, shape[1]):
            raise ValueError(
                f"model returned {self.outputs} logits before, now {shape[1]} an image"
            )
        self.outputs = shape[1]

    def _shape_hint(self, shape: tuple[int, ...], rows: int) -> str:
        """Text of the remedy for an output of a wrong shape, or nothing."""
        if shape == (rows,):
            return "; a single logit an image: (B, 1), as .unsqueeze(1) or [:, None] makes it"
        if rows == 1 and len(shape) == 1:
            return "; without the axis of the batch? .unsqueeze(0) or [None] adds it"
        if len(shape) > 2 and shape[0] == rows:
            return "; one class for an image, not one for each of its pixels, words or boxes"
        is_picture = len(shape) == 2 and shape[0] == 1 and is_one_image(rows, self.image_shape)
        return ONE_IMAGE if is_picture else ""

    def convert(self, output: NDArray[Any], rows: int) -> Floats:
        """Convert the model's output for ``rows`` images to logits (B, K) float32, K >= 2.

        Raises
        ------
        TypeError
            The output is not floating point.
        ValueError
            Its shape is wrong, see `check`.
        """
        if output.dtype.kind != "f":
            raise TypeError(f"model must return floating-point logits, got {output.dtype}")
        self.check(output.shape, rows)
        if self.outputs == 1:
            pair = np.zeros((rows, 2), dtype=np.float32)
            pair[:, 1:] = output
            return pair
        with np.errstate(over="ignore"):  # a float64 logit may overflow: the row is not finite
            return np.array(output, dtype=np.float32, order="C")  # the model may reuse its buffer

    def output_gradient(self, dlogits: Floats) -> Floats:
        """Convert the gradient for the logits (B, K) to that for the model's own output."""
        return np.ascontiguousarray(dlogits[:, 1:]) if self.outputs == 1 else dlogits


def single_output(output: Any, is_array: Callable[[Any], bool], kind: str) -> Any:
    """Return the logits in a model's output, where that leaves no choice.

    They are the output itself, its attribute or entry ``logits``, or the only array in a tuple,
    list or dictionary.

    Raises
    ------
    TypeError
        There is none, or more than one.
    """
    if is_array(output):
        return output
    is_mapping = isinstance(output, Mapping)
    named = output.get("logits") if is_mapping else getattr(output, "logits", None)
    if is_array(named):
        return named
    items: list[Any] = []
    if is_mapping:
        items = list(output.items())
    elif isinstance(output, (tuple, list)):
        items = list(enumerate(output))
    items = [(key, value) for key, value in items if value is not None]
    if len(items) == 1 and is_array(items[0][1]):
        return items[0][1]
    arrays = [key for key, value in items if is_array(value)]
    names = [name for name, value in getattr(output, "__dict__", {}).items() if is_array(value)]
    remedy = ""
    if arrays:
        number = f" with {len(arrays)} of them" if len(arrays) > 1 else ""
        remedy = (
            f"{number}: pass a function that picks the logits, lambda x: model(x)[{arrays[0]!r}]"
        )
    elif names:
        remedy = f": pass a function that picks the logits, lambda x: model(x).{names[0]}"
    raise TypeError(f"model must return {kind} (B, K), got {type(output).__name__}{remedy}")


def softmax_output(logits: NDArray[np.floating[Any]]) -> bool:
    """Whether every row looks like probabilities: in [0, 1] and summing to 1 within 1e-4.

    The tolerance is 1e-2 where every number is one of float16 or bfloat16. Such a model ends in a
    softmax, but the solver needs the logits before it. Pairs (0, z) of a single logit never pass,
    nor does an empty batch or one with NaN.
    """
    rows = np.asarray(logits, dtype=np.float64)
    half_precision = not (np.asarray(logits, dtype=np.float32).view(np.uint32) & 0x1FFF).any()
    if rows.size == 0 or not np.isfinite(rows).all():
        return False
    in_range = rows.min() >= 0.0 and rows.max() <= 1.0
    tolerance = 1e-2 if half_precision else 1e-4
    return bool(in_range and np.abs(rows.sum(axis=1) - 1.0).max() <= tolerance)


def sigmoid_output(logits: NDArray[np.floating[Any]]) -> bool:
    """Whether the pairs (0, z) of a model with one output have every z a probability, in [0, 1]."""
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
    """Margin (N,) and predicted class (N,) of logits (N, K).

    The margin is the label's logit minus the largest other logit if ``targeted``, else the negative
    of that. It is positive for a success.
    """
    rows = np.arange(len(logits))
    other_logits = logits.copy()
    other_logits[rows, labels] = -np.inf
    margin = logits[rows, labels] - other_logits.max(axis=1)
    return margin if targeted else -margin, logits.argmax(axis=1)


def difference(logits: Floats, other_logits: Floats) -> float:
    """Largest finite absolute difference of two arrays of logits (N, K), without masked classes."""
    return float(row_differences(logits, other_logits).max(initial=0.0))


def row_differences(logits: Floats, other_logits: Floats) -> Floats:
    """`difference` of each row, (N,)."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        gaps = np.abs(logits - other_logits)
    counted = np.isfinite(gaps) & unmasked(logits)
    largest: Floats = np.where(counted, gaps, np.float32(0)).max(axis=1, initial=0.0)
    return largest


def largest_logit(logits: Floats) -> float:
    """Largest finite absolute logit of (N, K), without masked classes."""
    return float(np.abs(logits[unmasked(logits)]).max(initial=0.0))


class Squashing(NamedTuple):
    """How a squashing function behind the logits nears its limits, for the engine.

    Attributes
    ----------
    rate : float
        Its distance from the limits falls as exp(-rate z). 0: there is no such function.
    floor, cap : float
        Arguments at which it is the least margin of a success away from its limits.
    """

    rate: float = 0.0
    floor: float = 0.0
    cap: float = 0.0


NO_SQUASHING = Squashing()


def squashing(function: SquashFunction | None, least_margin: float) -> Squashing:
    """How an increasing function nears its limits, where there is one.

    For the rounding near a limit 1% more than the least margin is asked for, and at least 1e-6.
    """
    if function is None:
        return NO_SQUASHING

    def first(test: Callable[[float], bool]) -> float:
        low, high = -REACH, REACH
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if test(middle) else (middle, high)
        return high

    room = 1.01 * max(least_margin, 1e-6)
    bottom, top = function(-REACH), function(REACH)
    floor = first(lambda z: function(z) > bottom + room)
    cap = first(lambda z: function(z) > top - room)
    before_cap = first(lambda z: function(z) > top - math.e * room)
    return Squashing(1 / max(cap - before_cap, 1e-4), floor, cap)


def unmasked(logits: Floats) -> NDArray[np.bool_]:
    """Logits (N, K) that are finite and, in magnitude, at most 100 times the row's two largest.

    A model may mask a class by a huge negative logit. The engine has the same rule
    (csrc/solver/margin_loss.h).
    """
    two_largest = np.partition(logits, -2, axis=1)[:, -2:]
    limit = 100 * np.abs(two_largest).max(axis=1, keepdims=True)
    mask: NDArray[np.bool_] = np.isfinite(logits) & (np.abs(logits) <= limit)
    return mask
