"""Registers, stack and spills of the CUDA kernels as ptxas reports them, against a table."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.native_build import ROOT

TABLE = Path(__file__).parent / "cuda_resources.json"
ARCHITECTURE = "sm_90"

pytestmark = pytest.mark.slow


def resources(report: str) -> dict[str, dict[str, int]]:
    """Registers, stack and spills of each kernel, and the largest spills of functions they call.

    These functions save the registers of their callers in what ptxas counts as spills.
    """
    result: dict[str, dict[str, int]] = {}
    entry, spills = "", [0]
    for line in re.split(r"(?=ptxas info\s+: )", report):
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            entry = match[1]
            name = re.search(r"[a-z_]+_kernel(?=E)", entry)
            kernel = result.setdefault(name[0] if name else entry, {})
        elif match := re.search(r"Used (\d+) registers(?:.*?(\d+) bytes cumulative stack)?", line):
            kernel |= {"registers": int(match[1]), "stack": int(match[2] or 0)}
        elif match := re.search(r"properties for (\w+)\s.*?(\d+) bytes spill stores", line, re.S):
            if match[1] == entry:
                kernel["spills"] = int(match[2])
            else:
                spills.append(int(match[2]))
    result["called functions"] = {"spills": max(spills)}
    return result


def release(nvcc: str) -> str:
    """The version of nvcc, such as 13.0."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release ([\d.]+)", text)
    assert match is not None
    return match[1]


def test_kernels_use_what_the_table_says(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    version = release(nvcc)
    table = json.loads(TABLE.read_text())
    if version not in table:
        pytest.skip(f"no figures for nvcc {version} in {TABLE.name}")
    measured: dict[str, dict[str, int]] = {}
    for source in ("kernels", "queue"):
        command = [
            *(nvcc, "-std=c++20", "--expt-relaxed-constexpr", f"-arch={ARCHITECTURE}"),
            *("-Xptxas=-v", f"-I{ROOT / 'csrc'}", "-cubin", "-o", str(tmp_path / "kernels.cubin")),
            str(ROOT / f"csrc/cuda/{source}.cu"),
        ]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        assert "warning" not in process.stderr, process.stderr
        result = resources(process.stdout + process.stderr)
        called = measured.get("called functions", {"spills": 0}), result["called functions"]
        measured |= result | {"called functions": {"spills": max(c["spills"] for c in called)}}
    expected = table[version][ARCHITECTURE]
    assert measured.keys() == expected.keys()
    for name, figures in expected.items():
        more = {key: measured[name][key] for key in figures if measured[name][key] > figures[key]}
        assert not more, f"{name} uses more than {figures}: {measured}"
        # The stack of functions that call themselves is not in the sum.
        stack = figures.get("stack", 0)
        assert measured[name].get("stack", 0) >= 0.8 * stack, f"{name} is recursive: {measured}"


def test_a_build_for_every_gpu_stays_so_when_configured_again(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None or shutil.which("cmake") is None:
        pytest.skip("no nvcc or no cmake")
    if tuple(map(int, release(nvcc).split("."))) < (12, 8):
        pytest.skip("this nvcc does not know every GPU")
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(tmp_path)),
        *("-DADVCORE_CUDA=ALL", "-DADVCORE_MODULE=OFF"),
    ]
    for _ in range(2):
        process = subprocess.run(configure, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr
        commands = (tmp_path / "compile_commands.json").read_text()
        code = set(re.findall(r",code=\[?([\w,]+)", commands))
        assert code == {"sm_80", "sm_90", "compute_100,sm_100", "sm_120"}
