"""The command line: main job on the package's data, one's own model, bad input, Ctrl-C."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import cli, data

pytest.importorskip("typer")
from support.command_line import run

from advcore.cli.app import with_dashes
from advcore.cli.summary import summary_rows
from advcore.options import Options, option_info

MODEL = """
import numpy as np

class Linear:
    weight = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)

    def forward(self, x):
        return x.reshape(len(x), -1) @ self.weight.T

    def backward(self, dlogits):
        return dlogits @ self.weight

def build():
    return Linear()

made = Linear()

def broken():
    raise RuntimeError("weights are missing")

def needs(path):
    return Linear()
"""


OWN = ["--model", "my_model.py:build", "--images", "x.npy"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with my_model.py and arrays for a two-class linear model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_model.py").write_text(MODEL)
    images = np.array([[0.75, 0.25, 0.5], [0.25, 0.5, 0.5]], np.float32)
    np.save("x.npy", images)
    np.save("y.npy", np.array([0, 1]))
    np.save("t.npy", np.array([1, 0]))
    return tmp_path


def test_main_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    done = run("attack", "--count", 20, "--out", "result.npz")
    assert done.exit_code == 0, done.output
    for text in ("20 of 20", "median", "RMS", "evaluations", "images per second", "native"):
        assert text in done.stdout
    assert (tmp_path / "advcore_attack.png").read_bytes().startswith(b"\x89PNG")
    result = advcore.Result.load(tmp_path / "result.npz")
    images, labels = data.embedded_digits()
    targets = data.random_targets(labels, classes=10, seed=0)[:20]
    assert not np.any(targets == labels[:20])
    logits = data.embedded_network().forward(result.adversarial)
    np.testing.assert_array_equal(logits.argmax(1), targets)
    distortion = np.linalg.norm(result.adversarial - images[:20], axis=1)
    np.testing.assert_allclose(result.distortion, distortion, rtol=1e-5)


@pytest.mark.usefixtures("folder")
def test_accuracies_and_the_record_of_a_command() -> None:
    words = ["attack", *OWN, "--labels", "y.npy", "--out", "r.npz", "--eps", "0.3,0", "--eps", "1"]
    done = run(*words)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "clean accuracy 100.0%" in text
    assert "robust accuracy 50.0% at ||r|| <= 0.3, 100.0% at ||r|| <= 0, 0.0% at ||r|| <= 1" in text
    record = advcore.Result.load("r.npz").record
    assert record["model"]["name"] == "my_model.py:build"
    assert record["run"]["command"] == "advcore " + " ".join(words)
    assert record["input"]["labels"] == "given"
    for options in ([], ["--targets", "next-likeliest"]):
        done = run("attack", *OWN, "--out", "r.npz", *options)
        assert done.exit_code == 0, done.output
        assert advcore.Result.load("r.npz").record["input"]["labels"] == "predicted"
        assert "clean accuracy" not in done.stdout


def test_random_targets_do_not_depend_on_the_count() -> None:
    labels = np.arange(1000) % 10
    targets = data.random_targets(labels, classes=10, seed=0)
    assert np.all((targets >= 0) & (targets < 10) & (targets != labels))
    assert len(np.unique((targets - labels) % 10)) == 9
    assert not np.array_equal(targets, data.random_targets(labels, classes=10, seed=1))


@pytest.mark.parametrize("name", ["build", "made", "Linear"])
def test_own_model(folder: Path, name: str) -> None:
    done = run(
        *("attack", "--model", f"my_model.py:{name}", "--images", "x.npy", "--labels", "y.npy"),
        *("--targets", "t.npy", "--out", "r.npz"),
    )
    assert done.exit_code == 0, done.output
    result = advcore.Result.load(folder / "r.npz")
    # the nearest point with equal logits is half the difference of the two pixels away
    np.testing.assert_allclose(result.distortion, [0.5 / 2**0.5, 0.25 / 2**0.5], rtol=1e-3)
    assert not (folder / "advcore_attack.png").exists()


@pytest.mark.usefixtures("folder")
def test_own_images_are_attacked_untargeted_without_targets() -> None:
    done = run("attack", "--model", "my_model.py:build", "--images", "x.npy", "--out", "r.npz")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(advcore.Result.load("r.npz").prediction, [1, 0])


@pytest.mark.usefixtures("folder")
def test_a_model_of_one_image_takes_likeliest_targets() -> None:
    one = MODEL.replace("return x.reshape(len(x), -1)", "return x.reshape(1, 3)")
    Path("one.py").write_text(one)
    options = ["--images", "x.npy", "--targets", "next-likeliest"]
    done = run("attack", "--model", "one.py:build", *options, "--batch-size", "1")
    assert done.exit_code == 0, done.output
    assert "success" in done.output
    assert "2 of 2" in done.output


def test_dotted_module(folder: Path) -> None:
    (folder / "some_package").mkdir()
    (folder / "some_package" / "__init__.py").touch()
    (folder / "some_package" / "nets.py").write_text(MODEL)
    done = run("attack", "--model", "some_package.nets:build", "--images", "x.npy")
    assert done.exit_code == 0, done.output


@pytest.mark.usefixtures("folder")
def test_exported_program() -> None:
    torch = pytest.importorskip("torch")
    from advcore import models

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        models.fc10(seed=0).eval(), (torch.zeros(2, 784),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, "net.pt2")
    done = run("attack", "--model", "net.pt2", "--count", 3, "--no-picture")
    assert done.exit_code == 0, done.output
    assert "3 of 3" in done.stdout


@pytest.mark.usefixtures("folder")
def test_stored_network() -> None:
    data.embedded_network().save("net.safetensors")
    done = run("attack", "--model", "net.safetensors", "--count", 2, "--no-picture")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "nothing"],
            "--model: expected x.onnx, x.pt2, x.safetensors, module:function or one of alexnet, ",
        ),
        (["--model", "nothing"], "got 'nothing'"),
        (["--model", "none.py:build"], "none.py does not exist"),
        (["--model", "none.pt2"], "none.pt2 does not exist"),
        (["--model", "my_model.py:absent"], "has no 'absent'"),
        (["--model", "x.pt"], "got 'x.pt'; write a build() that loads it"),
        (
            ["--model", "my_model.py:broken"],
            "--model: broken() raised RuntimeError: weights are missing",
        ),
        (
            ["--model", "my_model.py:needs"],
            "--model: my_model.py:needs must be callable without arguments",
        ),
        (["--model", "wrong.py:build"], "--model: wrong.py raised SyntaxError: "),
        (
            ["--model", "my_model.py:build"],
            "the model raised on a batch of 64 images of shape (784,): ValueError: matmul",
        ),
        (["--model", "no_such_package:build"], "No module named 'no_such_package'"),
        (["--images", "none.npy"], "--images: none.npy does not exist"),
        (["--images", "my_model.py"], "--images: my_model.py is not a .npy file"),
        (["--images", "a.npz"], "--images: a.npz is an .npz archive (arr_0, arr_1)"),
        (["--images", "x.npy", "--labels", "long.npy"], "--labels has 3 entries for 2 images"),
        (["--images", "x.npy", "--targets", "long.npy"], "--targets has 3 entries for 2 images"),
        (
            [*OWN, "--labels", "float.npy", "--targets", "next-likeliest"],
            "labels must be integers, got float64",
        ),
        (
            [*OWN, "--labels", "ten.npy", "--targets", "random"],
            "labels must be in [0, 2), got labels[1] = 10",
        ),
        (["--labels", "y.npy"], "--labels and --starts need --images"),
        (["--targets", "t.npy", "--untargeted"], "--targets and --untargeted exclude each other"),
        (["--out", "no/folder/r.npz"], "--out: folder no/folder does not exist"),
        (["--out", "r.txt"], "--out: expected a name that ends in .npz, or a folder, got r.txt"),
        (["--eps", "0.5,x"], "--eps: expected numbers >= 0, as in 0.25,0.5,1, got 'x'"),
        (["--effort", "heroic"], "effort"),
        (["--loss", "hinge"], "loss"),
        (["--penalty", "l7"], "penalty must be one of l2, l2_unsquared, got 'l7'"),
        (["--norm", "l7"], "norm must be one of l2, linf, l1, got 'l7'"),
        (["--norm", "inf", "--loss", "cross_entropy"], "loss must be 'margin' with norm='linf'"),
        (["--levels", "1"], "levels must be in [2, 65536], got 1"),
        (["--history", "9"], "history must be in [3, 8], got 9"),
        (["--tolerance", "0"], "tolerance must be a finite number > 0 and <= 0.5, got 0.0"),
        (["--out", "folder.npz"], "--out: folder.npz is a folder"),
        (["--targets", "--3"], "--targets: expected next-likeliest"),
        (["--c-init", "0"], "c_init must be a finite number >= 1e-30 and <= 1e+30, got 0.0"),
        (["--model", "my_model.py:build", "--images", "nan.npy"], "images"),
        (["--model", "my_model.py"], "got 'my_model.py'; add the function: my_model.py:build"),
        (["--model", "my_model.py:"], "got 'my_model.py:'; add the function: my_model.py:build"),
        (
            [*OWN[:2], "--images", "bytes.npy"],
            "divide by 255, or pass --bounds 0 255 if the model takes them so",
        ),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "wrong.py").write_text("def build(:")
    np.savez("a.npz", np.zeros(3), np.zeros(3))
    Path("folder.npz").mkdir()
    np.save("long.npy", np.zeros(3, int))
    np.save("float.npy", np.zeros(2))
    np.save("ten.npy", np.array([0, 10]))
    np.save("bytes.npy", np.full((1, 3), 200, np.uint8))
    np.save("nan.npy", np.full((1, 3), np.nan, np.float32))
    done = run("attack", "--no-picture", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.output
    assert not (folder / "r.npz").exists()


def test_debug_shows_the_exception(folder: Path) -> None:
    done = run("attack", "--debug", "--model", f"{folder}/my_model.py:broken")
    assert isinstance(done.exception, ValueError)
    assert isinstance(done.exception.__cause__, RuntimeError)


@pytest.mark.parametrize("option", ["--colour", "--count=-1", "--count=many"])
def test_bad_options(option: str) -> None:
    assert run("attack", option).exit_code == 2


@pytest.mark.parametrize(("kind", "code"), [("Ctrl-C", 130), ("model", 1), ("GPU", 1)])
def test_a_stopped_run_keeps_what_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    complete = advcore.minimize_distortion(
        data.embedded_network(), data.embedded_digits()[0][:2], np.array([3, 4])
    )

    def stopped(*_: Any, **__: Any) -> advcore.Result:
        if kind == "model":
            text = "the model raised X: y; the exception's .result holds what was computed"
            raise advcore.ModelError(text, complete)
        if kind == "GPU":
            raise advcore.DeviceError("no memory", complete)
        raise advcore.Interrupted(complete)

    monkeypatch.setattr(advcore, "minimize_distortion", stopped)
    done = run("attack", "--count", 2, "--no-picture", "--out", "r.npz")
    assert done.exit_code == code
    assert "2 of 2" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    if kind == "model":
        assert "raised X: y; the table and --out hold what was computed" in done.stderr
    loaded = advcore.Result.load(folder / "r.npz")
    np.testing.assert_array_equal(loaded.adversarial, complete.adversarial)


def test_a_gpu_that_fails_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*_: Any, **__: Any) -> advcore.Result:
        raise advcore.DeviceError("no memory")

    monkeypatch.setattr(advcore, "minimize_distortion", failed)
    done = run("attack", "--count", 2, "--no-picture")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (1, "error: no memory")


@pytest.mark.parametrize(("begun", "when"), [(False, "before the run began"), (True, "after the")])
def test_ctrl_c_outside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool, when: str
) -> None:
    monkeypatch.chdir(tmp_path)

    def stopped(*_: Any, callback: Any, **__: Any) -> advcore.Result:
        if begun:
            callback(advcore.Progress(0, 2, 0, 0, 0.0))
        raise KeyboardInterrupt

    monkeypatch.setattr(advcore, "minimize_distortion", stopped)
    done = run("attack", "--count", 2, "--no-picture")
    assert done.exit_code == 130
    assert done.stderr.startswith(f"error: interrupted {when}")
    assert done.stderr.count("\n") == 1


def test_options_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(
        *("attack", "--count", 5, "--no-picture", "--out", "r.npz", "--levels", 256),
        *("--history", 3, "--tolerance", 1e-2, "--c-init", 0.1),
    )
    assert done.exit_code == 0, done.output
    images, labels = data.embedded_digits()
    expected = advcore.minimize_distortion(
        data.embedded_network(),
        images[:5],
        data.random_targets(labels, classes=10, seed=0)[:5],
        levels=256,
        history=3,
        tolerance=1e-2,
        c_init=0.1,
    )
    result = advcore.Result.load("r.npz")
    np.testing.assert_array_equal(result.adversarial, expected.adversarial)


def test_info_tells_a_build_without_cuda_from_a_machine_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for status, text in (
        ((True, 2, ""), "CUDA: 2 GPUs"),
        ((True, 0, "old driver"), "CUDA: built with CUDA, no usable GPU or driver (old driver)"),
        ((False, 0, "no compiler"), "CUDA: no (no compiler)"),
    ):
        monkeypatch.setattr("advcore.cli.app._core.cuda_status", lambda status=status: status)
        assert text in run("info").stdout.splitlines()


def test_remedies_name_the_options_of_the_command() -> None:
    assert (
        with_dashes("x; pass batch_size=1 or threads=2") == "x; pass --batch-size 1 or --threads 2"
    )
    assert with_dashes("pass bounds=(-1, 0.5) if so") == "pass --bounds -1 0.5 if so"


def test_options_are_those_of_the_call() -> None:
    help_text = run("attack", "--help").stdout
    assert "--bounds 0 255" in " ".join(help_text.replace("│", " ").split())
    for entry in dataclasses.fields(Options):
        shown = f"--{entry.name.replace('_', '-')} " in help_text
        assert shown == (option_info(entry.name).command_type is not None), entry.name


@pytest.mark.filterwarnings("default::FutureWarning")
def test_norm_is_the_former_name_of_penalty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for option in ("--norm", "--penalty"):
        arguments = ("attack", "--count", 3, "--no-picture", option, "l2_unsquared")
        done = run(*arguments, "--out", f"{option}.npz")
        assert done.exit_code == 0, done.output
        warned = "warning: --norm l2_unsquared is --penalty l2_unsquared now" in done.stderr
        assert warned == (option == "--norm")
    norm, penalty = (advcore.Result.load(f"{option}.npz") for option in ("--norm", "--penalty"))
    assert norm.penalty == penalty.penalty == "l2_unsquared"
    np.testing.assert_array_equal(norm.c, penalty.c)


def test_table_has_the_figures_of_the_summary() -> None:
    images, labels = data.embedded_digits()
    result = advcore.minimize_distortion(data.embedded_network(), images[:4], labels[:4])
    result.engine["isa"] = "v3"
    rows = dict(summary_rows(result))
    assert rows["distortion ||r||"].endswith("(4 already adversarial count as 0)")
    assert rows["further forwards per image"] == f"mean {result.forwards.mean():.1f}"
    assert f"status: {rows['status']}" in result.summary()
    assert rows["engine: isa"] == "AVX2 (v3)"
    result.status[1:] = advcore.Status.interrupted
    result.seconds = 0.5
    assert dict(summary_rows(result))["images per second"] == "2"


@pytest.mark.usefixtures("folder")
def test_empty_batch() -> None:
    np.save("none.npy", np.zeros((0, 3), np.float32))
    done = run("attack", "--model", "my_model.py:build", "--images", "none.npy")
    assert done.exit_code == 0, done.output
    assert "0 of 0" in done.stdout
    done = run("attack", "--count", "0", "--targets", "random", "--no-picture")
    assert done.exit_code == 0, done.output
    assert "0 of 0" in done.stdout


def test_version() -> None:
    done = run("--version")
    assert (done.exit_code, done.stdout) == (0, f"advcore {advcore.__version__}\n")


def test_info() -> None:
    done = run("info")
    assert done.exit_code == 0, done.output
    assert advcore.__version__ in done.stdout
    assert "CUDA" in done.stdout


@pytest.mark.parametrize(
    ("failure", "text", "code"),
    [
        ("", "solver: passed its test", 0),
        ("solver wrong", "solver: no (its test failed (wrong results", 0),
        ("solver hang", "has not answered", 1),
    ],
)
def test_info_of_a_gpu(
    failure: str, text: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from support.simulated_gpu import simulated_gpu

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with simulated_gpu(failure):
        monkeypatch.setattr("advcore.solve.gpu_test.HANG_SECONDS", 0.1)
        done = run("info", "--gpu")
    assert done.exit_code == code
    assert text in done.output
    for fact in ("GPU: simulated", "driver: CUDA 13.0", "ADVCORE_GPU: auto", "networks: ready"):
        assert fact in done.stdout
    assert str(tmp_path) in done.stdout
    monkeypatch.setattr("advcore.cli.app._core.cuda_status", lambda: (False, 0, "no compiler"))
    assert "GPU: none (no compiler)" in run("info", "--gpu").stdout


def test_the_package_runs_as_a_program() -> None:
    command = [sys.executable, "-P", "-m", "advcore.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == f"advcore {advcore.__version__}\n", done.stderr


def test_main_without_typer_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "advcore.cli.attack")
    monkeypatch.delattr(cli, "attack")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert 'pip install "advcore[cli]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "shape", [(2, 16), (2, 4, 4), (2, 1, 4, 4), (2, 4, 4, 1), (2, 3, 4, 4), (2, 4, 4, 3)]
)
def test_layouts_of_pictures(shape: tuple[int, ...]) -> None:
    from advcore.report import displayable

    pixels = displayable(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    assert pixels.shape == ((2, 4, 4, 3) if 3 in shape else (2, 4, 4))


@pytest.mark.parametrize("shape", [(2, 15), (2, 5, 4, 4)])
def test_pictures_that_cannot_be_drawn(shape: tuple[int, ...]) -> None:
    from advcore.report import displayable

    with pytest.raises(ValueError, match=r"square number of pixels, got 15|cannot be drawn"):
        displayable(np.zeros(shape, np.float32))
