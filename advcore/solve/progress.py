"""A progress bar on the standard error. Needs rich (``pip install "advcore[cli]"``)."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .._extras import require
from ..options import Progress

LINE_SECONDS = 1.0
"""Seconds between two states of the text that stands for a bar in a notebook."""
LOG_SECONDS = 30.0
"""Seconds between two lines where the standard error is a file or a pipe."""


class _Lenient:
    """A text file that drops what cannot be written, so that a closed or full one ends no run."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


def _stderr() -> Any:
    return None if sys.stderr is None else _Lenient(sys.stderr)


@contextmanager
def bar(
    total: int, callback: Callable[[Progress], object] | None = None
) -> Iterator[Callable[[Progress], object]]:
    """A callback that draws the bar, and then calls ``callback``.

    In a notebook without ipywidgets, which rich needs there, a line of text is written again
    and again instead. Where the standard error is no terminal, a line comes every 30 seconds.
    """
    require("rich", "cli", "progress=True")
    from rich.console import Console

    console = Console(file=_stderr(), stderr=True)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        with _text(total, callback) as update:
            yield update
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("attacking"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("succeeded {task.fields[succeeded]}"),
        TextColumn("{task.fields[rate]:.3g} images/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=console) as display:
        task = display.add_task("attacking", total=total, succeeded=0, rate=0.0)
        shown_at = time.perf_counter()

        def update(state: Progress) -> object:
            nonlocal shown_at
            display.update(
                task, completed=state.finished, succeeded=state.succeeded, rate=state.rate
            )
            now = time.perf_counter()
            if not console.is_terminal and now - shown_at >= LOG_SECONDS:  # a bar is no line
                shown_at = now
                console.print(f"attacking {state.text()}", highlight=False)
            return None if callback is None else callback(state)

        yield update


@contextmanager
def _text(
    total: int, callback: Callable[[Progress], object] | None
) -> Iterator[Callable[[Progress], object]]:
    """A callback that writes the state over the last one, as notebooks understand it."""
    shown_at = -LINE_SECONDS
    last, width = Progress(0, total, 0, 0, 0.0), 0

    def show() -> None:
        nonlocal width
        text = f"attacking {last.text()}"
        print(f"\r{text:<{width}}", end="", file=sys.stderr, flush=True)
        width = len(text)  # spaces cover what is left of a longer text

    def update(state: Progress) -> object:
        nonlocal last, shown_at
        last, now = state, time.perf_counter()
        if now - shown_at >= LINE_SECONDS:
            shown_at = now
            show()
        return None if callback is None else callback(state)

    show()
    try:
        yield update
    finally:
        show()
        print(file=sys.stderr, flush=True)
