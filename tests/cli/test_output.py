"""What a run computed is kept where stdout, the disk or a signal fails; damaged arrays as input."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, refusals

import advcore
from advcore import Status, data

pytest.importorskip("typer")
from support.command_line import run

from advcore.cli.app import without_interrupt
from advcore.cli.arguments import array
from advcore.solve.interrupts import sigterm_as_ctrl_c

COMMAND = [sys.executable, "-c", "from advcore.cli import main; main()"]
DIGITS = [*COMMAND, "attack", "--count", "3", "--no-picture", "--out", "r.npz"]


@pytest.mark.parametrize("kind", ["reader that leaves", "full", "closed"])
def test_the_result_is_written_where_stdout_fails(tmp_path: Path, kind: str) -> None:
    close = (lambda: os.close(1)) if kind == "closed" else None
    sink = subprocess.PIPE
    if kind == "reader that leaves":
        reader, sink = os.pipe()
        os.close(reader)
    elif kind == "full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        sink = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run(
        DIGITS, cwd=tmp_path, stdout=sink, stderr=subprocess.PIPE, text=True, preexec_fn=close
    )
    assert len(advcore.Result.load(tmp_path / "r.npz")) == 3
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("attacking")]
    full = ["error: standard output cannot be written (No space left on device)"]
    assert errors == (full if kind == "full" else [])
    assert done.returncode == (0 if kind == "closed" else 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stderr_stops_nothing(tmp_path: Path) -> None:
    command = [*DIGITS, "--model", "fc10"]  # It has a note to print.
    pytest.importorskip("torch")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stderr=full, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert len(advcore.Result.load(tmp_path / "r.npz")) == 3


def test_files_are_written_before_anything_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    present: list[list[str]] = []

    def note(*_: Any) -> None:
        present.append(sorted(path.name for path in tmp_path.iterdir()))

    from advcore.cli import attack

    monkeypatch.setattr(attack, "print_table", note)
    done = run("attack", "--count", 2, "--out", "r.npz", "--picture", "p.png")
    assert done.exit_code == 0, done.output
    assert present == [["p.png", "r.npz"]]
    assert done.stdout == "result: r.npz\npicture: p.png\n"


def test_a_disk_that_is_full_is_told_after_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "r.npz")

    monkeypatch.setattr(advcore.Result, "save", full)
    done = run("attack", "--count", 2, "--no-picture", "--out", "r.npz")
    assert done.exit_code == 1
    assert "2 of 2" in done.stdout
    assert "result:" not in done.stdout
    assert done.stderr.endswith("error: [Errno 28] No space left on device: 'r.npz'\n")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, where a parent such as nohup has Ctrl-C ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_saving_is_put_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    real = advcore.Result.save

    def slow(result: advcore.Result, path: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        real(result, path)

    monkeypatch.setattr(advcore.Result, "save", slow)
    done = run("attack", "--count", 2, "--no-picture", "--out", "r.npz")
    assert done.exit_code == 130
    assert "2 of 2" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: interrupted after the run")
    assert len(advcore.Result.load("r.npz")) == 2


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_is_not_put_off() -> None:
    reached: list[int] = []

    def block() -> None:
        with without_interrupt():
            for step in range(3):
                reached.append(step)
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached == [0, 1]
    assert signal.getsignal(signal.SIGINT) is handler


SLOW_MODEL = """
import pathlib, time
from advcore import data

class Slow:
    network, calls = data.embedded_network(), 0
    def forward(self, x):
        return self.network.forward(x)
    def backward(self, dlogits):
        self.calls += 1
        time.sleep(0.02)
        if self.calls == 8:
            pathlib.Path("searching").touch()
        return self.network.backward(dlogits)
"""


@pytest.mark.parametrize("ignored", [False, True], ids=["", "Ctrl-C ignored, as by nohup"])
def test_sigterm_keeps_what_was_computed(tmp_path: Path, ignored: bool) -> None:
    (tmp_path / "slow.py").write_text(SLOW_MODEL)
    np.save(tmp_path / "x.npy", data.embedded_digits()[0][:300])
    child = subprocess.Popen(
        [
            *COMMAND,
            *[
                "attack",
                "--model",
                "slow.py:Slow",
                "--images",
                "x.npy",
                "--batch-size",
                "9",
                "--out",
                "r.npz",
            ],
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
    )
    while not (tmp_path / "searching").exists() and child.poll() is None:
        time.sleep(0.01)
    child.terminate()
    output, errors = child.communicate()
    assert child.returncode == 130, errors
    assert "result: r.npz" in output
    assert errors.endswith("error: interrupted; the images finished so far are in the result\n")
    assert (advcore.Result.load(tmp_path / "r.npz").status == int(Status.interrupted)).any()


def test_sigterm_is_put_off_as_ctrl_c_is() -> None:
    reached: list[int] = []

    def block() -> None:
        with sigterm_as_ctrl_c(), without_interrupt():
            signal.raise_signal(signal.SIGTERM)
            reached.append(1)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_kill_of_the_command_leaves_a_whole_result(tmp_path: Path) -> None:
    command = [*COMMAND, "attack", "--no-picture", "--out", "r.npz", "--effort", "fast"]
    done = subprocess.run([*command, "--count", "7"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(0)
    for _ in range(2):
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not list(tmp_path.glob(".*.part")) and child.poll() is None:
            time.sleep(0.001)  # until the file is being written
        time.sleep(float(rng.uniform(0, 0.05)))
        child.kill()
        child.wait()
        assert len(advcore.Result.load(tmp_path / "r.npz")) in (7, 1000)
        for part in tmp_path.glob(".*.part"):
            part.unlink()


# --- arrays as input


def test_damaged_arrays_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).random((4, 8), dtype=np.float32))
    copies = damaged(path.read_bytes(), 300)
    texts = refusals(lambda path: array(path, "--images"), path, copies)
    assert len(texts) > 200
    for text in texts:
        assert text.startswith("--images: ")
        assert "\n" not in text


def test_arrays_of_every_kind_are_those_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for values in (
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.random.default_rng(0).random((2, 3))),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.arange(4, dtype=">f4"),
    ):
        for version in ((1, 0), (2, 0)):
            with path.open("wb") as file:
                np.lib.format.write_array(file, values, version=version)
            read = array(path, "--images")
            np.testing.assert_array_equal(read, values)
            assert (read.dtype, read.flags.f_contiguous) == (
                values.dtype, values.flags.f_contiguous,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.png", b"\x89PNG", "x.png is a picture, not a .npy file; put it into a folder and give"),
        ("y.csv", b"1\n2", "y.csv is a text, not a .npy file; convert it: numpy.save('y.npy', num"),
        ("x.npy", b"PK\x03\x04 no more", "x.npy is not a .npy file of numbers (File is not a zip"),
        ("x.npy", b"\x93NUMPY\x01\x00\xff", "x.npy is not a .npy file of numbers ("),
        ("x.npy", b"", "x.npy is not a .npy file of numbers; numpy.save writes one"),
    ],
)
def test_other_files_are_answered_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    np.save("images.npy", data.embedded_digits()[0][:2])
    for option in ("--labels", "--starts"):
        if option == "--labels" and name == "y.csv":
            continue  # It may be a text.
        done = run("attack", "--no-picture", "--images", "images.npy", option, name)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
        assert f"{option}: {text}" in done.stderr
    done = run("attack", "--no-picture", "--images", name)
    assert f"--images: {text}" in done.stderr


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([io.StringIO], object), allow_pickle=True)
    with pytest.raises(ValueError, match="it holds object, expected numbers"):
        array(tmp_path / "x.npy", "--images")
