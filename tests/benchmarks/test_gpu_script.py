"""`benchmarks/gpu.sh` and its rungs, on a simulated GPU."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.native_build import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.sh"
LINE = re.compile(r"(ok|FAILED|skipped) +(\w+) +(\d+) s  (.*)")

pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or not all(map(shutil.which, ("bash", "setsid", "awk"))),
    reason="needs the source folder and bash",
)


def climb(
    results: Path, *arguments: str, **variables: str
) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit status, (outcome, verdict) by rung, and stderr of the script."""
    environment = os.environ | {
        "PYTHON": sys.executable,
        "ADVCORE_RESULTS": str(results),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run(
        [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    lines = {}
    for line in done.stdout.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        lines[match[2]] = (match[1], match[4])
    return done.returncode, lines, done.stderr


def listed() -> list[str]:
    done = subprocess.run([SCRIPT, "--list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines()]


def python_that(folder: Path, does: str) -> str:
    """A Python that does something else for the program of the rungs."""
    path = folder / "python"
    path.write_text(
        f'#!/usr/bin/env bash\ncase "$*" in *gpu_rungs.py*) {does} ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def test_named_rungs_run_alone(tmp_path: Path) -> None:
    code, lines, _ = climb(tmp_path, "--dry-run", "loss", "begin")
    assert code == 0
    assert lines.keys() == {"begin", "loss"}
    assert lines["begin"] == ("ok", "8 images arrived with all bits")
    assert lines["loss"][0] == "ok"
    assert (tmp_path / "gpu.txt").read_text().count("ok ") == 2
    assert "verdict: 8 images" in (tmp_path / "gpu" / "begin.log").read_text()


@pytest.mark.slow
def test_a_dry_run_of_every_rung(tmp_path: Path) -> None:
    code, lines, _ = climb(tmp_path, "--dry-run", ADVCORE_GPU_SECONDS="800")
    assert code == 0, lines
    outcomes = {name: outcome for name, (outcome, _) in lines.items()}
    hardware = {"build", "memcheck", "ncu", "rivals"}  # nothing to try without a GPU
    assert {name for name, outcome in outcomes.items() if outcome == "skipped"} == hardware
    assert set(outcomes) | {"racecheck", "synccheck"} == set(listed())
    assert "FAILED" not in outcomes.values()
    assert "resnet50" in lines["pictures"][1]
    assert not (tmp_path / "bench_gpu.json").exists()  # figures of the CPU are none


@pytest.mark.parametrize(
    ("rung", "failure"),
    [
        ("facts", "capability"),
        ("advance", "solver launch"),
        ("rounds", "solver wrong"),
        ("rounds", "solver launch"),
        ("native", "native wrong"),
        ("native", "native load"),
        ("fillings", "native wrong"),
    ],
)
def test_a_rung_finds_its_fault(rung: str, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.simulated_gpu import simulated_gpu

    rungs = importlib.import_module("gpu_rungs")
    monkeypatch.setenv("ADVCORE_GPU", "force")
    with simulated_gpu(failure), pytest.raises((AssertionError, RuntimeError)):
        rungs.RUNGS[rung]()


def test_rungs_with_names_that_are_none(tmp_path: Path) -> None:
    code, lines, text = climb(tmp_path, "begin", "bogus")
    assert (code, lines) == (2, {})
    assert "no rung bogus" in text
    assert len(listed()) == len(set(listed())) > 15


def test_no_gpu_is_said(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, lines, text = climb(tmp_path, "begin")
    assert (code, lines) == (3, {})
    assert "no GPU" in text


def test_a_rung_that_fails_leaves_the_others(tmp_path: Path) -> None:
    does = '[[ "$*" == *begin ]] && { echo "verdict: AssertionError: all is lost"; exit 1; }'
    python = python_that(tmp_path, does)
    code, lines, _ = climb(tmp_path, "--dry-run", "begin", "loss", PYTHON=python)
    assert code == 1
    assert lines["begin"][0] == "FAILED"
    assert "all is lost" in lines["begin"][1]
    assert lines["loss"][0] == "ok"


def test_a_rung_that_hangs_is_killed(tmp_path: Path) -> None:
    number = tmp_path / "number"
    python = python_that(tmp_path, f"sleep 600 & echo $! > {number}; wait")
    begin = time.monotonic()
    code, lines, _ = climb(tmp_path, "--dry-run", "begin", PYTHON=python, ADVCORE_GPU_SECONDS="6")
    assert code == 1
    assert lines["begin"][0] == "FAILED"
    assert "not done after" in lines["begin"][1]
    assert time.monotonic() - begin < 60
    time.sleep(0.2)
    state = Path(f"/proc/{number.read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_what_there_is_no_time_for_is_skipped(tmp_path: Path) -> None:
    code, lines, _ = climb(tmp_path, "--dry-run", "begin", ADVCORE_GPU_SECONDS="3")
    assert code == 0
    assert lines == {"begin": ("skipped", "no time left")}
