"""What an experiment gives: tables of numbers beside the published ones, figures, remarks."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Cell:
    """One number: its value for every seed, and what the paper has in its place (None: nothing)."""

    row: str
    column: str
    values: tuple[float, ...]
    published: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


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
        self, row: str, column: str, values: float | Sequence[float], published: float | None = None
    ) -> None:
        """A cell from one value or from one value a seed; NaN and infinity are refused."""
        many = tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),)
        if not many or not all(map(math.isfinite, many)):
            raise ValueError(f"{self.name}, {row}, {column}: expected finite numbers, got {many}")
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
        """Mean, and the deviation where there are several seeds."""
        mean = self.text(cell.mean, cell.column)
        if cell.deviation is None:
            return mean
        return f"{mean} ± {self.text(cell.deviation, cell.column)}"

    def published(self, cell: Cell) -> str:
        """The paper's number, in as many digits as it is quoted with."""
        return "" if cell.published is None else f"{cell.published:g}"

    def markdown(self) -> str:
        """A pipe table; the published number stands in parentheses behind the measured one."""
        lines = [[self.corner, *self.columns], ["---"] * (len(self.columns) + 1)]
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
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def write_csv(self, path: Path) -> None:
        """One line a cell: row, column, mean, standard_deviation, published, values."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                ["row", "column", "mean", "standard_deviation", "published", "values"]
            )
            for cell in self.cells:
                spread = "" if cell.deviation is None else f"{cell.deviation:.6g}"
                told = "" if cell.published is None else f"{cell.published:g}"
                values = " ".join(f"{value:.6g}" for value in cell.values)
                writer.writerow([cell.row, cell.column, f"{cell.mean:.6g}", spread, told, values])


@dataclass
class Figure:
    """A drawing, written as ``name``.png and ``name``.svg."""

    name: str
    title: str
    drawing: Drawing
    caption: str = ""

    def write(self, folder: Path) -> None:
        # no time stamp and fixed ids: the same numbers give the same file
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.drawing.savefig(folder / f"{self.name}.svg", metadata={"Date": None})
        self.drawing.savefig(folder / f"{self.name}.png", dpi=150)


@dataclass
class Outcome:
    """All of one experiment; `remarks` are paragraphs of Markdown that say what was found."""

    name: str
    title: str
    question: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def write(self, folder: Path) -> None:
        """`name`.json and .md, a .csv for every table, a .png and .svg for every figure."""
        folder.mkdir(parents=True, exist_ok=True)
        for table in self.tables:
            table.write_csv(folder / f"{table.name}.csv")
        for figure in self.figures:
            figure.write(folder)
        content = {
            "experiment": self.name,
            "title": self.title,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "remarks": self.remarks,
            "tables": [asdict(table) for table in self.tables],
            "figures": [figure.name for figure in self.figures],
        }
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(self.markdown())

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
