"""The tables of docs/adapters.md on optimality by AttackBench, from bench_attackbench.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between
from .markdown import table as markdown_table

FIGURES = ("bench_attackbench",)
PAGE = DOCS / "adapters.md"


def table(values: dict[str, Any], budgets: list[int]) -> str:
    """Rows of attacks, best at the largest budget first: global optimality and queries."""
    names = {attack.rpartition(" at ")[0] for attack in values}

    def entry(name: str, budget: int) -> str:
        value = values.get(f"{name} at {budget}")
        if value is None:
            return ""
        return f"{value['global_optimality']:.4f} ({value['queries']:.0f})"

    ordered = sorted(names, key=lambda name: (entry(name, budgets[-1]), name), reverse=True)
    head = ("attack", *(f"{budget:,} queries" for budget in budgets))
    return markdown_table(head, [(name, *(entry(name, b) for b in budgets)) for name in ordered])


def tables(figures: dict[str, Any]) -> str:
    """What was run, and a table for each norm."""
    networks = ", ".join(figures["networks"])
    parts = [
        f"Global optimality (mean queries an image) on {figures['images']} images of {networks}."
    ]
    for norm, values in figures["norms"].items():
        parts += [f"{norm}:", table(values, figures["budgets"])]
    return "\n\n".join(parts)


def files() -> dict[Path, str]:
    """docs/adapters.md with its tables."""
    return {PAGE: between("attackbench", PAGE.read_text(), tables(machine.load(FIGURES[0])))}
