"""A progress bar on the standard error. Needs rich (``pip install "advcore[cli]"``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .._extras import require
from ..options import Progress


@contextmanager
def bar(
    total: int, callback: Callable[[Progress], object] | None = None
) -> Iterator[Callable[[Progress], object]]:
    """A callback that draws the bar, and then calls ``callback``."""
    require("rich", "cli", "progress=True")
    from rich.console import Console
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
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("attacking", total=total, succeeded=0)

        def update(state: Progress) -> object:
            shown.update(task, completed=state.finished, succeeded=state.succeeded)
            return None if callback is None else callback(state)

        yield update
