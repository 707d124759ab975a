"""The programs behind `make wheel` and `make check-long`, without the builds themselves."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.native_build import ROOT, tool

pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="needs the source folder")

WAIT = """
#include <errno.h>
#include <pthread.h>
#include <time.h>
int main(void) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
  struct timespec begin, deadline, end;
  pthread_mutex_lock(&mutex);
  for (int past = 0; past < 2; ++past) {
    clock_gettime(CLOCK_MONOTONIC, &begin);
    deadline = begin;
    if (past) --deadline.tv_sec;
    else deadline.tv_nsec += 20000000;
    if (deadline.tv_nsec >= 1000000000) ++deadline.tv_sec, deadline.tv_nsec -= 1000000000;
    const int code = pthread_cond_clockwait(&condition, &mutex, CLOCK_MONOTONIC, &deadline);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double waited = end.tv_sec - begin.tv_sec + 1e-9 * (end.tv_nsec - begin.tv_nsec);
    if (code != ETIMEDOUT || (!past && waited < 0.019)) return 1;
  }
  return 0;
}
"""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The program, with a file of outcomes of its own, at a commit called "one"."""
    module = load("check_long")
    monkeypatch.setattr(module, "OUTCOMES", tmp_path / "results" / "check_long.json")
    monkeypatch.setattr(module, "commit", lambda: "one")
    return module


def runs(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str, failing: str = ""
) -> tuple[list[str], dict[str, Any], int]:
    """Which of the parts a, b and c ran, the stored outcomes, and the exit status."""
    begun: list[str] = []

    def part(name: str) -> Callable[[], dict[str, Any]]:
        def check() -> dict[str, Any]:
            begun.append(name)
            if name == failing:
                raise checks.Failure("its output")
            return {"size": len(begun)}

        return check

    monkeypatch.setattr(checks, "PARTS", {name: part(name) for name in "abc"})
    monkeypatch.setattr(sys, "argv", ["check_long.py", *arguments])
    with pytest.raises(SystemExit) as end:
        checks.main()
    return begun, json.loads(checks.OUTCOMES.read_text()), int(end.value.code or 0)


def test_a_run_goes_on_where_it_stopped(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stored, status = runs(checks, monkeypatch, failing="b")
    assert (begun, status) == (["a", "b", "c"], 1)
    assert {name: each["verdict"] for name, each in stored.items()} == {
        "a": "passed",
        "b": "failed",
        "c": "passed",
    }
    assert stored["b"]["output"] == "its output"
    assert stored["a"]["size"] == 1
    assert stored["a"].keys() >= {"commit", "date", "seconds"}
    assert runs(checks, monkeypatch)[0] == ["b"]
    assert runs(checks, monkeypatch)[0] == []


def test_parts_run_again_by_name_at_another_commit_and_with_changes(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(checks, monkeypatch)
    assert runs(checks, monkeypatch, "c")[0] == ["c"]
    assert runs(checks, monkeypatch, "--again")[0] == ["a", "b", "c"]
    for commit in ("two", "two-dirty", "two-dirty"):
        monkeypatch.setattr(checks, "commit", lambda commit=commit: commit)
        assert runs(checks, monkeypatch)[0] == ["a", "b", "c"]


def test_a_wheel_of_another_commit_is_not_tried(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(checks.Failure, match="run the part wheel first"):
        checks.wheel()
    checks.store("wheel", {"verdict": "passed", "commit": "one", "wheel": "a.whl"})
    assert checks.wheel() == ROOT / "dist" / "a.whl"
    monkeypatch.setattr(checks, "commit", lambda: "two")
    with pytest.raises(checks.Failure, match="run the part wheel first"):
        checks.wheel()


def test_unknown_parts_are_named(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["check_long.py", "weel"])
    with pytest.raises(SystemExit):
        checks.main()
    assert "no part is called weel; parts: wheel, audit" in capsys.readouterr().err


def test_a_failing_program_ends_its_part_with_its_output(checks: ModuleType) -> None:
    assert checks.run(sys.executable, "-c", "print(3)") == "3\n"
    with pytest.raises(checks.Failure, match=r"exit 2\nwhy"):
        checks.run(sys.executable, "-c", "print('why'); raise SystemExit(2)")


def test_names_that_no_old_glibc_has_are_found(tmp_path: Path) -> None:
    tool("nm")
    source = tmp_path / "names.c"
    source.write_text(
        "#include <stdlib.h>\nvoid PyAny(void); void newer(void);\n"
        "__attribute__((weak)) void hook(void);\n"
        "void all(void) { PyAny(); newer(); free(malloc(1)); if (hook) hook(); }\n"
    )
    library = tmp_path / "names.so"
    compiler = [tool("gcc"), "-shared", "-fPIC", "-O0"]
    subprocess.run([*compiler, str(source), "-o", str(library)], check=True)
    assert load("make_wheel").unversioned(library) == ["newer"]


def test_the_wait_for_old_glibc_keeps_to_its_deadline(tmp_path: Path) -> None:
    source = tmp_path / "wait.c"
    source.write_text("#define _GNU_SOURCE\n" + WAIT)
    program = tmp_path / "wait"
    old_glibc = ROOT / "tools" / "wheel" / "old_glibc.c"
    command = [tool("gcc"), "-O1", str(source), str(old_glibc), "-pthread", "-o", str(program)]
    subprocess.run(command, check=True)
    assert subprocess.run([program], timeout=60, check=False).returncode == 0
