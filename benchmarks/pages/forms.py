"""The table of docs/models.md on forms of one network, from bench_forms.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("bench_forms",)
PAGE = DOCS / "models.md"


def forms_table(figures: dict[str, Any]) -> str:
    """A row for each form."""
    rows = []
    for name, form in figures.items():
        rows.append((
            name, form["engine"]["path"], f"{form['success']:.0%}", f"{form['evaluations']:.1f}",
            f"{form['distortion']:.4f}", f"{form['us_an_evaluation']:.0f} us",
        ))  # fmt: skip
    head = ("form", "runs", "success", "evaluations", "distortion", "CPU time of an evaluation")
    return table(head, rows)


def files() -> dict[Path, str]:
    """docs/models.md with its table."""
    block = forms_table(machine.load("bench_forms")["forms"])
    return {PAGE: between("forms", PAGE.read_text(), block)}
