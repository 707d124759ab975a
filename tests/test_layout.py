"""The layout: which room of the package imports which, and how long files and functions are."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import function_sizes
from support.imports import Import, Rooms, circles, imports, modules, upward, without_a_room
from support.native_build import ROOT

ROOMS: Rooms = (
    [
        [
            "_core",
            "_version",
            "_extras",
            "_former",
            "_durations",
            "_files",
            "_progress",
            "_arrays",
            "_pictures",
            "errors",
            "effort",
            "options",
            "report",
            "result",
            "validate",
        ]
    ],
    [["network"]],
    [["data"], ["fingerprint"], ["kernels"]],  # The embedded network is a Network.
    [["oracles"]],
    [["solve"]],
    [["api"]],
    [["models"], ["reference"]],
    [["torch_modules"]],  # It is a former name, for stored modules.
    [[""]],  # advcore/__init__.py with the public names
    [["adapters"], ["compare"], ["diagnosis"], ["certify"], ["jobs"], ["experiments"]],
    [["cli"]],
)
ONLY = {"kernels": ("network", "_core")}


pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source folder")


def write_package(folder: Path, sources: dict[str, str]) -> dict[str, Path]:
    """Write a package ``p`` with these sources by file name, and return its modules."""
    for name, source in sources.items():
        path = folder / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return modules(folder / "p", "p")


def pairs(statements: list[Import]) -> set[tuple[str, str]]:
    return {(each.importer, each.imported) for each in statements}


# --- the checks themselves, on small packages


def test_imports_of_every_form_are_seen(tmp_path: Path) -> None:
    files = write_package(
        tmp_path,
        {
            "__init__.py": "from . import a",
            "a.py": "import os, p.b\nimport p.room.c as other",
            "b.py": "from p import a as x, missing\nfrom p.room import c, name",
            "_core.pyi": "import typing",
            "room/__init__.py": "from .c import name\nfrom ..a import value",
            "room/c.py": "def f():\n    if f:\n        from ..b import y\n    from .. import _core",
            "room/d.py": "class A:\n    from . import c",
        },
    )
    assert set(files) == {"p", "p.a", "p.b", "p._core", "p.room", "p.room.c", "p.room.d"}
    assert pairs(imports(files)) == {
        ("p", "p.a"), ("p.a", "p.b"), ("p.a", "p.room.c"), ("p.b", "p.a"), ("p.b", "p"),
        ("p.b", "p.room.c"), ("p.b", "p.room"), ("p.room", "p.room.c"), ("p.room", "p.a"),
        ("p.room.c", "p.b"), ("p.room.c", "p._core"), ("p.room.d", "p.room.c"),
    }  # fmt: skip


def test_imports_for_type_checkers_are_told_apart(tmp_path: Path) -> None:
    source = (
        "import typing\nif typing.TYPE_CHECKING:\n    from . import b\nelse:\n    from . import c\n"
    )
    statements = imports(write_package(tmp_path, {"a.py": source, "b.py": "", "c.py": ""}))
    assert [(each.imported, each.for_types, each.line) for each in statements] == [
        ("p.b", True, 3), ("p.c", False, 5),
    ]  # fmt: skip


def test_a_room_imports_the_rooms_below_it(tmp_path: Path) -> None:
    sources = {
        "low.py": "from . import base",
        "base.py": "from . import low",
        "kit/__init__.py": "from .tools import x",
        "kit/tools.py": "from .. import low",
        "left.py": "from .kit import tools",
        "right.py": "def f():\n    from . import left",
        "top.py": "from . import low, kit, left",
    }
    rooms: Rooms = ([["low", "base"]], [["kit"]], [["left"], ["right"]], [["top"]])
    files = write_package(tmp_path, sources)
    assert upward(imports(files), rooms, {}) == ["p.right:2 imports p.left"]
    assert upward(imports(files), rooms, {"top": ("kit",)}) == [
        "p.right:2 imports p.left", "p.top:1 imports p.low", "p.top:1 imports p.left",
    ]  # fmt: skip
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import top\n"
    files = write_package(tmp_path, {"low.py": types, "right.py": "", "more/x.py": ""})
    assert upward(imports(write_package(tmp_path, {"more/x.py": ""})), rooms, {}) == [
        "p.low:3 imports p.top"
    ]
    assert without_a_room(files, rooms) == ["more"]


def test_circles_are_found(tmp_path: Path) -> None:
    sources = {
        "a.py": "from . import b",
        "b.py": "def f():\n    from . import c",
        "c.py": "from . import a, d",
        "d.py": "from . import e",
        "e.py": "import typing\nif typing.TYPE_CHECKING:\n    from . import d",
        "f/__init__.py": "from .g import x",
        "f/g.py": "",
    }
    assert circles(imports(write_package(tmp_path, sources))) == [["p.a", "p.b", "p.c"]]
    both = {"c.py": "from . import d", "f/g.py": "from . import y"}
    assert circles(imports(write_package(tmp_path, both))) == [["p.f", "p.f.g"]]


def test_lengths_of_python_functions(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        'class A:\n    def f(\n        self,\n    ):\n        """Text.\n\n        More."""\n\n'
        "        x = 1\n        # a comment\n\n        def inner():\n            return (\n"
        "                x\n            )\n        return inner\n\n"
        'async def g():\n    pass\n\ndef h():\n    """Text alone."""\n'
    )
    assert function_sizes.in_python(path) == {"A.f": 8, "A.f.inner": 3, "g": 1, "h": 0}


def test_lengths_of_cpp_functions(tmp_path: Path) -> None:
    path = tmp_path / "a.h"
    path.write_text(
        '#include "x.h"\n#define F(x) \\\n  { x; }\nnamespace a {\n// f() { in a comment\n'
        "constexpr int kTable[] = {1,\n 2};\n"
        "template <class Team, template <class> class B>\nstruct C : Base<B> {\n"
        "  explicit C(int n) : n_(n), m_(n) {\n    x();\n    y();\n  }\n"
        "  bool operator==(const C&) const {\n    return true;\n  }\n  int n_ = f({1});\n};\n"
        "template <class Team>\nauto C<Team>::run(int n)\n    -> int {\n  if (n) {\n"
        "    each([=](int i) {\n      n += i;\n    });\n  }\n  return '{' + *\"}\";\n}\n"
        "__global__ void __launch_bounds__(32) kernel(float* x) {\n  *x = 0;\n}\n}\n"
    )
    assert function_sizes.in_cpp(path) == {
        "C": 2, "operator==": 1, "C<Team>::run": 6, "kernel": 1,
    }  # fmt: skip


# --- the tree


def package() -> dict[str, Path]:
    """Modules of the package; its subpackage ``kernels`` stands beside it in the sources."""
    return modules(ROOT / "advcore", "advcore") | modules(ROOT / "kernels", "advcore.kernels")


def test_a_room_of_the_package_imports_only_rooms_below_it() -> None:
    files = package()
    assert without_a_room(files, ROOMS) == []
    assert upward(imports(files), ROOMS, ONLY) == []


def test_no_modules_of_the_package_import_each_other() -> None:
    assert circles(imports(package())) == []


def test_no_source_file_is_over_500_lines() -> None:
    folders = ("advcore", "benchmarks", "csrc", "kernels", "python_bindings", "tests", "tools")
    endings = {".py", ".h", ".cpp", ".cu", ".sh"}
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    lines = {path: path.read_text().count("\n") for path in paths if path.suffix in endings}
    assert len(lines) > 100
    assert {str(path): count for path, count in lines.items() if count > 500} == {}


def test_no_python_function_is_over_80_lines() -> None:
    sizes = {}
    for folder in ("advcore", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            sizes |= function_sizes.in_python(path)
    assert len(sizes) > 300
    assert {name for name, lines in sizes.items() if lines > 80} == set()


def test_no_cpp_function_is_over_60_lines() -> None:
    sizes = {}
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu"):
            for name, lines in function_sizes.in_cpp(path).items():
                sizes[name] = max(lines, sizes.get(name, 0))
    assert len(sizes) > 200
    assert {name for name, lines in sizes.items() if lines > 60} == set()
