"""Writes advcore/_core.pyi from the installed compiled module, or checks it (``--check``).

pybind11-stubgen does the work; what mypy --strict rejects in its output is put right here: members
of enums without their values, and containers without their types.
"""

from __future__ import annotations

import argparse
import ast
import enum
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).resolve().parent.parent / "advcore" / "_core.pyi"
MODULE = "advcore._core"
TYPED = {"tuple": "tuple[typing.Any, ...]", "dict": "dict[str, typing.Any]"}


class Repair(ast.NodeTransformer):
    """Enum classes from the live module, and type arguments for bare tuples and dicts."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        live = getattr(importlib.import_module(MODULE), node.name)
        if issubclass(live, enum.Enum):
            members = [f"{member.name} = {member.value}" for member in live]
            node.body = [*node.body[: ast.get_docstring(node) is not None], *_parse(members)]
            return node
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if isinstance(node.returns, ast.Name) and node.returns.id in TYPED:
            node.returns = ast.parse(TYPED[node.returns.id], mode="eval").body
        return node


def _parse(lines: list[str]) -> list[ast.stmt]:
    return ast.parse("\n".join(lines)).body


def generate() -> str:
    """Text of the stub."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", MODULE, "--output-dir", folder]
        subprocess.run(command, check=True, cwd=folder)
        tree = ast.parse((Path(folder) / "advcore" / "_core.pyi").read_text())
    return f"# Written by tools/make_stub.py\n{ast.unparse(Repair().visit(tree))}\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if it differs")
    stub = generate()
    if not parser.parse_args().check:
        STUB.write_text(stub)
    elif not STUB.is_file() or STUB.read_text() != stub:
        sys.exit(f"{STUB} does not describe the installed module: run `make stub`")
