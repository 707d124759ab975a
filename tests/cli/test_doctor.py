"""The command `advcore doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from advcore import data
from advcore.diagnosis import diagnose

pytest.importorskip("typer")
from support.command_line import run

MODEL = """
import numpy as np
from advcore import data

class Wrong:
    network = data.embedded_network()

    def forward(self, x):
        return self.network.forward(x)

    def backward(self, d):
        return -self.network.backward(d)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data.embedded_network().save("net.safetensors")
    Path("wrong.py").write_text(MODEL)
    images, labels = data.embedded_digits()
    np.save("x.npy", images[:20])
    np.save("y.npy", labels[:20])


def test_findings_are_printed() -> None:
    done = run("doctor", "--model", "wrong.py:Wrong", "--images", "x.npy", "--labels", "y.npy")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error: gradient_disagrees: along the gradient the logits change by")
    assert lines[1].startswith("  by itself: of a NumPy model it refuses a wrong sign")
    assert "accuracy: 93.8% of 16 images" in lines


def test_json_is_the_diagnosis() -> None:
    words = ("doctor", "--model", "net.safetensors", "--images", "x.npy", "--labels", "y.npy")
    done = run(*words, "--count", 5, "--seed", 3, "--json")
    content = json.loads(done.stdout)
    images, labels = data.embedded_digits()
    expected = diagnose(data.embedded_network(), images, labels, count=5, seed=3)
    assert content == {"format": "advcore.diagnosis.1", **expected.as_dict()}


def test_bad_input_is_one_line() -> None:
    for words, text in (
        (["--model", "net.safetensors", "--images", "absent.npy"], "--images: absent.npy does not"),
        (
            ["--model", "net.safetensors", "--images", "x.npy", "--labels", "z"],
            "--labels: expected",
        ),
        (["--images", "x.npy"], "--model"),
        (["--model", "net.safetensors", "--images", "y.npy"], "images must have shape (N, ...)"),
    ):
        done = run("doctor", *words)
        assert done.exit_code == 2
        assert text in done.stderr
        assert (done.stderr[:7], done.stderr.count("\n")) == ("error: ", 1)
