"""The imports of a package as its sources have them, and the rule of the rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One module of the package imports another one."""

    importer: str
    imported: str
    line: int
    for_types: bool
    """Whether only type checkers see it, in a block ``if TYPE_CHECKING``."""


def modules(package: Path, name: str) -> dict[str, Path]:
    """Dotted name to file, of a package folder and all below it, with stubs of compiled modules."""
    files = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        files[".".join((name, *parts))] = path
    return files


def imports(files: Mapping[str, Path]) -> list[Import]:
    """Imports of one of these modules by another, wherever they stand in its file.

    ``from package import name`` is an import of the module ``package.name`` where there is one.
    """
    statements = []
    for importer, path in files.items():
        folder = importer if path.stem == "__init__" else importer.rpartition(".")[0]
        for node, for_types in _statements(ast.parse(path.read_text()), False):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                above = folder.split(".")[: len(folder.split(".")) - node.level + 1]
                base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
                names = [f"{base}.{alias.name}" for alias in node.names]
                names = [full if full in files else base for full in names]
            statements += [
                Import(importer, name, node.lineno, for_types)
                for name in dict.fromkeys(names)
                if name in files and name != importer
            ]
    return statements


def _statements(
    node: ast.AST, for_types: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, for_types
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _statements(ast.Module(child.body, []), True)
            yield from _statements(ast.Module(child.orelse, []), for_types)
        else:
            yield from _statements(child, for_types)


Rooms = Sequence[Sequence[Sequence[str]]]
"""Levels from below, each with its rooms, each with its folders and modules in the package."""


def place_of(module: str) -> str:
    """The folder or module in the package; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def without_a_room(files: Mapping[str, Path], rooms: Rooms) -> list[str]:
    """Folders and modules that the table does not name."""
    known = {place for level in rooms for room in level for place in room}
    return sorted({place_of(module) for module in files} - known)


def upward(
    statements: Sequence[Import], rooms: Rooms, only: Mapping[str, Sequence[str]]
) -> list[str]:
    """Imports that the rule forbids, as "importer:line imports imported".

    A room imports itself and rooms of lower levels. The places in ``only`` import those alone.
    Imports for type checkers count: to name a type of a room is to know that room.
    """
    where = {
        place: (height, number)
        for height, level in enumerate(rooms)
        for number, room in enumerate(level)
        for place in room
    }
    forbidden = []
    for each in statements:
        importer, imported = place_of(each.importer), place_of(each.imported)
        allowed = where[imported] == where[importer] or where[imported][0] < where[importer][0]
        if importer in only:
            allowed = imported in (importer, *only[importer])
        if not allowed:
            forbidden.append(f"{each.importer}:{each.line} imports {each.imported}")
    return forbidden


def circles(statements: Sequence[Import]) -> list[list[str]]:
    """Modules that import each other, in groups; an import inside a function counts.

    Imports for type checkers do not count, as none of them runs. Nor does it that Python imports
    ``a`` before ``a.b``: else ``a`` were in a circle with every module of its own that it imports.
    """
    follows: dict[str, set[str]] = {}
    for each in statements:
        if each.for_types:
            continue
        follows.setdefault(each.importer, set()).add(each.imported)
        follows.setdefault(each.imported, set())
    reach = {name: set(targets) for name, targets in follows.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in reach
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]
