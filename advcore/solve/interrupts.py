"""Ctrl-C, and SIGTERM where it counts as one, while a call has results to lose."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a call, where Python's own handler of Ctrl-C has them."""


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C in the block, unless the process has a handler of its own."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Interrupts:
    """Takes Ctrl-C for a call, and raises `KeyboardInterrupt` only where the results are safe.

    Inside the block a Ctrl-C is noted. It raises at once in a block of `raising`, the second one
    also in a block of `insistent`; `check` raises what was noted. Handlers other than Python's own
    are left alone, as are threads that get no signals: there the block does nothing. Of SIGTERM the
    same holds, which has Python's handler of Ctrl-C in a block of `sigterm_as_ctrl_c`.
    """

    def __init__(self) -> None:
        self.presses = 0
        self._checked = 0
        self._raises_from: int | None = None  # the number of the press that raises
        self._installed: list[signal.Signals] = []

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if signal.getsignal(each) is signal.default_int_handler:
                    self._installed.append(each)
                    signal.signal(each, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in self._installed:
            signal.signal(each, signal.default_int_handler)

    @property
    def pending(self) -> bool:
        """Whether Ctrl-C was pressed and has not been raised."""
        return self.presses > self._checked

    def check(self) -> None:
        """Raise a Ctrl-C that was noted."""
        if self.pending:
            self._checked = self.presses
            raise KeyboardInterrupt

    @contextmanager
    def raising(self) -> Iterator[None]:
        """A block in which Ctrl-C raises at once. What the block loses nobody misses."""
        self.check()
        with self._raise_from(1):
            yield

    @contextmanager
    def insistent(self) -> Iterator[None]:
        """A block that ends in good time by itself. Only the second Ctrl-C of the call raises."""
        with self._raise_from(2):
            yield

    @contextmanager
    def _raise_from(self, press: int) -> Iterator[None]:
        before, self._raises_from = self._raises_from, press
        try:
            yield
        finally:
            self._raises_from = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.presses += 1
        if self._raises_from is not None and self.presses >= self._raises_from:
            self._checked = self.presses
            raise KeyboardInterrupt
