"""Builds of the engine with the check programs, for the tests that need a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ISAS = ("base", "v3", "v4")


@dataclass(frozen=True)
class Build:
    """A build folder with the check programs, and the instruction sets to check."""

    folder: Path
    isas: tuple[str, ...]

    def run(self, program: str, isa: str, environment: dict[str, str] | None = None) -> None:
        process = subprocess.run(
            [self.folder / program],
            env=os.environ | {"ADVCORE_ISA": isa} | (environment or {}),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, f"{program} for {isa}:\n{process.stdout}{process.stderr}"
        assert f"{isa} " in process.stdout, (
            f"{program} checked nothing for {isa}:\n{process.stdout}"
        )


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def compiles(folder: Path, *flags: str) -> bool:
    """Return whether the compiler that CMake would take builds a C++20 program that runs."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        return False
    source = folder / "probe.cpp"
    source.write_text("#include <bit>\nint main() { return std::popcount(0u); }\n")
    binary = folder / "probe"
    command = [*compiler.split(), "-std=c++20", *flags, str(source), "-o", str(binary)]
    process = subprocess.run(command, capture_output=True, check=False)
    return process.returncode == 0 and subprocess.run([binary], check=False).returncode == 0


def isas_of_this_cpu() -> tuple[str, ...]:
    """Return the instruction sets of /proc/cpuinfo, the baseline alone if there is no such file."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    has_v3 = {"avx2", "bmi2", "fma", "f16c"} <= flags
    has_v4 = has_v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    return ISAS[: 1 + has_v3 + has_v4]


def build(folder: Path, build_type: str, flags: str, *options: str) -> Build:
    cmake = tool("cmake")
    if not compiles(folder):
        pytest.skip("no compiler for C++20")
    configure = [
        cmake, "-S", str(ROOT), "-B", str(folder),
        "-DADVCORE_CHECKS=ON", "-DADVCORE_MODULE=OFF", "-DADVCORE_CUDA=OFF", *options,
        f"-DCMAKE_BUILD_TYPE={build_type}", f"-DCMAKE_CXX_FLAGS={flags}",
    ]  # fmt: skip
    for command in (configure, [cmake, "--build", str(folder), "--parallel", "2"]):
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, f"{command}:\n{process.stdout}{process.stderr}"
    return Build(folder, isas_of_this_cpu())
