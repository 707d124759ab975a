"""The progress of a job: rate, remaining time and success so far, for a terminal or a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from .._durations import rough
from ..options import Progress
from .table import Counts

LINE_SECONDS = 30.0
"""Seconds between two lines of a log."""
TERMINAL_SECONDS = 0.5
"""Seconds between two states of a terminal's line."""


@dataclass(frozen=True)
class JobProgress:
    """State of a job that runs, which is passed to ``callback``.

    Attributes
    ----------
    finished, total : int
        Finished images and all images, of the shard that runs. Earlier runs count.
    succeeded, unreadable, failed : int
        Finished images with an adversarial one, that could not be read, and of blocks on which the
        model raised.
    seconds : float
        Time since this run began.
    rate : float
        Images per second of this run, 0.0 before the first.
    """

    finished: int
    total: int
    succeeded: int
    unreadable: int
    failed: int
    seconds: float
    rate: float

    @property
    def remaining_seconds(self) -> float | None:
        """Time for the rest at this rate. None: the rate is not known."""
        return None if not self.rate else (self.total - self.finished) / self.rate

    def text(self) -> str:
        """Return the state as one line."""
        parts = [f"{self.finished:,} of {self.total:,} images"]
        attacked = self.finished - self.unreadable - self.failed
        if attacked:
            parts.append(f"{self.succeeded / attacked:.1%} adversarial")
        for name in ("unreadable", "failed"):
            if getattr(self, name):
                parts.append(f"{getattr(self, name):,} {name}")
        if self.remaining_seconds:
            parts += [f"{self.rate:.3g} images/s", f"{rough(self.remaining_seconds)} left"]
        return ", ".join(parts)


class Reporter:
    """Reports the progress of a job to a callback, and on the standard error.

    Parameters
    ----------
    total : int
        Images of the job or shard.
    done : Counts
        Those of earlier runs.
    callback : callable, optional
        Called with a `JobProgress`. The job stops when it returns True.
    shown : bool
        Whether a line is shown.
    """

    def __init__(
        self,
        total: int,
        done: Counts,
        callback: Callable[[JobProgress], object] | None,
        shown: bool,
    ) -> None:
        self.stopped = False
        self._total, self._earlier, self._done = total, done.images, done
        self._callback, self._shown = callback, shown
        self._begin = self._last = time.perf_counter()
        self._is_terminal = shown and sys.stderr is not None and sys.stderr.isatty()

    def add(self, counts: Counts) -> None:
        """Count a block that was written, and report it."""
        self._done += counts
        self._report(self._state(0, 0), at_once=self._done.images == self._total)

    def within(self, progress: Progress) -> bool:
        """Report the state of a block in work. Returns whether it shall stop."""
        self._report(self._state(progress.finished, progress.succeeded))
        return self.stopped

    def end(self) -> None:
        """End the line of a terminal."""
        if self._is_terminal:
            self._print("\n")

    def _state(self, finished: int, succeeded: int) -> JobProgress:
        done, seconds = self._done, time.perf_counter() - self._begin
        finished += done.images
        return JobProgress(
            finished,
            self._total,
            done.succeeded + succeeded,
            done.unreadable,
            done.failed,
            seconds,
            (finished - self._earlier) / seconds if seconds > 0 else 0.0,
        )

    def _report(self, state: JobProgress, at_once: bool = False) -> None:
        if self._callback is not None and not self.stopped:
            answer = self._callback(state)
            self.stopped = isinstance(answer, (bool, np.bool_)) and bool(answer)
        now = time.perf_counter()
        pause = TERMINAL_SECONDS if self._is_terminal else LINE_SECONDS
        if self._shown and (at_once or now - self._last >= pause):
            self._last = now
            self._print(f"\r\x1b[K{state.text()}" if self._is_terminal else f"{state.text()}\n")

    def _print(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # closed, full or none
            sys.stderr.write(text)
            sys.stderr.flush()
