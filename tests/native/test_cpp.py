"""The check programs of tests/native/cpp, run for every instruction set of the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.native_build import ISAS, ROOT, Build, build, compiles, tool

PROGRAMS = (
    "solver_check",
    "network_check",
    "fork_check",
    "queue_check",
    "device_check",
    "slot_pool_check",
)
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"

SANITIZER_ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").is_file(), reason="needs the source folder"),
]


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("sanitized")
    tool("cmake")
    if not compiles(folder, *SANITIZE.split()):
        pytest.skip("the compiler has no address and undefined-behaviour sanitizers")
    # The parts of the solver with vectors of 16 floats here, of 4 in the other build.
    return build(folder, "Debug", f"-O1 {SANITIZE} -DADVCORE_CHECK_LANES=16")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_checks_hold(release: Build, program: str, isa: str) -> None:
    if isa not in release.isas:
        pytest.skip(f"this CPU lacks {isa}")
    release.run(program, isa)


@pytest.mark.parametrize("isa", ["base", "v4"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_checks_hold_under_sanitizers(sanitized: Build, program: str, isa: str) -> None:
    if isa not in sanitized.isas:
        pytest.skip(f"this CPU lacks {isa}")
    sanitized.run(program, isa, SANITIZER_ENVIRONMENT)


@pytest.mark.parametrize("name", ["fork_check", "queue_check"])
def test_no_race_in_the_blocks_of_threads(release: Build, tmp_path: Path, name: str) -> None:
    if not compiles(tmp_path, "-fsanitize=thread"):
        pytest.skip("the compiler has no thread sanitizer")
    program = tmp_path / name
    objects = sorted(map(str, release.folder.glob("CMakeFiles/engine.dir/**/*.o")))
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "c++"
    command = [
        *(*compiler.split(), "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread"),
        *(f"-I{ROOT / 'csrc'}", str(ROOT / f"tests/native/cpp/{name}.cpp"), *objects),
        *("-o", str(program)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    Build(tmp_path, release.isas).run(name, "base")


def symbols(*arguments: str) -> list[str]:
    done = subprocess.run([tool("nm"), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_isa_objects_have_no_weak_symbols(release: Build) -> None:
    # A weak symbol compiled with wide instructions could replace one that an older CPU runs.
    objects = sorted(release.folder.glob("CMakeFiles/engine.dir/csrc/cpu/isa_*.cpp.o"))
    assert len(objects) >= 1
    for path in objects:
        lines = symbols("-C", str(path))
        assert any("kTable" in line for line in lines), f"{path.name}: no table in {lines}"
        assert not [line for line in lines if line[17:18] in tuple("WVu")], path.name


def test_module_links_no_framework() -> None:
    core = pytest.importorskip("advcore._core")
    lines = symbols("-D", "-C", str(core.__file__))
    assert any("PyInit__core" in line for line in lines)
    assert not [line for line in lines if "at::" in line or "c10::" in line or "torch" in line]
