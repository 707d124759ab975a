"""The state of a run while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from ._durations import rough


@dataclass(frozen=True)
class Progress:
    """State of a run, which is passed to ``callback``. The run stops when that returns True.

    Attributes
    ----------
    finished, total : int
        Finished images and all images.
    succeeded : int
        Finished images with an adversarial one.
    evaluations : int
        Pairs of a forward and a backward so far.
    seconds : float
        Time since the run began.
    """

    finished: int
    total: int
    succeeded: int
    evaluations: int
    seconds: float

    @property
    def rate(self) -> float:
        """Finished images per second so far."""
        return self.finished / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Time for the rest at this rate. None: no image is finished."""
        return (self.total - self.finished) / self.rate if self.rate else None

    def text(self) -> str:
        """Return the state as one line, with the rate and the remaining time."""
        text = f"{self.finished}/{self.total}, succeeded {self.succeeded}, {self.seconds:.0f} s"
        if not self.remaining_seconds:
            return text
        return f"{text}, {self.rate:.3g} images/s, {rough(self.remaining_seconds)} left"
