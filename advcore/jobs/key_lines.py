"""The lines of a TOML file on which its keys are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def key_lines(text: str, loads: Callable[[str], Any]) -> dict[tuple[str, ...], int]:
    """Return the number of the line, from 1, on which each table and key begins.

    text : the content of a valid file.
    loads : the parser, which raises a ValueError for what is not TOML. A statement is the shortest
        run of lines that it takes, so that a value may have several lines.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    statement: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        statement.append(line)
        try:
            parsed = loads("\n".join(statement))
        except ValueError:
            continue
        begin = number - len(statement) + 1
        paths = list(_paths(parsed))
        if statement[0].lstrip().startswith("["):
            table = paths[-1]
            lines.setdefault(table, begin)
        else:
            for path in paths:
                lines.setdefault(table + path, begin)
        statement.clear()
    return lines


def _paths(table: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the path of each key of nested tables, an outer one before those in it."""
    for name, value in table.items():
        yield (name,)
        if isinstance(value, dict):
            for path in _paths(value):
                yield (name, *path)
