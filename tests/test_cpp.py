"""The check programs of tests/cpp: built with CMake, run for every instruction set of the CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ISAS = ("base", "v3", "v4")
PROGRAMS = ("solver_check", "network_check", "fork_check")
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"

SANITIZER_ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").is_file(), reason="needs the source folder"),
]


@dataclass(frozen=True)
class Build:
    """A build folder with the check programs; `isas` are those that they and the CPU have."""

    folder: Path
    isas: tuple[str, ...]

    def run(self, program: str, isa: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            [self.folder / program],
            env=os.environ | {"ADVCORE_ISA": isa} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{program} for {isa}:\n{done.stdout}{done.stderr}"
        assert f"{isa} " in done.stdout, f"{program} checked nothing for {isa}:\n{done.stdout}"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def compiles(folder: Path, *flags: str) -> bool:
    """Whether the compiler that CMake would take builds and runs a C++20 program."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        return False
    source = folder / "probe.cpp"
    source.write_text("#include <bit>\nint main() { return std::popcount(0u); }\n")
    binary = folder / "probe"
    command = [*compiler.split(), "-std=c++20", *flags, str(source), "-o", str(binary)]
    built = subprocess.run(command, capture_output=True, check=False)
    return built.returncode == 0 and subprocess.run([binary], check=False).returncode == 0


def isas_of_this_cpu() -> tuple[str, ...]:
    """The names whose flags /proc/cpuinfo shows; the baseline alone where there is no such file."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    has_v3 = {"avx2", "bmi2", "fma", "f16c"} <= flags
    has_v4 = has_v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    return ISAS[: 1 + has_v3 + has_v4]


def build(folder: Path, build_type: str, flags: str) -> Build:
    cmake = tool("cmake")
    if not compiles(folder):
        pytest.skip("no compiler for C++20")
    configure = [
        *(cmake, "-S", str(ROOT), "-B", str(folder)),
        *("-DADVCORE_CHECKS=ON", "-DADVCORE_MODULE=OFF", "-DADVCORE_CUDA=OFF"),
        *(f"-DCMAKE_BUILD_TYPE={build_type}", f"-DCMAKE_CXX_FLAGS={flags}"),
    ]
    for command in (configure, [cmake, "--build", str(folder), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return Build(folder, isas_of_this_cpu())


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tmp_path_factory.mktemp("release"), "Release", "")


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


def test_no_race_in_the_block_of_threads(release: Build, tmp_path: Path) -> None:
    if not compiles(tmp_path, "-fsanitize=thread"):
        pytest.skip("the compiler has no thread sanitizer")
    program = tmp_path / "fork_check"
    objects = sorted(map(str, release.folder.glob("CMakeFiles/engine.dir/**/*.o")))
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "c++"
    command = [
        *(*compiler.split(), "-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread"),
        *(f"-I{ROOT / 'csrc'}", str(ROOT / "tests/cpp/fork_check.cpp"), *objects),
        *("-o", str(program)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    Build(tmp_path, release.isas).run("fork_check", "base")


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
