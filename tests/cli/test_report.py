"""The page of a result from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import advcore
from advcore import data

pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
from support.command_line import run

DIGITS = ("attack", "--untargeted", "--count", 12, "--no-picture")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_writes_its_page() -> None:
    done = run(*DIGITS, "--out", "r.npz", "--report", "r.html", "--eps", "0.5")
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("result: r.npz\nreport: r.html\n")
    page = Path("r.html").read_text()
    for text in (
        "advcore attack --untargeted --count 12 --no-picture --out r.npz --report r.html --eps 0.5",
        "the network of the package", "difference ×", "12 of 12 images", "clean accuracy",
    ):  # fmt: skip
        assert text in page, text


def test_a_stored_result_has_a_page() -> None:
    assert run(*DIGITS, "--out", "r.npz").exit_code == 0
    done = run("report", "r.npz")
    assert (done.exit_code, done.stdout) == (0, "report: r.html\n")
    assert "The originals are not part of a result" in Path("r.html").read_text()
    np.save("x.npy", data.embedded_digits()[0][:12])
    np.save("y.npy", data.embedded_digits()[1][:12])
    Path("names.txt").write_text("".join(f"digit <{i}>\n" for i in range(10)))
    options = ["--images", "x.npy", "--labels", "y.npy", "--names", "names.txt", "--eps", "0.25"]
    done = run("report", "r.npz", *options, "--out", "page.html")
    assert (done.exit_code, done.stdout) == (0, "report: page.html\n")
    page = Path("page.html").read_text()
    assert "digit &lt;7&gt;" in page
    assert "not the images of the run" not in page
    assert "difference ×" in page


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["report", "absent.npz"], "absent.npz"),
        (["report", "r.npz", "--out", "r.txt"], "--out: expected a name that ends in .htm, .html"),
        (["report", "r.npz", "--images", "r.npz"], "--images: r.npz is an .npz archive"),
        (["report", "r.npz", "--images", "x.npy"], "images must be those of the 12 images"),
        (["report", "r.npz", "--names", "x.npy"], "names: x.npy holds no names of classes"),
        ([*DIGITS, "--report", "r.pdf"], "--report: expected a name that ends in .htm, .html"),
        ([*DIGITS, "--report", "no/r.html"], "--report: folder no does not exist"),
        ([*DIGITS, "--names", "n.txt"], "--names needs a folder of pictures as --images, or --rep"),
        ([*DIGITS, "--out", "job", "--report", "r.html"], "--eps and --report need a name.npz as"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], text: str) -> None:
    network, digits = data.embedded_network(), data.embedded_digits()[0]
    advcore.minimize_distortion(network, digits[:12]).save("r.npz")
    np.save("x.npy", digits[:3])
    done = run(*arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert (done.stderr.count("\n"), done.stderr[:7]) == (1, "error: ")
    assert not Path("r.html").exists()


def test_a_missing_package_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = run(*DIGITS, "--out", "r.npz", "--report", "r.html")
    assert done.exit_code == 2
    assert done.stderr == 'error: --report needs jinja2: pip install "advcore[report]"\n'
    assert not Path("r.npz").exists()


def test_pictures_of_a_folder_have_names_and_warnings_are_kept() -> None:
    Image = pytest.importorskip("PIL.Image")
    data.embedded_network().save("net.safetensors")
    Path("in").mkdir()
    images, _ = data.embedded_digits()
    for i in range(6):
        pixels = np.rint(images[i].reshape(28, 28) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"in/<b>{i}.png")
    options = ("--report", "r.html", "--out", "r.npz", "--targets", "7")
    done = run("attack", "--model", "net.safetensors", "--images", "in", *options)
    assert done.exit_code == 0, done.output
    page = Path("r.html").read_text()
    assert "&lt;b&gt;3.png" in page
    assert "<b>" not in page
    stored = advcore.Result.load("r.npz").record["run"]
    assert stored["command"].endswith("--report r.html --out r.npz --targets 7")
