"""A checked job, and the monitor of its run."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import OutOfTime
from ..options import Progress
from .interrupts import Interrupts

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """Checked arrays of a run: flat images (N, n), labels (N,), bounds, starts (N, S, n)."""

    params: _core.Params
    images: Floats
    labels: NDArray[np.int32]
    lo: Floats
    hi: Floats
    starts: Floats | None

    @functools.cached_property
    def core(self) -> _core.Job:
        """The same for the engine, which checks the arrays and keeps them."""
        return _core.Job(self.params, self.images, self.labels, self.lo, self.hi, self.starts)

    def part(self, rows: NDArray[np.intp]) -> Job:
        """The job of these images alone."""
        lo, hi = self.bounds_of(rows)
        starts = None if self.starts is None else self.starts[rows]
        return Job(self.params, self.images[rows], self.labels[rows], lo, hi, starts)

    def bounds_of(self, rows: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Bounds of these images: (n,) where all images share them, else (B, n)."""
        if self.lo.ndim == 1:
            return self.lo, self.hi
        return self.lo[rows], self.hi[rows]


@dataclass
class TrialClock:
    """Time limit of the trials that a model passes before the run.

    Attributes
    ----------
    time_limit : float, optional
        Seconds since ``begin``, a value of `time.perf_counter`.
    ended : bool
        Whether the trials are over.
    """

    time_limit: float | None
    begin: float
    ended: bool = False

    def check(self) -> None:
        """Raise OutOfTime if the limit has passed in the trials."""
        seconds = time.perf_counter() - self.begin
        if not self.ended and self.time_limit is not None and seconds >= self.time_limit:
            raise OutOfTime


@dataclass
class RunMonitor:
    """Time limit and callback of a run.

    Attributes
    ----------
    total : int
        Number of images.
    time_limit : float, optional
        Seconds since ``begin``, a value of `time.perf_counter`.
    callback : callable, optional
        The caller's; it is not called again after it has stopped the run or has raised.
    interrupts : Interrupts
        Ctrl-C, which each report raises if it was pressed.
    error : Exception, optional
        What the callback raised.
    stopped : bool
        Whether the callback has ended the run.
    counts_before : _core.Counts
        Counts of earlier runs of the same job.
    """

    total: int
    time_limit: float | None
    callback: Callable[[Progress], object] | None
    begin: float
    interrupts: Interrupts = field(default_factory=Interrupts)
    error: Exception | None = None
    stopped: bool = False
    counts_before: _core.Counts = field(default_factory=_core.Counts)

    def resume(self, results: dict[str, NDArray[Any]]) -> None:
        """Count the finished images of ``results`` in what follows: a run of the unfinished."""
        finished = results["status"] != _core.Status.interrupted
        self.counts_before = _counts(
            finished, results["success"] & finished, results["evaluations"] * finished
        )

    def report_whole(self, results: dict[str, NDArray[Any]]) -> None:
        """The last report of a run: the counts of its results."""
        finished = results["status"] != _core.Status.interrupted
        self.counts_before = _core.Counts()
        self(_counts(finished, results["success"], results["evaluations"]))

    def timed_out(self) -> bool:
        """Whether the time limit has passed."""
        seconds = time.perf_counter() - self.begin
        return self.time_limit is not None and seconds >= self.time_limit

    def __call__(self, counts: _core.Counts) -> bool:
        """Report to the callback; whether to go on."""
        self.interrupts.check()
        if self.stopped:
            return False
        seconds = time.perf_counter() - self.begin
        counts = self.counts_before + counts
        progress = Progress(
            counts.finished, self.total, counts.succeeded, counts.evaluations, seconds
        )
        try:
            with self.interrupts.raising():
                answer = None if self.callback is None else self.callback(progress)
        except Exception as error:
            self.error, self.stopped = error, True
            raise
        self.stopped = isinstance(answer, (bool, np.bool_)) and bool(answer)
        return not (self.stopped or self.timed_out())


def _counts(
    finished: NDArray[Any], succeeded: NDArray[Any], evaluations: NDArray[Any]
) -> _core.Counts:
    """The sums of these arrays (N,)."""
    counts = _core.Counts()
    counts.finished = int(finished.sum())
    counts.succeeded = int(succeeded.sum())
    counts.evaluations = int(evaluations.sum())
    return counts
