"""The tables of docs/architectures.md, from survey_architectures.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("survey_architectures",)
PAGE = DOCS / "architectures.md"


def summary(rows: dict[str, Any]) -> str:
    """Numbers of architectures by what became of them."""
    values = list(rows.values())
    return table(
        ("architectures", "in the engine", "through torch, smoothed", "through torch, nothing to "
         "smooth", "without a graph", "wrong"),
        [tuple(map(str, (
            len(values),
            sum(row["path"] == "native" for row in values),
            sum(row["path"] == "torch" and bool(row["smoothed"]) for row in values),
            sum(row["path"] == "torch" and not row["smoothed"] for row in values),
            sum(isinstance(row["graph"], str) for row in values),
            sum(row["wrong"] for row in values),
        )))],
    )  # fmt: skip


def _differences(part: dict[str, float] | str) -> str:
    """Differences of logits and gradient, or why there is no graph."""
    if isinstance(part, str):
        return part
    return ", ".join("0" if value == 0 else f"{value:.0e}" for value in part.values())


def _reason(row: dict[str, Any]) -> str:
    """Why a row does not run in the engine, without the names of nodes and classes."""
    if row["path"] == "native":
        return ""
    place, _, why = row["reason"].partition(": ")
    words = place.split()
    operation = words[1].removesuffix(".default") if words[0] == "operation" else place
    return f"`{operation}`: {why}" if why else place


def architectures_table(rows: dict[str, Any]) -> str:
    """A row for each architecture."""
    cells = []
    for name, row in rows.items():
        counts = row["smoothed"]
        words = [f"{count} on {where}" for where, count in counts.items() if count]
        cells.append((
            name.replace(": ", " "), "x".join(map(str, row["shape"])),
            f"{row['parameters'] / 1e6:.1f} M", row["path"], ", ".join(words) or "none",
            f"{row.get('operations', '')}", _differences(row["search"]),
            _differences(row["graph"]), _reason(row),
        ))  # fmt: skip
    head = ("architecture", "images", "parameters", "runs", "smoothed calls", "operations",
            "search: logits, gradient", "graph: logits, gradient", "why through torch")  # fmt: skip
    return table(head, cells)


def files() -> dict[Path, str]:
    """docs/architectures.md with its tables."""
    rows = machine.load("survey_architectures")["rows"]
    text = between("summary", PAGE.read_text(), summary(rows))
    return {PAGE: between("architectures", text, architectures_table(rows))}
