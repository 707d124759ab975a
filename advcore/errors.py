"""Errors that carry what was computed before them, and warnings that point at the caller."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import Result


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run.

    ``result`` holds every image that was finished. The others have the status ``interrupted`` and
    the best adversarial image found for them so far, if any.
    """

    def __init__(self, result: Result) -> None:
        super().__init__("interrupted; the exception's .result holds what was computed")
        self.result = result


class DeviceError(RuntimeError):
    """The GPU or its memory failed.

    ``result`` is as in `Interrupted`, or None if the run had not begun.
    """

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class NoAnswer(DeviceError):
    """The GPU hangs: it has not answered in time. The process can use it no more."""


class ModelRaised(ValueError):
    """The model raised in a forward. Its exception is the cause. A run ends with `ModelError`."""


class OutOfTime(Exception):
    """The time limit has passed while the model was tried. No call of a user ends with it."""


class ModelError(RuntimeError):
    """The model raised during a run.

    Its exception is the cause. ``result`` is as in `Interrupted`. Where the search ran on the model
    itself, the best image so far of each is a success, as the logits that the model gave for it
    have the required margin; the model is not asked again. Where it ran on another network, such as
    the native form of a module, or before a squashing function, or bounds are own or wide, images
    that were not verified are no successes, but ``adversarial`` has them. With ``levels`` no image
    is moved to the grid, and none is a success.
    """

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside this package that led to this call, however deep it is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("advcore."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
