"""The table of docs/performance.md on launches through torch, from count_launches.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("count_launches",)
PAGE = DOCS / "performance.md"
WAYS = ("exact", "smoothed by operators", "smoothed")


def launches_table(figures: dict[str, Any]) -> str:
    """Launches and megabytes of each way, in all and without those of the exact network."""
    exact = figures["exact"]
    rows = []
    for way in WAYS:
        result = figures[way]
        more = [result[key] - exact[key] for key in ("launches", "megabytes_an_image")]
        rows.append((
            way, f"{result['launches']:,}", f"{result['megabytes_an_image']:,.0f} MB",
            "" if way == "exact" else f"{more[0]:,} and {more[1]:,.0f} MB",
        ))  # fmt: skip
    head = ("an evaluation", "launches", "read and written, an image", "more than exact")
    return table(head, rows)


def files() -> dict[Path, str]:
    """docs/performance.md with its table."""
    block = launches_table(machine.load("count_launches"))
    return {PAGE: between("launches", PAGE.read_text(), block)}
