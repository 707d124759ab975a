"""The command `advcore reproduce`, which runs the experiments and prints their tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from .. import experiments
from .app import RAISED, OutputFailed, app, one_line_errors, print_note, printing

if TYPE_CHECKING:
    from ..experiments.parts.tables import Cell, Outcome, Table

FULL_SEEDS, QUICK_SEEDS = 5, 1
"""Default repetitions of an experiment, without and with --quick."""
_NAMES = f"all, or any of {', '.join(experiments.EXPERIMENTS)}"


@app.command(no_args_is_help=True)
def reproduce(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=_NAMES)],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="fewer images and epochs: all in ten minutes on two cores"),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            help=f"repetitions with new networks; default: {FULL_SEEDS}, {QUICK_SEEDS} with --quick"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of the results; a run that was broken off goes on there; "
            "default: reproduction, reproduction_quick with --quick"
        ),
    ] = None,
    dataset: Annotated[
        str, typer.Option(help="mnist, or embedded: the 1,000 digits of the package")
    ] = "mnist",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="print errors alone: no tables and no progress")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Runs the experiments of "Intriguing properties of neural networks" (Szegedy et al. 2013).

    Prints each table beside the published one. Writes NAME/ with JSON, CSV, Markdown and pictures,
    and report.html with all that the folder holds.
    """
    printer = Printer()
    folder = out or Path("reproduction_quick" if quick else "reproduction")
    begin = time.perf_counter()
    with one_line_errors(debug, quiet) as stage:
        stage.name = f"(what is finished is kept in {folder}; the same command goes on)"
        failed = None
        try:
            experiments.reproduce(
                names,
                folder,
                scale="quick" if quick else "full",
                seeds=seeds if seeds is not None else QUICK_SEEDS if quick else FULL_SEEDS,
                dataset=dataset,
                progress=not quiet,
                finished=None if quiet else printer.print_outcome,
            )
        except experiments.ExperimentsFailed as error:
            failed = error
        if not quiet:
            with printer.printing():
                print(f"report: {folder / 'report.html'}")
                print(f"time: {time.perf_counter() - begin:.0f} s")
        if printer.failure is not None:
            raise printer.failure
    if failed is not None:
        print_note(f"error: {failed}")
        raise typer.Exit(RAISED)


class Printer:
    """Prints outcomes as they come, and goes on without printing where stdout fails."""

    def __init__(self) -> None:
        self.failure: OutputFailed | None = None

    @contextmanager
    def printing(self) -> Iterator[None]:
        """Print in the block, and keep a failure of stdout in `failure`."""
        try:
            with printing():
                yield
        except OutputFailed as error:
            self.failure = error

    def print_outcome(self, outcome: Outcome) -> None:
        """Print one outcome."""
        with self.printing():
            print_outcome(outcome)


def print_outcome(outcome: Outcome) -> None:
    """Print the tables and remarks of one experiment."""
    console = Console(highlight=False)
    grids = [table_grid(table) for table in outcome.tables]
    if not console.is_terminal:  # A file has no width, so that nothing needs to be folded.
        options = console.options.update(width=10_000)
        widths = [Measurement.get(console, options, grid).maximum for grid in grids]
        console.width = max([console.width, *widths])
    console.print(outcome.title, style="bold", markup=False)
    for grid in grids:
        console.print(grid)
    legend = []
    if any(cell.deviation is not None for table in outcome.tables for cell in table.cells):
        legend.append(f"mean ± standard deviation over {outcome.origin['seeds']} seeds")
    if any(table.compared for table in outcome.tables):
        legend.append("the published number in parentheses beneath")
    if legend:
        console.print("; ".join(legend), style="dim")
    for remark in outcome.remarks:
        console.print(Markdown(remark), width=min(console.width, 100))
    console.print()


def table_grid(table: Table) -> Grid:
    """Return a table of the measured numbers, each above the published one in parentheses."""
    grid = Grid(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD)
    grid.add_column(Text(table.corner))
    for column in table.columns:
        grid.add_column(Text(column), justify="right")
    for row in table.rows:
        cells = [table.cell(row, column) for column in table.columns]
        grid.add_row(Text(row), *("" if cell is None else _number(table, cell) for cell in cells))
    return grid


def _number(table: Table, cell: Cell) -> Text:
    text = Text(table.measured(cell))
    if cell.published is not None:
        text.append(f"\n({table.published(cell)})", "dim")
    return text
