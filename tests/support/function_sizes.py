"""Lengths of the functions of Python and C++ sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CONTROL = re.compile(r"^(else\b|do\b|try\b)|\b(if|for|while|switch|catch)\s*(constexpr\s*)?\(")
TYPE = re.compile(r"(namespace|struct|class|enum|union|extern)\b")
TEMPLATE = re.compile(r"template\s*<(?:[^<>]|<[^<>]*>)*>\s*")


def in_python(path: Path) -> dict[str, int]:
    """Qualified name to the lines of the body, without its docstring."""
    found: dict[str, int] = {}

    def visit(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{outer}.{child.name}" if outer else child.name
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = child.body[ast.get_docstring(child) is not None :]
                first = body[0].lineno if body else 0
                found[name] = (body[-1].end_lineno or first) - first + 1 if body else 0
            visit(child, name)

    visit(ast.parse(path.read_text()), "")
    return found


def in_cpp(path: Path) -> dict[str, int]:
    """Name to the lines between the braces, of functions outside other functions.

    A brace opens a function where the text before it has a list of parameters and is neither a
    statement nor a type. A constructor with a member initialised in braces is listed under the
    name of its last member.
    """
    text = _without_text(path.read_text())
    found: dict[str, int] = {}
    opened: list[tuple[str, int]] = []  # name of the function or "", line
    start = 0
    for position, letter in enumerate(text):
        if letter == "{":
            header = text[start:position].strip()
            inside = any(name for name, _ in opened)
            opened.append(("" if inside else _function(header), text.count("\n", 0, position)))
        elif letter == "}" and opened:
            name, line = opened.pop()
            if name:
                lines = text.count("\n", 0, position) - line - 1
                found[name] = max(lines, found.get(name, 0))
        if letter in "{};":
            start = position + 1
    return found


def _function(header: str) -> str:
    """The name of the function that these words begin; empty where they begin none."""
    header = re.sub(r"__launch_bounds__\([^()]*\)", "", TEMPLATE.sub("", header))
    before, bracket, _ = header.partition("(")
    name = re.search(r"(operator\s*\S+|[\w:~<>]+)\s*$", before)
    if header.count("(") != header.count(")"):  # a list in braces among arguments
        return ""
    if not bracket or name is None or TYPE.match(header) or CONTROL.search(header):
        return ""
    return name[1]


def _without_text(source: str) -> str:
    """The source without comments, strings and lines of the preprocessor, line for line."""
    pattern = (
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^[ \t]*#(?:\\\n|[^\n])*'
    )
    return re.sub(
        pattern, lambda text: "\n" * text[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE
    )
