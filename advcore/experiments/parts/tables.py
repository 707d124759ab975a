"""The results of an experiment: tables of numbers beside the published ones, figures, remarks."""

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

from advcore._files import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

DPI = 150
"""Resolution of the figures as PNG, in dots an inch."""


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    values : its value for every seed, or None where there was nothing to measure.
    published : the paper's value, or None where it has none.
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
        """The mean of the values that were measured, NaN where there is none."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds, None for a single one."""
        return statistics.stdev(self.known) if len(self.known) > 1 else None


@dataclass
class Table:
    """Cells by row and column.

    corner : heading of the column with the rows' names.
    formats : format of the numbers by column, with "" for all other columns.
    """

    name: str
    title: str
    caption: str = ""
    corner: str = ""
    formats: dict[str, str] = field(default_factory=lambda: {"": ".1f"})
    cells: list[Cell] = field(default_factory=list)

    def add(
        self, row: str, column: str, values: float | Iterable[float], published: float | None = None
    ) -> None:
        """Add a cell from one value or from one value a seed.

        NaN means that there was nothing to measure.

        Raises
        ------
        ValueError : a value is infinite, there is no value, or the cell exists already.
        """
        numbers = tuple(map(float, values)) if isinstance(values, Iterable) else (float(values),)
        if not numbers or any(map(math.isinf, numbers)):
            raise ValueError(
                f"{self.name}, {row}, {column}: expected finite numbers, got {numbers}"
            )
        if self.cell(row, column) is not None:
            raise ValueError(f"{self.name}, {row}, {column}: there is such a cell already")
        cell_values = tuple(None if math.isnan(value) else value for value in numbers)
        self.cells.append(Cell(row, column, cell_values, published))

    @property
    def rows(self) -> list[str]:
        """The names of the rows, in the order of the cells."""
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order of the cells."""
        return list(dict.fromkeys(cell.column for cell in self.cells))

    @property
    def compared(self) -> bool:
        """Whether the paper has a number for any cell."""
        return any(cell.published is not None for cell in self.cells)

    def cell(self, row: str, column: str) -> Cell | None:
        """Return the cell of a row and a column, or None where there is none."""
        for cell in self.cells:
            if (cell.row, cell.column) == (row, column):
                return cell
        return None

    def text(self, value: float, column: str) -> str:
        """Format a value of a column."""
        return format(value, self.formats.get(column, self.formats.get("", ".1f")))

    def measured(self, cell: Cell) -> str:
        """Format the mean, the deviation over several seeds, and the count if some are missing."""
        if not cell.known:
            return "–"
        text = self.text(cell.mean, cell.column)
        if cell.deviation is not None:
            text += f" ± {self.text(cell.deviation, cell.column)}"
        incomplete = len(cell.known) < len(cell.values)
        return text + (f" ({len(cell.known)} of {len(cell.values)} seeds)" if incomplete else "")

    def published(self, cell: Cell) -> str:
        """Format the paper's number with the digits that it is quoted with."""
        return "" if cell.published is None else f"{cell.published:g}"

    def markdown(self) -> str:
        """Return a pipe table with the published number in parentheses behind the measured one."""
        lines = [[self.corner, *self.columns], ["---", *["---:"] * len(self.columns)]]
        for row in self.rows:
            line = [row]
            for column in self.columns:
                cell = self.cell(row, column)
                if cell is None:
                    line.append("")
                    continue
                published = self.published(cell)
                line.append(self.measured(cell) + (f" ({published})" if published else ""))
            lines.append(line)
        escaped = ([text.replace("|", r"\|") for text in line] for line in lines)
        return "\n".join("| " + " | ".join(line) + " |" for line in escaped)

    def csv(self) -> str:
        """Return one line a cell: row, column, mean, standard_deviation, published, values."""
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
    """A drawing with its name, title and caption.

    drawing : None where the figure was read from a file.
    """

    name: str
    title: str
    drawing: Drawing | None
    caption: str = ""

    def write(self, folder: Path) -> None:
        """Write ``name``.svg and ``name``.png.

        Raises
        ------
        ValueError : there is no drawing.
        """
        if self.drawing is None:
            raise ValueError(f"the figure {self.name!r} holds no drawing")
        import matplotlib as mpl

        # Without a time stamp and with fixed ids the same numbers give the same file.
        with (
            mpl.rc_context({"svg.hashsalt": self.name}),
            replacing(folder / f"{self.name}.svg") as file,
        ):
            self.drawing.savefig(file, format="svg", metadata={"Date": None})
        with replacing(folder / f"{self.name}.png") as file:
            self.drawing.savefig(file, format="png", dpi=DPI)


@dataclass
class Outcome:
    """All results of one experiment.

    remarks : paragraphs of Markdown on the results.
    finding : the main result in one line of Markdown, for the summary. If it is empty, the first
        line of the remarks stands there.
    headline : table, row and column of the one number that stands in the summary.
    settings : settings that a reader needs to repeat the experiment.
    seconds : computing time of the networks and steps.
    origin : command, date, machine and versions (`origin.origin`).
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
        """The finding, else the first line of the remarks, as Markdown."""
        return self.finding or "\n".join(self.remarks).partition("\n")[0].removeprefix("- ")

    def headline_cell(self) -> tuple[Table, Cell] | None:
        """Return the table and the cell of `headline`, or None where there is no headline.

        Raises
        ------
        ValueError : there is no such cell.
        """
        if self.headline is None:
            return None
        name, row, column = self.headline
        for table in self.tables:
            if table.name == name and (cell := table.cell(row, column)) is not None:
                return table, cell
        raise ValueError(f"{self.name}: there is no cell {self.headline}")

    def write(self, folder: Path) -> None:
        """Write .csv of every table, .png and .svg of every figure, `name`.md and `name`.json.

        The .json holds everything but the drawings. It is written last.
        """
        self.headline_cell()  # it raises where there is no such cell
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
        """Read the .json of `write`, without the drawings."""
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
        """Return the experiment as one Markdown page."""
        parts = [f"# {self.title}", self.question]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown(), table.caption]
        for figure in self.figures:
            parts += [f"## {figure.title}", f"![{figure.title}]({figure.name}.png)", figure.caption]
        if self.remarks:
            parts += ["## Remarks", *self.remarks]
        return "\n\n".join(part for part in parts if part) + "\n"
