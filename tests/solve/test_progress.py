"""The progress bar, and the text that stands for it in a notebook."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from advcore.options import Progress

pytest.importorskip("rich")

from advcore.solve.progress import bar


class ZMQInteractiveShell:
    """The name by which rich knows a notebook."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook without ipywidgets."""
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


def test_a_notebook_without_widgets_gets_text(notebook: None, capsys: Any) -> None:
    seen = []

    def stop(state: Progress) -> bool:
        seen.append(state)
        return True

    with bar(8, stop) as update:
        assert "attacking 0/8" in capsys.readouterr().err
        assert update(Progress(3, 8, 2, 40, 1.2)) is True
        assert "\rattacking 3/8, succeeded 2, 1 s" in capsys.readouterr().err
        update(Progress(4, 8, 3, 50, 1.21))
        assert capsys.readouterr().err == ""  # not every call is written
    last = capsys.readouterr().err
    assert last.startswith("\rattacking 4/8, succeeded 3, 1 s, 3.31 images/s, 1 s left")
    assert last.endswith("\n")
    assert [state.finished for state in seen] == [3, 4]


def test_the_text_ends_where_a_run_is_broken_off(notebook: None, capsys: Any) -> None:
    with pytest.raises(KeyboardInterrupt), bar(8):
        raise KeyboardInterrupt
    assert capsys.readouterr().err.endswith("\n")


def test_a_terminal_gets_the_bar(capsys: Any) -> None:
    with bar(8) as update:
        assert update(Progress(8, 8, 7, 40, 1.2)) is None
    shown = capsys.readouterr().err
    assert "attacking" in shown
    assert "8/8 succeeded 7" in shown


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("advcore.solve.progress.LOG_SECONDS", 0.0)
    with bar(800) as update:
        update(Progress(4, 800, 3, 50, 2.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "attacking 4/800, succeeded 3, 2 s, 2 images/s, 7 min left"
    assert "2 images/s" in lines[-1]


def test_the_state_in_words() -> None:
    assert Progress(0, 8, 0, 0, 0.0).text() == "0/8, succeeded 0, 0 s"
    assert Progress(8, 8, 8, 40, 2.0).text() == "8/8, succeeded 8, 2 s"
    assert Progress(0, 8, 0, 0, 3.0).remaining_seconds is None
    assert Progress(2, 8, 0, 0, 4.0).remaining_seconds == 12
