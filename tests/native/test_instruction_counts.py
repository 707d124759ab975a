"""Work of the engine in instructions, which no other load of the machine changes.

Counts are held against ``instruction_counts.json`` by compiler; others skip visibly. After a change
that is meant, this writes the figures of this compiler:

    PYTHONPATH=tests python tests/native/test_instruction_counts.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.native_build import Build, build, tool

TABLE = Path(__file__).parent / "instruction_counts.json"
TOLERANCE = 0.1
SIMULATED = "v3"  # valgrind does not know AVX-512
IMAGES = (24, 72)

pytestmark = pytest.mark.slow


def compiler() -> str:
    """Name and major version, as in "gcc 12"."""
    command = (os.environ.get("CXX") or shutil.which("c++") or "g++").split()
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    first = (done.stdout.splitlines() or [""])[0]
    version = re.search(r"\b(\d+)\.\d+", first)
    name = "clang" if "clang" in first else "gcc"
    return f"{name} {version[1]}" if version else "unknown"


def simulated(release: Build, folder: Path, images: int) -> tuple[int, int]:
    """Instructions of a run of `count_check`, and its evaluations."""
    command = [
        *(tool("valgrind"), "--tool=callgrind", f"--callgrind-out-file={folder / 'callgrind.out'}"),
        *(str(release.folder / "count_check"), str(images)),
    ]
    done = subprocess.run(
        command, env=os.environ | {"ADVCORE_ISA": SIMULATED}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{SIMULATED} {images} images {images} found"), done.stdout
    evaluations = re.search(r"(\d+) evaluations", done.stdout)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    assert evaluations is not None, done.stdout
    assert collected is not None, done.stderr
    return int(collected[1]), int(evaluations[1])


def per_evaluation(release: Build, folder: Path) -> float:
    """Instructions for one evaluation more: what both runs do once falls out."""
    (few, first), (many, second) = (simulated(release, folder, images) for images in IMAGES)
    return (many - few) / (second - first)


def inner_loops(disassembly: str) -> dict[str, list[list[str]]]:
    """Bodies of each function's loops that hold no other loop, as lists of mnemonics."""
    found: dict[str, list[list[str]]] = {}
    for function in disassembly.split("\n\n"):
        header = re.match(r"[0-9a-f]+ <(.*)>:\n", function)
        if header is None:
            continue
        lines = re.findall(r"^\s*([0-9a-f]+):\t(\S+)(?:\s+([0-9a-f]+) <)?", function, re.M)
        at = {int(address, 16): i for i, (address, _, _) in enumerate(lines)}
        loops = [
            (at[int(target, 16)], i)
            for i, (_, mnemonic, target) in enumerate(lines)
            if mnemonic.startswith("j") and target and at.get(int(target, 16), i + 1) <= i
        ]
        found[header[1]] = [
            [mnemonic for _, mnemonic, _ in lines[first : last + 1]]
            for first, last in loops
            if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops)
        ]
    return found


def widest_loops(release: Build) -> dict[str, list[int]]:
    """Multiply-adds and all instructions of the AVX-512 loops that matter most.

    They are the product's largest block, 8 rows by 3 vectors, and the Gram's, 4 rows by 4.
    """
    paths = list(release.folder.glob("CMakeFiles/engine.dir/csrc/cpu/isa_v4.cpp.o"))
    if not paths:
        pytest.skip("not an x86-64 build")
    path = paths[0]
    command = [tool("objdump"), "-d", "-C", "--no-show-raw-insn", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = {}
    for name, part in (("product", "multiply<8, 3>"), ("gram", "gram_from<4,")):
        bodies = [b for f, loops in inner_loops(done.stdout).items() if part in f for b in loops]
        assert bodies, f"no loop of {part} in {path.name}"
        counts = [(sum("fmadd" in m for m in body), len(body)) for body in bodies]
        figures[name] = list(max(counts))
    return figures


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = json.loads(TABLE.read_text())
    if compiler() not in figures:
        pytest.skip(f"no figures for {compiler()} in {TABLE.name}")
    return figures[compiler()]


def test_instructions_of_an_evaluation(
    recorded: dict[str, Any], release: Build, tmp_path: Path
) -> None:
    if SIMULATED not in release.isas:
        pytest.skip(f"this CPU lacks {SIMULATED}")
    measured = per_evaluation(release, tmp_path)
    expected = recorded["instructions per evaluation, AVX2"]
    assert measured == pytest.approx(expected, rel=TOLERANCE)


def test_instructions_of_the_widest_loops(recorded: dict[str, Any], release: Build) -> None:
    measured, expected = widest_loops(release), recorded["loops, AVX-512"]
    assert measured.keys() == expected.keys()
    for name, (products, instructions) in expected.items():
        assert measured[name][0] == products, f"{name}: {measured[name]}"
        assert measured[name][1] <= (1 + TOLERANCE) * instructions, f"{name}: {measured[name]}"


def test_loops_are_found() -> None:
    text = """0000000000000000 <f(int)>:
   0:\tvmovaps %zmm0,%zmm1
   4:\tvfmadd231ps %zmm0,%zmm1,%zmm2
   8:\tadd    $0x10,%rax
   c:\tjne    4 <f(int)+0x4>
  10:\tvfmadd231ps %zmm0,%zmm1,%zmm2
  14:\tjmp    0 <f(int)>
  18:\tret

0000000000000020 <g(int)>:
  20:\tjmp    24 <g(int)+0x4>
  24:\tret
"""
    assert inner_loops(text) == {"f(int)": [["vfmadd231ps", "add", "jne"]], "g(int)": []}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        built = build(Path(name), "Release", "")
        table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        table[compiler()] = {
            "instructions per evaluation, AVX2": round(per_evaluation(built, Path(name))),
            "loops, AVX-512": widest_loops(built),
        }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    sys.stdout.write(TABLE.read_text())
