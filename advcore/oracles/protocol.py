"""The contract between the solver and a model: logits of a batch and their backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelRaised

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float32]


class Oracle(Protocol):
    """The contract. Either array returned may hold NaN rows.

    Attributes
    ----------
    kind : str
        What k > 0 smooths: "convolutional" (ReLU on feature maps, or max-pooling alone), "kinked"
        (any other ReLU or leaky ReLU), "saturating" (else, any sigmoid or tanh) or "smooth"
        (nothing: the solver keeps k = 0).
    classes : int
        Number K >= 2 of logits that `forward` returns.
    saved_bytes : int
        Bytes of an image that a forward keeps for its backward; 0: unknown.
    """

    kind: str
    classes: int
    saved_bytes: int

    def forward(
        self,
        x: Floats,
        k: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        measure: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """Logits (B, K) float32 of rows ``x`` (B, n).

        ``k`` (B,) float32 is the smoothing of each row, ``slots`` (B,) int32 says under which
        number the widths of a row are kept, ``measure`` (B,) bool marks the rows (with k = 0)
        whose widths are measured in this pass. ``grad``: a backward will follow.
        """
        ...

    def backward(self, dlogits: Floats) -> Floats:
        """Gradient (B, n) float32 of the last forward for ``dlogits`` (B, K) float32."""
        ...

    def forget(self) -> None:
        """Let go of the last forward, and of memory that is kept for later."""
        ...

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """``count`` CPU threads for the model inside the block; None: as many as before."""
        ...


class NumpyModel(Protocol):
    """What a model without torch offers; K = 1 is taken as the logit of class 1 of two."""

    def forward(self, x: Any) -> Any:
        """Logits (B, K), floating point, of images (B, ...); ``x`` must not be written to."""
        ...

    def backward(self, dlogits: Any) -> Any:
        """Gradient (B, ...) or (B, n) for ``dlogits`` (B, K) of the last forward."""
        ...


@contextmanager
def model_errors(images: Any, hint: str = "") -> Iterator[None]:
    """Turns what the model raises on ``images`` (B, ...) into one error that names them."""
    try:
        yield
    except Exception as error:
        raise ModelRaised(
            f"the model raised on a batch of {len(images)} images of shape "
            f"{tuple(images.shape[1:])}: {type(error).__name__}: {error}{hint}"
        ) from error
