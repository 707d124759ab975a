"""The contract between the solver and a model: logits of a batch and their backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelRaised
from .batches import BatchSizes
from .logits import SquashFunction

Floats = NDArray[np.float32]


class Oracle(Protocol):
    """Evaluates batches of flat images. Both arrays that it returns may hold NaN rows.

    Attributes
    ----------
    kind : str
        Activations that are smoothed: "convolutional" (a ReLU on feature maps, or max-pooling
        alone), "kinked" (any other ReLU or leaky ReLU), "compared" (else, a maximum over values),
        "saturating" (else, any sigmoid or tanh) or
        "smooth" (none; the solver keeps the smoothing at 0).
    classes : int
        Number K >= 2 of logits that `forward` returns.
    saved_bytes : int
        Bytes that a forward keeps of an image for its backward; 0 if unknown.
    outputs : int
        Number of logits that the model itself returns: 1 for the binary form, else `classes`.
    squash : function, or None
        The increasing function behind the logits that the search sees: an output, of its logit.
    batches : BatchSizes or None
        Numbers of rows that the model gets: smaller batches are padded, none is larger. None: it
        gets batches as they are.
    """

    kind: str
    classes: int
    saved_bytes: int
    squash: SquashFunction | None
    batches: BatchSizes | None

    @property
    def outputs(self) -> int: ...

    def forward(
        self,
        x: Floats,
        smoothing: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        record_scales: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """Logits (B, K) float32 of rows ``x`` (B, n).

        Parameters
        ----------
        x : ndarray (B, n) float32
        smoothing : ndarray (B,) float32, optional
            Smoothing of each row; 0 is the exact network.
        slots : ndarray (B,) int32, optional
            Number under which the smoothing scales of each row are kept.
        record_scales : ndarray (B,) bool, optional
            Rows, of smoothing 0, whose smoothing scales are recorded in this pass.
        grad : bool
            Whether a backward will follow.
        """
        ...

    def backward(self, dlogits: Floats) -> Floats:
        """Gradient (B, n) float32 of the last forward for ``dlogits`` (B, K) float32.

        With `batches` these may be the first B rows of the forward.
        """
        ...

    def forget(self) -> None:
        """Let go of the last forward, and of memory that is kept for later."""
        ...

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """Give the model ``count`` CPU threads inside the block; None leaves them as they are."""
        ...


class NumpyModel(Protocol):
    """A model without torch. With K = 1 its output is the logit of class 1 of two."""

    def forward(self, x: Any) -> Any:
        """Logits (B, K), floating point, of images (B, ...); ``x`` is a copy of its own."""
        ...

    def backward(self, dlogits: Any) -> Any:
        """Gradient (B, ...) or (B, n) for ``dlogits`` (B, K) of the last forward."""
        ...


@contextmanager
def model_errors(
    images: tuple[int, ...],
    hint: Callable[[Exception], str] | None = None,
    what: str = "the model raised",
) -> Iterator[None]:
    """Turn any error of the model on images (B, ...) of a shape into a `ModelRaised` naming it.

    ``hint`` returns what to add to the text of an error.
    """
    try:
        yield
    except Exception as error:
        raise ModelRaised(
            f"{what} on a batch of {images[0]} images of shape {tuple(images[1:])}: "
            f"{type(error).__name__}: {error}{hint(error) if hint else ''}"
        ) from error


def takes_one_image(forward: Callable[[Any], Any], x: Any) -> str:
    """Text of a remedy for a model that fails on rows ``x``, where it takes the first alone."""
    if len(x) < 2:
        return ""
    try:
        forward(x[:1])
    except Exception:
        return ""
    return "; one image at a time works: pass batch_size=1"
