"""Markdown for the pages that are made of figures."""

from __future__ import annotations

import re
from collections.abc import Sequence


def between(name: str, text: str, made: str) -> str:
    """The text with ``made`` between the marks <!-- name: ... --> and <!-- /name -->."""
    block = re.compile(rf"(<!-- {name}: .*?-->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not block.search(text):
        raise ValueError(f"there are no marks <!-- {name}: ... --> and <!-- /{name} -->")
    return block.sub(lambda marks: f"{marks[1]}{made}\n{marks[2]}", text)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
