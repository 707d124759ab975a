"""What a command prints about a result: a table, or one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ..result.statistics import (
    accuracy_rows,
    distortion_text,
    evaluations_text,
    statistics,
)
from .app import ISA_NAMES

if TYPE_CHECKING:
    from ..result import Result

FORMAT = "advcore.summary.1"
"""Name of the form of the JSON object."""


def summary_json(
    result: Result, eps: Sequence[float], files: Mapping[str, Path], ended: str
) -> dict[str, Any]:
    """Return what ``advcore attack --json`` prints.

    Parameters
    ----------
    files : what was written, by what it is.
    ended : "finished", or what ended the run early.
    """
    return {
        "format": FORMAT,
        "ended": ended,
        **statistics(result, eps),
        "engine": result.engine,
        "record": result.record,
        "files": {name: str(path) for name, path in files.items()},
    }


def print_table(result: Result, eps: Sequence[float]) -> None:
    """Print the figures of a result as a table."""
    table = Table(show_header=False, title="minimum-distortion adversarial examples")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(result, eps):
        table.add_row(name, value)
    Console().print(table)


def summary_rows(result: Result, eps: Sequence[float] = ()) -> list[tuple[str, str]]:
    """Return the lines (name, value) of the table. Distortions are over the successes."""
    figures = statistics(result, eps)
    count, successes = figures["images"], figures["adversarial"]
    share = f" ({successes / count:.1%})" if count else ""
    rows = [("success", f"{successes} of {count}{share}"), *accuracy_rows(result, figures)]
    if successes:
        rms = figures["rms_distortion"]["mean"]
        rows += [
            (f"distortion {result.measure}", distortion_text(result, figures)),
            ("RMS distortion sqrt(mean r^2)", f"mean {rms:.5f}"),
        ]
    if count:
        rate = figures["images_per_second"]
        rows += [
            ("evaluations per image", evaluations_text(figures)),
            ("further forwards per image", f"mean {figures['forwards']['mean']:.1f}"),
            ("images per second", f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"),
            ("status", result.status_text()),
        ]
    rows.append(("seconds", f"{result.seconds:.3f}"))
    rows += [
        (f"engine: {key}", ISA_NAMES.get(str(value), str(value)) if key == "isa" else str(value))
        for key, value in result.engine.items()
    ]
    return rows
