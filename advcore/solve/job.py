"""A checked job, its progress, and the one who watches it."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """State of a run; given to ``callback``, which stops the run by returning True."""

    finished: int
    total: int
    succeeded: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """Checked arrays of a run: flat images (N, n), labels (N,), bounds, starts (N, S, n)."""

    params: _core.Params
    images: Floats
    labels: NDArray[np.int32]
    lo: Floats
    hi: Floats
    starts: Floats | None

    def part(self, rows: NDArray[np.intp]) -> Job:
        """The job of these images alone."""

        def own(values: Floats) -> Floats:
            return values[rows] if values.ndim == 2 else values

        starts = None if self.starts is None else self.starts[rows]
        return Job(
            *(self.params, self.images[rows], self.labels[rows], own(self.lo), own(self.hi)), starts
        )


@dataclass
class Watch:
    """Time limit and callback of a run; ``error`` is what the callback raised."""

    total: int
    time_limit: float | None
    callback: Callable[[Progress], object] | None
    begin: float
    error: Exception | None = None
    stopped: bool = False  # by the callback, which is not called again
    before: tuple[int, int, int] = (0, 0, 0)  # finished, succeeded, evaluations of earlier runs

    def after(self, results: dict[str, NDArray[Any]]) -> Watch:
        """The same for a run of the images that an earlier one left as interrupted."""
        done = results["status"] != _core.Status.interrupted
        counts = (done, results["success"] & done, results["evaluations"] * done)
        self.before = (int(counts[0].sum()), int(counts[1].sum()), int(counts[2].sum()))
        return self

    def late(self) -> bool:
        """Whether the time limit has passed."""
        seconds = time.perf_counter() - self.begin
        return self.time_limit is not None and seconds >= self.time_limit

    def __call__(self, finished: int, succeeded: int, evaluations: int) -> bool:
        """Whether to go on."""
        if self.stopped:
            return False
        seconds = time.perf_counter() - self.begin
        counts = (finished, succeeded, evaluations)
        finished, succeeded, evaluations = map(operator.add, self.before, counts)
        state = Progress(finished, self.total, succeeded, evaluations, seconds)
        try:
            answer = None if self.callback is None else self.callback(state)
        except Exception as error:
            self.error, self.stopped = error, True
            raise
        self.stopped = isinstance(answer, (bool, np.bool_)) and bool(answer)
        return not (self.stopped or self.late())
