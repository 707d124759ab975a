"""The commands of jobs: `advcore job`, and `advcore attack` with a folder as --out or a shard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("pyarrow")
import pyarrow.parquet as pq
from support.command_line import run

import advcore
from advcore import data

COMMAND = [sys.executable, "-c", "from advcore.cli import main; main()"]
JOB = """
model = "network.safetensors"
output = "out"
block = 16
images = "float32"

[input]
kind = "arrays"
path = "x.npy"
label = "y.npy"

[options]
effort = "fast"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the embedded network, 80 digits and their labels, and a job file."""
    monkeypatch.chdir(tmp_path)
    images, labels = data.embedded_digits()
    np.save("x.npy", images[:80])
    np.save("y.npy", labels[:80])
    data.embedded_network().save("network.safetensors")
    Path("job.toml").write_text(JOB)
    return tmp_path


def rows(folder: str) -> dict[str, list[Any]]:
    return dict(pq.read_table(f"{folder}/table.parquet").to_pydict())


def test_a_job_runs_and_shows_its_status(folder: Path) -> None:
    done = run("job", "run", "job.toml", "--shard", "2/2")
    assert done.exit_code == 0, done.output
    assert "32 of 80 images in 2 of 5 blocks" in done.stdout
    assert "32 of 32 images, 100.0% adversarial" in done.stderr
    done = run("job", "status", "out")
    assert "32 of 80 images in 2 of 5 blocks" in done.stdout
    done = run("job", "run", "job.toml")
    assert done.exit_code == 0, done.output
    assert "complete: out/table.parquet" in done.stdout
    found = rows("out")
    assert found["label"] == np.load("y.npy").tolist()
    call = advcore.minimize_distortion(
        data.embedded_network(), np.load("x.npy"), labels=np.load("y.npy"), effort="fast"
    )
    np.testing.assert_array_equal(np.float32(found["distortion"]), call.distortion)


def test_bad_jobs_are_one_line(folder: Path) -> None:
    Path("job.toml").write_text(JOB.replace("fast", "fastest").replace("block", "blok"))
    done = run("job", "run", "job.toml")
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [
        ["error", " job.toml, line 4"],
        ["error", " job.toml, line 13"],
    ]
    for arguments, text in (
        (["run", "no.toml"], "no.toml"),
        (["status", "nowhere"], "nowhere holds no job"),
    ):
        done = run("job", *arguments)
        assert done.exit_code == 2
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    Path("job.toml").write_text(JOB)
    assert run("job", "run", "job.toml").exit_code == 0
    Path("job.toml").write_text(JOB.replace("fast", "default"))
    done = run("job", "run", "job.toml")
    assert done.exit_code == 2
    assert "options effort: fast there, default now" in done.stderr


def test_exit_codes_say_what_has_no_result(folder: Path) -> None:
    images = np.load("x.npy")
    images[3, 5] = np.nan
    np.save("x.npy", images)
    done = run("job", "run", "job.toml")
    assert done.exit_code == 3
    assert "unreadable: 1 images" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: some images have no result")
    Path("late.toml").write_text(JOB.replace('"out"', '"late"') + "time_limit = 1e-9\n")
    done = run("job", "run", "late.toml")
    assert done.exit_code == 4
    assert "the time limit has passed (what is finished is kept in" in done.stderr


def test_an_attack_with_a_folder_goes_on(folder: Path) -> None:
    command = ("attack", "--images", "x.npy", "--labels", "y.npy", "--effort", "fast")
    done = run(*command, "--out", "kept", "--count", 40)
    assert done.exit_code == 0, done.output
    before = Path("kept/table.parquet").stat().st_mtime_ns
    done = run(*command, "--out", "kept", "--count", 40)
    assert done.exit_code == 0, done.output
    assert Path("kept/table.parquet").stat().st_mtime_ns == before
    call = run(*command, "--out", "r.npz", "--count", 40, "--no-picture")
    assert call.exit_code == 0, call.output
    result = advcore.Result.load("r.npz")
    np.testing.assert_array_equal(np.float32(rows("kept")["distortion"]), result.distortion)
    block = pq.read_table("kept/blocks")["adversarial"].to_pylist()
    np.testing.assert_array_equal(np.float32(block), result.adversarial)
    done = run(*command, "--out", "small", "--count", 40, "--block", 15)
    assert done.exit_code == 0, done.output
    assert len(list(Path("small/blocks").glob("*.parquet"))) == 3
    assert rows("small") == rows("kept")
    done = run(*command, "--out", "r.npz", "--block", 15)
    assert done.exit_code == 2
    assert "--block needs a folder as --out" in done.stderr
    done = run(*command, "--out", "kept")
    assert done.exit_code == 2
    assert "job images: 40 there, 80 now" in done.stderr


def test_the_digits_of_the_package_have_the_same_targets_in_a_folder(folder: Path) -> None:
    assert run("attack", "--count", 8, "--out", "kept", "--effort", "fast").exit_code == 0
    targets = data.random_targets(data.embedded_digits()[1], classes=10, seed=0)[:8]
    assert rows("kept")["target"] == targets.tolist()


def test_shards_of_an_attack_are_parts_of_the_whole(folder: Path) -> None:
    command = ("attack", "--images", "x.npy", "--targets", "random", "--no-picture")
    assert run(*command, "--out", "whole.npz", "--count", 10).exit_code == 0
    parts = []
    for part in (1, 2, 3):
        done = run(*command, "--out", "part.npz", "--count", 10, "--shard", f"{part}/3")
        assert done.exit_code == 0, done.output
        parts.append(advcore.Result.load("part.npz"))
    assert [len(part) for part in parts] == [3, 3, 4]
    whole, joined = advcore.Result.load("whole.npz"), advcore.Result.concatenate(parts)
    np.testing.assert_array_equal(joined.target, whole.target)
    np.testing.assert_array_equal(joined.adversarial, whole.adversarial)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--shard", "0/3"], "--shard must be K/N with 1 <= K <= N, as in 3/8, got '0/3'"),
        (
            ["--out", "kept", "--starts", "x.npy"],
            "--starts, --picture, --pictures, --eps and --report need a name",
        ),
        (["--out", "no/kept"], "--out: folder no does not exist"),
        (["--out", "r.csv"], "--out: expected a name that ends in .npz, or a folder, got r.csv"),
        (["--out", "."], ". is not empty and holds no job; give another folder"),
    ],
)
def test_what_a_folder_cannot_have_is_named(folder: Path, arguments: list[str], text: str) -> None:
    done = run("attack", "--images", "x.npy", "--no-picture", *arguments)
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1), done.output
    assert text in done.stderr


def test_a_folder_of_pictures_gives_png(folder: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    Path("pictures").mkdir()
    for number, image in enumerate(np.load("x.npy")[:5]):
        pixels = np.rint(image.reshape(28, 28) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"pictures/{number}.png")
    Path("pictures/3.png").write_bytes(b"no picture")
    np.save("p.npy", np.load("y.npy")[:5])
    command = ("attack", "--images", "pictures", "--labels", "p.npy", "--effort", "fast")
    done = run(*command, "--out", "kept")
    assert done.exit_code == 3, done.output
    found = pq.read_table("kept/blocks").to_pylist()
    assert [row["key"] for row in found] == ["0.png", "1.png", "2.png", "4.png", "3.png"]
    assert [row["status"] == "unreadable" for row in found] == [False] * 4 + [True]
    import io

    images = [
        np.asarray(Image.open(io.BytesIO(row["adversarial"])), np.float32).reshape(784) / 255
        for row in found[:4]
    ]
    logits = data.embedded_network().forward(np.float32(images))
    assert (logits.argmax(1) == [row["prediction"] for row in found[:4]]).all()
    distance = np.linalg.norm(images - np.load("x.npy")[[0, 1, 2, 4]], axis=1)
    np.testing.assert_allclose(distance, [row["distortion"] for row in found[:4]], rtol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_is_killed_goes_on_to_the_same_table(folder: Path, number: int) -> None:
    assert run("job", "run", "job.toml").exit_code == 0
    expected = {path.name: path.read_bytes() for path in Path("out").rglob("*.parquet")}
    Path("again.toml").write_text(JOB.replace('"out"', '"again"'))
    child = subprocess.Popen([*COMMAND, "job", "run", "again.toml"], stderr=subprocess.DEVNULL)
    while not list(Path("again/blocks").glob("*.parquet")) and child.poll() is None:
        time.sleep(0.001)
    os.kill(child.pid, number)
    assert child.wait() in (0, 130 if number == signal.SIGTERM else -number)
    before = {p.name: p.stat().st_mtime_ns for p in Path("again/blocks").glob("*.parquet")}
    assert len(before) > 0
    assert run("job", "run", "again.toml").exit_code == 0
    assert {p.name: p.read_bytes() for p in Path("again").rglob("*.parquet")} == expected
    for name, written in before.items():
        assert Path("again/blocks", name).stat().st_mtime_ns == written
