"""The oracle of an object with NumPy ``forward`` and ``backward``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from .logits import Logits
from .protocol import NumpyModel, model_errors

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

    Raises
    ------
    TypeError, ValueError
        A method is missing, or the trial's output is not a floating-point array (B, K).
    ModelRaised
        The model raised on the trial.
    """

    kind = "smooth"
    saved_bytes = 0

    def __init__(
        self, model: NumpyModel, image_shape: Sequence[int], sample: Floats | None = None
    ) -> None:
        for name in ("forward", "backward"):
            if not callable(getattr(model, name, None)):
                raise TypeError(f"model must have a method {name}, got {type(model).__name__}")
        self._model = model
        self._shape = tuple(image_shape)
        self._n = math.prod(self._shape)
        self._logits = Logits()
        self.forward(np.full((1, self._n), 0.5, np.float32) if sample is None else sample)
        self.classes = self._logits.classes

    def forward(
        self,
        x: Floats,
        smoothing: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        record_scales: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """See `Oracle`; ``smoothing``, ``slots`` and ``record_scales`` are ignored."""
        images = x.reshape(len(x), *self._shape)
        with model_errors(images):
            output = self._model.forward(images)
        if isinstance(output, (tuple, dict)):
            raise TypeError(f"model must return an array (B, K), got {type(output).__name__}")
        return self._logits.convert(np.asarray(output), len(x))

    def backward(self, dlogits: Floats) -> Floats:
        """See `Oracle`."""
        gradient = np.asarray(self._model.backward(self._logits.output_gradient(dlogits)))
        rows = len(dlogits)
        if gradient.dtype.kind != "f":
            raise TypeError(f"model.backward must return floating point, got {gradient.dtype}")
        if gradient.size != rows * self._n or (rows and gradient.shape[:1] != (rows,)):
            raise ValueError(
                f"model.backward must return shape {(rows, *self._shape)}, got {gradient.shape}"
            )
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(gradient.reshape(rows, self._n), dtype=np.float32)

    def forget(self) -> None:
        """See `Oracle`; a NumPy model manages its own memory."""

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """See `Oracle`; the threads of NumPy stay as they are."""
        return nullcontext()
