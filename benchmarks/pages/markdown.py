"""Markdown for the generated pages, and the places of the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"


def between(name: str, text: str, block: str) -> str:
    """The text with ``block`` between the marks <!-- name: ... --> and <!-- /name -->."""
    marks = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"there are no marks <!-- {name}: ... --> and <!-- /{name} -->")
    return marks.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
