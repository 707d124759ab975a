"""What a search changes in a torch model, and how that is found.

Importing this file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .batches import BatchSizes
from .logits import SquashFunction
from .torch_calls import dense_logits, with_graph_bytes, wrapped

if TYPE_CHECKING:
    import torch

    from .smoothing import SmoothingScales

Floats = NDArray[np.float32]
NAMES = {
    "kinked": "piecewise linear",
    "saturating": "saturating",
    "pooled": "max-pooling",
    "largest": "maximum",
}
"""The kinds of calls that a search smooths, in words."""


def survey_counts(batch_size: int | None) -> tuple[int, int]:
    """Rows of two forwards that show what depends on them: 2 and 3, or fewer."""
    most = batch_size or 3
    return min(2, most - 1) or 1, min(3, most)


class Surveyed:
    """The part of a `TorchOracle` that looks for what a search changes.

    Attributes
    ----------
    kind : str
        See `SmoothingScales.kind`.
    squash : callable or None
        See `survey`.
    unread : str or None
        Why the operations of the model could not be read, where they were needed.
    surveyed : bool
        Whether `survey` has been called.
    smoothed_bytes : int
        See `TorchOracle`.
    """

    kind: str
    squash: SquashFunction | None
    unread: str | None
    surveyed: bool
    smoothed_bytes: int
    batches: BatchSizes | None
    forward: Callable[..., Floats]
    backward: Callable[..., Floats]
    check_time: Callable[[], None] | None
    _torch: Any
    _model: Any
    _shape: tuple[int, ...]
    _device: torch.device
    _dtype: torch.dtype
    _batch_size: int | None
    _is_compiled: bool
    _call: Callable[..., torch.Tensor]
    _survey_image: Floats
    _leaf: torch.Tensor | None
    _output: torch.Tensor | None
    _scales: SmoothingScales | None
    _squash_call: int | None
    _searched: Any
    _found: int

    def survey(self, unsquash: bool = False) -> None:
        """Look for activations to smooth, and set ``kind``. A small network takes 4 ms.

        With ``unsquash`` forwards with ``slots``, those of the search, return the logits before a
        squashing function at the model's end, see `advcore.oracles.squashing`. ``squash`` is that
        function then.
        """
        self.surveyed = True
        counts = self._survey_counts
        batches, self.batches = self.batches, None  # the numbers of rows are those of the survey
        if not self._is_compiled:  # torch would compile the function modes into it
            self._survey_calls(unsquash, counts)
        graph = self._graph(counts)
        if graph is not None:
            by_calls = dict(vars(self))
            self._searched = graph
            self._survey_calls(unsquash, counts)
            if self._found <= by_calls["_found"]:
                vars(self).update(by_calls)
        self.batches = batches

    @property
    def smoothed(self) -> str:
        """What a search smooths in the model, in words."""
        counts = {} if self._scales is None else self._scales.counts
        parts = [f"{count} {NAMES[kind]}" for kind, count in counts.items()]
        text = ", ".join(parts) or "nothing"
        if self._searched is not None:
            text += "; searched is the graph of the operations"
        if self.unread is not None:
            text += f"; the operations could not be read: {self.unread}"
        return text

    def _survey_calls(self, unsquash: bool, counts: tuple[int, int]) -> None:
        """Look for activations and a squashing function in the calls of the searched model."""
        self._scales, self._squash_call, self.squash, self.kind = None, None, None, "smooth"
        self._found = 0
        try:
            if unsquash:
                self._find_squash(self._survey_image, counts)
            self._survey(self._survey_image, counts)
        except Exception:  # a model that fails under a function mode still runs without one
            self._leaf = self._output = self._scales = self._squash_call = None
            self.kind = "smooth"
        if self._squash_call is None:
            self.squash = None
        smoothed = 0 if self._scales is None else len(self._scales.row_shapes)
        self._found = smoothed + (self._squash_call is not None)

    def _graph(self, counts: tuple[int, int]) -> Any:
        """See `graph_model.searched_graph`; `unread` says why there is none."""
        from .graph_model import searched_graph

        def call(images: torch.Tensor) -> torch.Tensor:
            if self.check_time is not None:
                self.check_time()
            with self._torch.autocast(self._device.type, enabled=False):
                return dense_logits(self._model(images))

        image = wrapped(self._survey_image.copy()).reshape(1, *self._shape)
        image = image.to(self._device, self._dtype)
        graph, self.unread = searched_graph(call, image, counts, self._found)
        return graph

    def _find_squash(self, x: Floats, counts: tuple[int, int]) -> None:
        """Set the number and function of the squashing call at the model's end, if there is one."""
        from .squashing import find_squash

        def call(count: int, mode: Any) -> torch.Tensor:
            with self._torch.inference_mode(False), self._torch.no_grad():
                rows = wrapped(np.repeat(x, count, axis=0)).clone()
                return self._call(rows.to(self._device, self._dtype), mode, True)

        squash = find_squash(call, counts)
        if squash is not None:
            self._squash_call, self.squash = squash.call, squash.output

    @property
    def _survey_counts(self) -> tuple[int, int]:
        """Rows of the two forwards of a survey: 2 and 3, or fewer, or the smallest batches."""
        if self.batches is not None and not self.batches.is_fixed:
            return self.batches.sizes[0], self.batches.sizes[:2][-1]
        return survey_counts(self._batch_size)

    def _survey(self, x: Floats, counts: tuple[int, int]) -> None:
        """Number the activations in forwards of image ``x`` (1, n) with ``counts`` rows.

        Those that follow the rows are kept in ``_scales``, and set the ``kind``.
        """
        from .smoothing import SmoothingScales, surveyed_calls

        def forward(count: int, mode: Any) -> tuple[torch.Tensor, torch.Tensor]:
            leaf = wrapped(np.repeat(x, count, axis=0)).clone().requires_grad_(True)
            return leaf, self._call(leaf.clone().to(self._device, self._dtype), mode, True)

        calls = surveyed_calls(forward, counts, self._squash_call is not None)
        if calls is None:
            self._squash_call = None
            return
        scales = SmoothingScales()
        scales.update(*calls, counts)
        if not scales.row_shapes:
            return
        self._scales = scales
        # The model must also run under the mode: one pass records scales, and one smooths.
        slots, smoothing = np.zeros(1, np.int32), np.ones(1, np.float32)
        logits = self.forward(x, slots=slots, record_scales=np.ones(1, np.bool_), grad=False)
        smoothed, self.smoothed_bytes = with_graph_bytes(
            self._model, lambda: self.forward(x, smoothing, slots)
        )
        self.backward(np.zeros_like(logits))
        scales.table = None
        shift = np.ptp(smoothed - logits)
        if set(scales.counts) == {"largest"} and shift <= 1e-4 * np.ptp(logits):
            self._scales = None  # as in a softmax by hand, which subtracts the maximum
            return
        self.kind = scales.kind
