"""Runs go on where files of a former run are damaged, and say what they make again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

from support.damage import damaged
from support.small_experiments import SMALL, counted, new_run, small_outcome

from advcore.experiments.parts import report
from advcore.experiments.parts.origin import origin

ENTRY = {
    "command": "advcore reproduce table1",
    "date": "today",
    "wall_seconds": 1.0,
    "processor": "x",
    "cpus": 1,
    "versions": {"advcore": "1"},
    "finished": ["table1"],
    "failed": [],
}


def stored(folder: Path, *names: str) -> None:
    """Write an outcome of each name below the folder."""
    for name in names:
        outcome = small_outcome(name, figure=name == "table1")
        outcome.origin = origin(new_run(folder), [name], 1.0)
        outcome.write(folder / name)


def page(folder: Path) -> str:
    report.write(folder, ["table1", "table2"])
    return (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize("content", [b"", b"[", b'{"a": 1}', b"[1]", b"\xff", b"[" * 100_000])
def test_a_damaged_list_of_runs_is_kept_and_begun_anew(tmp_path: Path, content: bytes) -> None:
    report.add_invocation(tmp_path, ENTRY)
    (tmp_path / "runs.json").write_bytes(content)
    assert report.invocations(tmp_path) == []
    report.add_invocation(tmp_path, ENTRY)
    assert report.invocations(tmp_path) == [ENTRY]
    assert (tmp_path / "runs.json.damaged").read_bytes() == content
    assert "advcore reproduce table1" in page(tmp_path)


def test_entries_that_cannot_be_shown_are_left_out(tmp_path: Path) -> None:
    broken = ENTRY | {"wall_seconds": "long", "command": "broken"}
    (tmp_path / "runs.json").write_text(json.dumps([broken, {}]))
    report.add_invocation(tmp_path, ENTRY)
    assert "advcore reproduce table1" in page(tmp_path)
    assert "broken" not in page(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe bytes"])
def test_a_damaged_traceback_is_shown_as_it_is(tmp_path: Path, content: bytes) -> None:
    stored(tmp_path, "table1")
    (tmp_path / "table2").mkdir()
    (tmp_path / "table2" / "error.txt").write_bytes(content)
    assert "Title of table1" in page(tmp_path)
    assert ("bytes" if b"bytes" in content else "error.txt is empty") in page(tmp_path)


def test_damaged_results_stand_among_the_failures(tmp_path: Path) -> None:
    stored(tmp_path, "table1", "table2")
    whole = (tmp_path / "table2" / "table2.json").read_bytes()
    shown = 0
    for content in damaged(whole, 40):
        (tmp_path / "table2" / "table2.json").write_bytes(content)
        text = page(tmp_path)
        assert "Title of table1" in text
        shown += "its files are damaged" in text
    assert shown > 20


@pytest.mark.parametrize("name", ["line.png", "line.svg"])
def test_a_missing_figure_is_told(tmp_path: Path, name: str) -> None:
    stored(tmp_path, "table1", "table2")
    (tmp_path / "table1" / name).unlink()
    text = page(tmp_path)
    assert "Title of table2" in text
    assert "its files are damaged (FileNotFoundError" in text


def test_a_damaged_step_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    new_run(tmp_path).step("count", {}, counted(calls))
    (path,) = (tmp_path / "cache" / "steps").iterdir()
    whole = path.read_bytes()
    for content in (whole[:100], b"", whole[:-30], b"\0" * len(whole)):
        path.write_bytes(content)
        before = len(calls)
        assert new_run(tmp_path).step("count", {}, counted(calls))["number"] == len(calls)
        assert len(calls) == before + 1
        assert "is damaged and is made again (" in capsys.readouterr().err
        assert new_run(tmp_path).step("count", {}, counted(calls))["number"] == len(calls)
        assert len(calls) == before + 1


def test_a_damaged_network_is_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = new_run(tmp_path, workers=1).trained([SMALL])[0]
    path = tmp_path / "cache" / "networks" / f"{first.key}.pt"
    path.write_bytes(path.read_bytes()[:500])
    again = new_run(tmp_path, workers=1).trained([SMALL])[0]
    assert "is damaged and is made again (" in capsys.readouterr().err
    assert again.test_error == first.test_error
