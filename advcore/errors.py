"""Errors that carry what was computed before them, and warnings that point at the caller."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import Result


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run.

    ``result`` holds every image that was finished; the others have the status ``interrupted`` and
    the best adversarial image found for them so far, if any.
    """

    def __init__(self, result: Result) -> None:
        super().__init__("interrupted; the exception's .result holds what was computed")
        self.result = result


class DeviceError(RuntimeError):
    """The GPU, or its memory, failed during a run; ``result`` as in `Interrupted`, None where the
    run had not begun.
    """

    def __init__(self, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class ModelRaised(ValueError):
    """The model raised in a forward; its exception is the cause. A run ends with `ModelError`."""


class ModelError(RuntimeError):
    """The model raised during a run; its exception is the cause, ``result`` as in `Interrupted`.

    What the search found is not verified again, and with ``levels`` not on the grid: no success.
    """

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.result)


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of this package that led here, however deep the call is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("advcore."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
