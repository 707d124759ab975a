"""What the words of a command line do: help, completion, JSON, quiet, wrong words, classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data

pytest.importorskip("typer")
from support.command_line import run

from advcore.cli.arguments import class_numbers
from advcore.cli.panels import PANELS, complete_file

DIGITS = ("attack", "--count", 5, "--no-picture")
MAIN = [sys.executable, "-c", "from advcore.cli import main; main()"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def panels(text: str) -> dict[str, str]:
    """The panels of a help by name, in their order."""
    found, name = {}, ""
    for line in text.splitlines():
        if line.startswith("╭"):
            name = line.strip("╭─╮ ")
            found[name] = ""
        elif name:
            found[name] += line + "\n"
    return found


def test_the_help_has_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = panels(run("attack", "-h").stdout)
    assert list(shown) == ["Options", *PANELS]
    for name, options in {
        "Input": ("--model", "--labels", "--names"),
        "Attack": ("--effort", "--norm", "--bounds", "--levels"),
        "Budget": ("--max-evaluations", "--max-queries", "--time-limit"),
        "Output": ("--out", "--pictures", "--report", "--eps", "--json", "--quiet"),
        "Run": ("--shard", "--threads", "--device", "--debug"),
    }.items():
        for option in options:
            assert f"{option} " in shown[name], option
    assert "LOWER UPPER" in shown["Attack"]
    assert "bool" not in "".join(shown[name] for name in PANELS)


def test_every_command_has_a_short_help() -> None:
    for words in (
        [],
        ["attack"],
        ["info"],
        ["job"],
        ["job", "run"],
        ["report"],
        ["doctor"],
        ["reproduce"],
    ):
        done = run(*words, "-h")
        assert done.exit_code == 0
        assert done.stdout == run(*words, "--help").stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["attack", "--effrot", "fast"], "--effort"),
        (["attack", "--count", "many"], "Invalid value for '--count'"),
        (["attack", "--count", "-1"], "Invalid value for '--count'"),
        (["attack", "--bounds", "0"], "'--bounds' requires 2 arguments"),
        (["attack", "images.npy"], "Got unexpected extra argument"),
        (["atack"], "No such command 'atack'"),
        (["report"], "Missing argument 'RESULT'"),
    ],
)
def test_wrong_words_are_told_in_one_line(words: list[str], text: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(" --help\n")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_no_words_give_the_help() -> None:
    done = run()
    assert done.exit_code == 2
    assert "Usage: " in done.output
    assert "attack" in done.output


def test_json_is_one_object() -> None:
    done = run(*DIGITS, "--untargeted", "--out", "r.npz", "--eps", "0.5", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    result = advcore.Result.load("r.npz")
    assert content["format"] == "advcore.summary.1"
    assert content["ended"] == "finished"
    assert content["files"] == {"result": "r.npz"}
    figures = result.statistics(0.5)
    assert {name: content[name] for name in figures} == figures
    assert content["record"] == result.record
    assert content["engine"] == result.engine


def test_json_of_a_run_that_was_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = data.embedded_digits()
    complete = advcore.minimize_distortion(data.embedded_network(), images[:2])

    def stopped(*_: Any, **__: Any) -> advcore.Result:
        raise advcore.Interrupted(complete)

    monkeypatch.setattr(advcore, "minimize_distortion", stopped)
    done = run(*DIGITS, "--json")
    assert done.exit_code == 130
    assert json.loads(done.stdout)["ended"] == "interrupted"


@pytest.mark.filterwarnings("default::UserWarning")
def test_quiet_prints_errors_alone() -> None:
    pytest.importorskip("torch")
    done = run(*DIGITS, "--quiet", "--out", "r.npz", "--model", "fc10")  # It has a note.
    assert (done.exit_code, done.output) == (0, "")
    assert len(advcore.Result.load("r.npz")) == 5
    wrong = run(*DIGITS, "-q", "--images", "absent.npy")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: --images: absent.npy does not exist\n"
    assert json.loads(run(*DIGITS, "-q", "--json").stdout)["images"] == 5
    targets = data.embedded_network().forward(data.embedded_digits()[0][:5]).argmax(1)
    np.save("t.npy", targets)
    np.save("x.npy", data.embedded_digits()[0][:5])
    warned = ("attack", "--images", "x.npy", "--targets", "t.npy", "--out", "w.npz")
    assert run(*warned, "--quiet").output == ""
    assert "targets equals the model" in advcore.Result.load("w.npz").record["run"]["warnings"]
    assert "warning: targets equals the model" in run(*warned).stderr


def test_jobs_have_json_and_quiet() -> None:
    pytest.importorskip("pyarrow")
    done = run(*DIGITS, "--out", "job", "--json")
    content = json.loads(done.stdout)
    assert content["format"] == "advcore.job.1"
    assert (content["images"], content["done"]["succeeded"]) == (5, 5)
    assert content["is_complete"] is True
    assert json.loads(run("job", "status", "job", "--json").stdout) == content
    assert run(*DIGITS, "--out", "job", "--quiet").output == ""


def test_info_as_json() -> None:
    content = json.loads(run("info", "--json").stdout)
    assert content["advcore"] == advcore.__version__
    assert content["numpy"] == np.__version__


# --- completion


def completed(words: str) -> list[str]:
    """What bash is told for the last of these words."""
    parts = words.split(" ")
    environment = {
        **os.environ, "_ADVCORE_COMPLETE": "complete_bash", "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }  # fmt: skip
    command = "import sys; sys.argv[0] = 'advcore'; from advcore.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True
    )
    return done.stdout.split()


def test_words_are_completed() -> None:
    assert completed("advcore at") == ["attack"]
    assert "--effort" in completed("advcore attack --eff")
    assert completed("advcore attack --effort t") == ["thorough"]
    assert completed("advcore attack --norm linf --loss c") == ["cross_entropy"]
    assert "squeezenet1_0" in completed("advcore attack --model squ")
    shown = run("--help").stdout
    assert "--install-completion" in shown


def test_files_are_completed() -> None:
    Path("sub").mkdir()
    for name in ("sub/one.npy", "sub/other.npy", ".hidden"):
        Path(name).touch()
    assert complete_file("") == ["sub/"]
    assert complete_file("sub/o") == ["sub/one.npy", "sub/other.npy"]
    assert complete_file("absent/") == []


# --- classes


def test_classes_come_as_numbers_texts_and_arrays() -> None:
    Path("y.csv").write_text("3\n1\n 4\n")
    Path("y.txt").write_text("3, 1;4")
    np.savez("y.npz", labels=np.array([3, 1, 4]))
    np.save("y.npy", np.array([3, 1, 4]))
    for name in ("y.csv", "y.txt", "y.npz", "y.npy"):
        assert class_numbers(name, "--labels", 3).tolist() == [3, 1, 4]
    assert class_numbers("7", "--labels", 3).tolist() == [7, 7, 7]
    for name, text in {
        "seven": "--labels: expected a number, or a file",
        "absent.csv": "--labels: absent.csv does not exist",
        "bad.csv": "--labels: bad.csv is no text with a whole number for each image",
    }.items():
        Path("bad.csv").write_text("label\n3")
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            class_numbers(name, "--labels", 3)


@pytest.mark.filterwarnings("default::UserWarning")
def test_labels_of_the_command_are_a_number_or_a_text() -> None:
    images, labels = data.embedded_digits()
    np.savez("x.npz", images[:5])
    Path("y.csv").write_text("\n".join(map(str, labels[:5])))
    done = run("attack", "--images", "x.npz", "--labels", "y.csv", "--out", "r.npz")
    assert done.exit_code == 0, done.output
    assert advcore.Result.load("r.npz").label.tolist() == labels[:5].tolist()
    done = run("attack", "--images", "x.npz", "--targets", "y.csv", "--out", "r.npz", "-q")
    assert done.exit_code == 0, done.output
    assert advcore.Result.load("r.npz").target.tolist() == labels[:5].tolist()
    done = run("attack", "--images", "x.npz", "--labels", "3", "--out", "r.npz", "-q")
    assert advcore.Result.load("r.npz").label.tolist() == [3] * 5
