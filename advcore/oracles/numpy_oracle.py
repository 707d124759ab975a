"""The oracle of an object with NumPy ``forward`` and ``backward``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfTime
from .batches import BatchRule, BatchSizes, pad
from .logits import Logits, SquashFunction, batched, single_output
from .protocol import NumpyModel, model_errors, takes_one_image

Floats = NDArray[np.float32]


class NumpyOracle:
    """Oracle of an object with NumPy ``forward`` and ``backward``, see `NumpyModel`.

    Parameters
    ----------
    model : NumpyModel
    image_shape : sequence of int
        Shape in which an image reaches the model, float32, without the batch.
    sample : ndarray (B, n) float32, optional
        Images of a trial forward, which gives the number of classes; default one image of 0.5.
    batch_size : int, optional
        Most images of a trial forward.
    check_time : callable, optional
        Called before each forward but the first. It may raise.
    batch_rule : BatchRule, optional
        Chooses `batches`, where it is one for a fixed number of rows.

    Raises
    ------
    TypeError, ValueError
        A method is missing, or the trial's output is not a floating-point array (B, K).
    ModelRaised
        The model raised on the trial.
    """

    kind = "smooth"
    saved_bytes = 0
    squash: SquashFunction | None = None

    def __init__(
        self,
        model: NumpyModel,
        image_shape: Sequence[int],
        sample: Floats | None = None,
        batch_size: int | None = None,
        check_time: Callable[[], None] | None = None,
        batch_rule: BatchRule | None = None,
    ) -> None:
        for name in ("forward", "backward"):
            if not callable(getattr(model, name, None)):
                raise TypeError(f"model must have a method {name}, got {type(model).__name__}")
        self._model = model
        self._shape = tuple(image_shape)
        self._n = math.prod(self._shape)
        self._logits = Logits(self._shape)
        self._check_time = check_time
        self.batches: BatchSizes | None = None
        if batch_rule is not None and batch_rule.is_fixed:
            self.batches = batch_rule.sizes(self)
            batch_size = self.batches.most
        x = np.full((1, self._n), 0.5, np.float32) if sample is None else sample
        with suppress(OutOfTime):
            self._run_trial(x, min(batch_size or len(x), len(x)))
        self.classes = self._logits.classes

    def _run_trial(self, x: Floats, size: int) -> None:
        """Evaluate ``x``, ``size`` rows at a time, to learn the number of classes."""
        try:
            batched(self.forward, x, size)
        except ValueError as error:
            hint = takes_one_image(self.forward, x[:size])
            if hint:
                raise type(error)(f"{error}{hint}") from error.__cause__
            raise

    def forward(
        self,
        x: Floats,
        smoothing: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        record_scales: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """See `Oracle`; ``smoothing``, ``slots`` and ``record_scales`` are ignored."""
        if self._check_time is not None and self._logits.outputs:
            self._check_time()
        rows = len(x) if self.batches is None else self.batches.padded(len(x))
        images = pad(x, rows).reshape(rows, *self._shape)  # a copy: the model may write to it
        with model_errors(images.shape):
            output = self._model.forward(images)
        if not isinstance(output, list):  # of rows
            output = single_output(output, lambda value: hasattr(value, "__array__"), "an array")
        return self._logits.convert(np.asarray(output), rows)[: len(x)]

    def backward(self, dlogits: Floats) -> Floats:
        """See `Oracle`."""
        rows = count = len(dlogits)
        if self.batches is not None:
            rows = self.batches.padded(count)
            dlogits = np.pad(dlogits, ((0, rows - count), (0, 0)))  # the others need no gradient
        with model_errors((rows, *self._shape), what="model.backward raised"):
            output = self._model.backward(self._logits.output_gradient(dlogits))
        gradient = np.asarray(output)
        if gradient.dtype.kind != "f":
            raise TypeError(f"model.backward must return floating point, got {gradient.dtype}")
        if gradient.size != rows * self._n or (rows and gradient.shape[:1] != (rows,)):
            raise ValueError(
                f"model.backward must return shape {(rows, *self._shape)}, got {gradient.shape}"
            )
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(gradient.reshape(rows, self._n)[:count], dtype=np.float32)

    @property
    def outputs(self) -> int:
        """See `Oracle`."""
        return self._logits.outputs

    def forget(self) -> None:
        """See `Oracle`; a NumPy model manages its own memory."""

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """See `Oracle`; the threads of NumPy stay as they are."""
        return nullcontext()
