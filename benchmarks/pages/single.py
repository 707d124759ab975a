"""The table of docs/decisions.md on calls with one image, from bench_single.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("bench_single",)
PAGE = DOCS / "decisions.md"
COLUMNS = {
    "first": "new",
    "again": "the same",
    "training": "other weights",
    "check": "comparison",
    "evaluation": "an evaluation",
}


def single_table(figures: dict[str, Any]) -> str:
    """Milliseconds by network."""
    rows = [
        (name, *(f"{network[column]:.2f}" for column in COLUMNS))
        for name, network in figures.items()
    ]
    return table(("network", *COLUMNS.values()), rows)


def files() -> dict[Path, str]:
    """docs/decisions.md with its table."""
    block = single_table(machine.load("bench_single")["networks"])
    return {PAGE: between("single", PAGE.read_text(), block)}
