"""`advcore reproduce`: the runs, the report, the command."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import torch
from matplotlib.figure import Figure as Drawing
from support.small_experiments import counted, new_run, small_outcome
from typer.testing import CliRunner, Result

from advcore import experiments
from advcore.cli import reproduce
from advcore.experiments.parts import report
from advcore.experiments.parts.digits import Digits
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Figure, Outcome


class Fake:
    """Stands for an experiment's module; raises what `error` says after its one step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Any] = []
        self.error: BaseException | None = None

    def run(self, run: Run) -> Outcome:
        run.step(f"step_{self.name}", {}, counted(self.calls))
        if self.error is not None:
            raise self.error
        return small_outcome(self.name, figure=self.name == "table1")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Takes the place of every experiment."""
    made = {name: Fake(name) for name in experiments.EXPERIMENTS}
    for name, fake in made.items():
        module = ModuleType(name)
        module.run = fake.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"advcore.experiments.{name}", module)
    return made


def command(*arguments: object) -> Result:
    return CliRunner().invoke(
        reproduce.app, ["reproduce", *(str(argument) for argument in arguments)]
    )


@pytest.mark.usefixtures("fakes")
def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("table1", "--quick", "--out", out, "--dataset", "embedded")
    assert done.exit_code == 0, done.output
    for text in ("Title of table1", "2.3 ± 1.5", "(1.64)", "0.062", "First remark", "in paren"):
        assert text in done.stdout
    assert done.stderr == "[1/1] table1\n"
    stored = json.loads((out / "table1" / "table1.json").read_text("utf-8"))
    line = f"advcore reproduce table1 --quick --seeds 1 --out {out} --dataset embedded"
    assert stored["origin"]["command"] == line
    assert stored["origin"]["versions"]["torch"] == torch.__version__
    assert stored["origin"]["cpus"] >= 1
    assert stored["seconds"] >= 0
    command("table2", "--quick", "--out", out, "--dataset", "embedded")
    page = (out / "report.html").read_text("utf-8")
    assert page.index("Title of table1") < page.index("Title of table2")
    assert [entry["finished"] for entry in report.invocations(out)] == [["table1"], ["table2"]]


def test_all_goes_on_after_a_failure(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    fakes["table3"].error = RuntimeError("no\nluck")
    done = command("all", "--quick", "--out", tmp_path, "--dataset", "embedded")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 10 experiments failed: table3 (RuntimeError: no luck)")
    assert "RuntimeError: no\nluck" in (tmp_path / "table3" / "error.txt").read_text("utf-8")
    written = {path.parent.name for path in tmp_path.glob("*/*.json")}
    assert written == set(experiments.EXPERIMENTS) - {"table3"}
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "broke off" in page
    fakes["table3"].error = None
    again = command("all", "--quick", "--out", tmp_path, "--dataset", "embedded")
    assert again.exit_code == 0, again.output
    assert all(len(fake.calls) == 1 for fake in fakes.values())
    assert not (tmp_path / "table3" / "error.txt").exists()
    assert "broke off" not in (tmp_path / "report.html").read_text("utf-8")


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    fakes["table2"].error = KeyboardInterrupt()
    arguments = ("table1", "table2", "--quick", "--out", tmp_path, "--dataset", "embedded")
    done = command(*arguments)
    assert done.exit_code == 130
    last = f"error: interrupted (what is finished is kept in {tmp_path}; the same command goes on)"
    assert done.stderr.splitlines()[-1] == last
    assert report.invocations(tmp_path)[0]["finished"] == ["table1"]
    assert "Title of table1" in (tmp_path / "report.html").read_text("utf-8")
    fakes["table2"].error = None
    assert command(*arguments).exit_code == 0
    assert len(fakes["table2"].calls) == 1


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "unknown experiment 'table9'; there are all, table1, table2"),
        (["table1", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["table1", "--dataset", "cifar"], 'dataset must be "mnist" or "embedded", got \'cifar\''),
        (["table1"], "put MNIST's four files in $ADVCORE_DATA/mnist, or take the 1,000 digits"),
        (["table1", "--dataset", "embedded", "--out", "file"], "File exists: 'file'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path / "nowhere"))
    Digits.load.cache_clear()
    (tmp_path / "file").touch()
    done = command(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("module", experiments.NEEDED)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = command("table1", "--out", tmp_path, "--dataset", "embedded")
    assert done.exit_code == 2
    assert 'pip install "advcore[experiments]"' in done.stderr
    assert module in done.stderr


def test_the_same_name_twice_runs_once(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    outcomes = experiments.reproduce(
        ["table1", "table1"], tmp_path, scale="tiny", seeds=1, dataset="embedded"
    )
    assert [outcome.name for outcome in outcomes] == ["table1"]
    assert outcomes[0].origin["command"].startswith("advcore.experiments.reproduce(['table1'], ")
    assert experiments.reproduce("table2", tmp_path, scale="tiny", dataset="embedded")


class Page(HTMLParser):
    """Tags with their attributes, and the text of every cell."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.mark.usefixtures("fakes")
def test_the_report_is_one_file_with_every_number(tmp_path: Path) -> None:
    experiments.reproduce(["table1", "units"], tmp_path, scale="tiny", seeds=3, dataset="embedded")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is not None and tag != "a":
                assert value.startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert '<a href="https://example.org">there</a>' in text
    assert [" ".join(cell.split()) for cell in page.cells].count("2.3 ± 1.5 published 1.64") == 2
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    inside = {
        value[1:]
        for tag, attributes in page.tags
        if tag == "a" and (value := attributes["href"] or "").startswith("#")
    }
    assert inside == {"summary", "table1", "units", "runs"} <= anchors
    (drawing,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert (drawing["src"] or "").startswith("data:image/svg+xml;base64,")
    assert drawing["width"] == "192"  # two inches


def test_pictures_go_into_the_report_as_png(tmp_path: Path) -> None:
    drawing = Drawing(figsize=(3, 3))
    drawing.subplots().imshow(np.eye(4))
    Figure("grid", "Pictures", drawing).write(tmp_path)
    shown = report.image(tmp_path, "grid")
    assert shown["src"].startswith("data:image/png;base64,")
    assert shown["width"] == 288


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.6, "59.6 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_bars_on_a_terminal_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, progress=True)
    with run.bar("outer", None), run.bar("inner", 2) as advance:
        advance()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    with run.bar("outer", None), run.bar("inner", 2) as advance:
        advance()
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "inner" in shown
    assert run._shown is None
