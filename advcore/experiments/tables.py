"""What an experiment gives: tables of numbers beside the published ones, figures, remarks."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .run import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DPI = 150
"""Of the figures as PNG."""


@dataclass(frozen=True)
class Cell:
    """One number: its value for every seed, and what the paper has in its place (None: nothing).

    A value is None where there was nothing to measure.
    """

    row: str
    column: str
    values: tuple[float | None, ...]
    published: float | None = None

    @property
    def known(self) -> list[float]:
        """The values that were measured."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        """Over the values that were measured; NaN where there is none."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None


@dataclass
class Table:
    """Cells by row and column; ``formats`` gives a column's format ("" for all others)."""

    name: str
    title: str
    caption: str = ""
    corner: str = ""
    formats: dict[str, str] = field(default_factory=lambda: {"": ".1f"})
    cells: list[Cell] = field(default_factory=list)

    def add(
        self, row: str, column: str, values: float | Iterable[float], published: float | None = None
    ) -> None:
        """A cell from one value or from one value a seed.

        NaN says that there was nothing to measure. Infinity is refused.
        """
        given = tuple(map(float, values)) if isinstance(values, Iterable) else (float(values),)
        if not given or any(map(math.isinf, given)):
            raise ValueError(f"{self.name}, {row}, {column}: expected finite numbers, got {given}")
        if self.cell(row, column) is not None:
            raise ValueError(f"{self.name}, {row}, {column}: there is such a cell already")
        many = tuple(None if math.isnan(value) else value for value in given)
        self.cells.append(Cell(row, column, many, published))

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def compared(self) -> bool:
        """Whether the paper has a number for any cell."""
        return any(cell.published is not None for cell in self.cells)

    def cell(self, row: str, column: str) -> Cell | None:
        for cell in self.cells:
            if (cell.row, cell.column) == (row, column):
                return cell
        return None

    def text(self, value: float, column: str) -> str:
        return format(value, self.formats.get(column, self.formats.get("", ".1f")))

    def measured(self, cell: Cell) -> str:
        """Mean, the deviation where there are several seeds, how many where some are missing."""
        if not cell.known:
            return "–"
        text = self.text(cell.mean, cell.column)
        if cell.deviation is not None:
            text += f" ± {self.text(cell.deviation, cell.column)}"
        missing = len(cell.known) < len(cell.values)
        return text + (f" ({len(cell.known)} of {len(cell.values)} seeds)" if missing else "")

    def published(self, cell: Cell) -> str:
        """The paper's number, in as many digits as it is quoted with."""
        return "" if cell.published is None else f"{cell.published:g}"

    def markdown(self) -> str:
        """A pipe table; the published number stands in parentheses behind the measured one."""
        lines = [[self.corner, *self.columns], ["---", *["---:"] * len(self.columns)]]
        for row in self.rows:
            line = [row]
            for column in self.columns:
                cell = self.cell(row, column)
                if cell is None:
                    line.append("")
                    continue
                told = self.published(cell)
                line.append(self.measured(cell) + (f" ({told})" if told else ""))
            lines.append(line)
        escaped = ([text.replace("|", r"\|") for text in line] for line in lines)
        return "\n".join("| " + " | ".join(line) + " |" for line in escaped)

    def csv(self) -> str:
        """One line a cell: row, column, mean, standard_deviation, published, values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "column", "mean", "standard_deviation", "published", "values"])
        for cell in self.cells:
            spread = "" if cell.deviation is None else f"{cell.deviation:.6g}"
            mean = f"{cell.mean:.6g}" if cell.known else ""
            values = " ".join("" if value is None else f"{value:.6g}" for value in cell.values)
            writer.writerow([cell.row, cell.column, mean, spread, self.published(cell), values])
        return text.getvalue()


@dataclass
class Figure:
    """A drawing, written as ``name``.png and ``name``.svg; None where it was read back."""

    name: str
    title: str
    drawing: Drawing | None
    caption: str = ""

    def write(self, folder: Path) -> None:
        if self.drawing is None:
            raise ValueError(f"the figure {self.name!r} holds no drawing")
        import matplotlib as mpl

        # no time stamp and fixed ids: the same numbers give the same file
        with (
            mpl.rc_context({"svg.hashsalt": self.name}),
            replacing(folder / f"{self.name}.svg") as file,
        ):
            self.drawing.savefig(file, format="svg", metadata={"Date": None})
        with replacing(folder / f"{self.name}.png") as file:
            self.drawing.savefig(file, format="png", dpi=DPI)


@dataclass
class Outcome:
    """All of one experiment.

    remarks : paragraphs of Markdown that say what was found.
    finding : the same in one line of Markdown, for the summary; "": their first line.
    headline : table, row and column of the one number that stands in the summary.
    settings : what a reader needs to repeat it.
    seconds : computing time of its networks and steps.
    origin : `origin.origin`: command, date, machine and versions.
    """

    name: str
    title: str
    question: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    finding: str = ""
    headline: tuple[str, str, str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line of Markdown: the finding, else how the remarks begin."""
        return self.finding or "\n".join(self.remarks).partition("\n")[0].removeprefix("- ")

    def headline_cell(self) -> tuple[Table, Cell] | None:
        """The number of `headline` and its table."""
        if self.headline is None:
            return None
        name, row, column = self.headline
        for table in self.tables:
            if table.name == name and (cell := table.cell(row, column)) is not None:
                return table, cell
        raise ValueError(f"{self.name}: there is no cell {self.headline}")

    def write(self, folder: Path) -> None:
        """A .csv for every table, a .png and .svg for every figure, `name`.md and `name`.json.

        The .json holds everything but the drawings and is the last to be written.
        """
        self.headline_cell()  # raises where it names none
        folder.mkdir(parents=True, exist_ok=True)
        for table in self.tables:
            write_text(folder / f"{table.name}.csv", table.csv())
        for figure in self.figures:
            figure.write(folder)
        write_text(folder / f"{self.name}.md", self.markdown())
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content["tables"] = [asdict(table) for table in self.tables]
        content["figures"] = [
            {"name": figure.name, "title": figure.title, "caption": figure.caption}
            for figure in self.figures
        ]
        write_text(folder / f"{self.name}.json", json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Outcome:
        """From the .json of `write`, without the drawings."""
        content = json.loads(path.read_text(encoding="utf-8"))
        for table in content["tables"]:
            table["cells"] = [
                Cell(**{**cell, "values": tuple(cell["values"])}) for cell in table["cells"]
            ]
        content["tables"] = [Table(**table) for table in content["tables"]]
        content["figures"] = [Figure(drawing=None, **figure) for figure in content["figures"]]
        if content["headline"] is not None:
            content["headline"] = tuple(content["headline"])
        return Outcome(**content)

    def markdown(self) -> str:
        """The experiment as one Markdown page."""
        parts = [f"# {self.title}", self.question]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown(), table.caption]
        for figure in self.figures:
            parts += [f"## {figure.title}", f"![{figure.title}]({figure.name}.png)", figure.caption]
        if self.remarks:
            parts += ["## Remarks", *self.remarks]
        return "\n\n".join(part for part in parts if part) + "\n"


def write_text(path: Path, text: str) -> None:
    """UTF-8, and all of it or nothing."""
    with replacing(path) as file:
        file.write(text.encode())
