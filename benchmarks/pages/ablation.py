"""The table of docs/decisions.md on the parts of the search, made from the figures of ablate.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("ablation",)
PAGE = DOCS / "decisions.md"


def variants_table(networks: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Mean distortion over that of the default and evaluations, by variant and network."""
    rows = []
    for variant in next(iter(networks.values())):
        cells = []
        for variants in networks.values():
            figures = variants[variant]
            share = f" ({figures['success']:.1%} found)" if figures["success"] < 1 else ""
            cells.append(f"{figures['mean_over_default']:.4f}, {figures['evaluations']:.0f}{share}")
        rows.append((variant, *cells))
    return table(("variant", *networks), rows)


def files() -> dict[Path, str]:
    """docs/decisions.md with its table."""
    figures = machine.load("ablation")
    return {PAGE: between("ablation", PAGE.read_text(), variants_table(figures["networks"]))}
