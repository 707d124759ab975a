"""Folders of pictures: reading, targets by a word, results written as PNG and read back."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.marks import needs_data

import advcore
from advcore import Layer, Network
from advcore.cli import pictures
from advcore.jobs import classes

pytest.importorskip("PIL")
pytest.importorskip("typer")
from PIL import Image
from support.command_line import run

SIDE = 12
COLOUR = pictures.ImageFormat((3, SIDE, SIDE), 3, SIDE, SIDE)
GREY = pictures.ImageFormat((SIDE * SIDE,), 1, SIDE, SIDE)
MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(150, 4)
    )
    return net.eval()

def sized():
    net = build()
    net.input_shape = (3, 12, 12)
    return net
"""
NAMES = ["tabby, tabby cat", "crane", "crane", "red fox"]


def blocks(seed: int, *shape: int) -> Any:
    """Smooth random bytes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (3, 3, *shape[2:]))
    return np.kron(coarse, np.ones((shape[0] // 3, shape[1] // 3, *([1] * len(shape[2:]))))).astype(
        np.uint8
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with my_model.py, names.json and a folder ``in`` of four pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "names.json").write_text(json.dumps(NAMES))
    (tmp_path / "in").mkdir()
    Image.fromarray(blocks(0, SIDE, SIDE, 3)).save("in/a.png")
    Image.fromarray(blocks(1, 24, 36, 3)).save("in/a.jpg")
    Image.fromarray(blocks(2, SIDE, SIDE)).save("in/grey.png")
    Image.fromarray(blocks(3, 15, SIDE, 4)).save("in/see_through.PNG")
    return tmp_path


def network() -> Network:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, SIDE * SIDE)).astype(np.float32) / SIDE
    return Network([Layer(weight, np.zeros(4, np.float32))])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Reading


def one(
    picture: Image.Image, image_format: pictures.ImageFormat, folder: Path, name: str = "x.png"
) -> Any:
    """The bytes that are read of a picture, (H, W) or (H, W, 3)."""
    (folder / "one").mkdir(exist_ok=True)
    picture.save(folder / "one" / name)
    found = pictures.read_folder(folder / "one", image_format)
    (folder / "one" / name).unlink()
    assert not found.unread
    assert found.pixels.dtype == np.float32
    values = found.pixels[0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(values, values.round(), atol=1e-4)
    return values.round().astype(int).squeeze()


def test_modes_of_pictures(tmp_path: Path) -> None:
    colour, grey = blocks(0, SIDE, SIDE, 3), blocks(1, SIDE, SIDE)
    thrice = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(one(Image.fromarray(colour), COLOUR, tmp_path), colour)
    np.testing.assert_array_equal(one(Image.fromarray(grey), COLOUR, tmp_path), thrice)
    np.testing.assert_array_equal(one(Image.fromarray(grey), GREY, tmp_path), grey)
    np.testing.assert_array_equal(one(Image.fromarray(thrice), GREY, tmp_path), grey)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(one(deep, GREY, tmp_path), grey)
    pair = one(Image.fromarray(grey > 128), COLOUR, tmp_path)
    np.testing.assert_array_equal(pair, np.where(thrice > 128, 255, 0))
    cmyk = one(Image.fromarray(colour).convert("CMYK"), COLOUR, tmp_path, "x.jpg")
    assert np.abs(cmyk - colour).mean() < 8


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    values = blocks(0, SIDE, SIDE, 4)
    values[..., 3] = 255
    values[:5, :, 3] = 0
    seen = one(Image.fromarray(values), COLOUR, tmp_path)
    assert (seen[:5] == 255).all()
    np.testing.assert_array_equal(seen[5:], values[5:, :, :3])
    palette = Image.fromarray(blocks(0, SIDE, SIDE, 3)).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (one(palette, COLOUR, tmp_path)[0, 0] == 255).all()


def test_turned_cameras(tmp_path: Path) -> None:
    values = blocks(0, SIDE, SIDE, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture = Image.fromarray(values)
    (tmp_path / "turned").mkdir()
    picture.save(tmp_path / "turned" / "x.png", exif=exif)
    seen = pictures.read_folder(tmp_path / "turned", COLOUR).pixels[0].transpose(1, 2, 0) * 255
    np.testing.assert_allclose(seen, np.rot90(values, -1), atol=1e-3)


def test_the_middle_is_taken(tmp_path: Path) -> None:
    values = blocks(0, SIDE, 3 * SIDE, 3)
    seen = one(Image.fromarray(values), COLOUR, tmp_path)
    np.testing.assert_array_equal(seen, values[:, SIDE : 2 * SIDE])
    tall = np.repeat(np.repeat(values.swapaxes(0, 1), 2, axis=0), 2, axis=1)
    seen = one(Image.fromarray(tall), COLOUR, tmp_path)  # halved: at least the inner values
    inner = values.swapaxes(0, 1)[SIDE : 2 * SIDE]
    assert np.abs(seen - inner).mean() < 6


def test_imagenet_sizes_are_cropped_from_256(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)[:, None].repeat(256, axis=1)
    frame = pictures.ImageFormat((1, 224, 224), 1, 224, 224)
    np.testing.assert_array_equal(one(Image.fromarray(ramp), frame, tmp_path), ramp[16:240, :224])


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((3, 8, 9), None, (3, 8, 9)),
        ((8, 9, 3), None, (3, 8, 9)),
        ((1, 8, 9), None, (1, 8, 9)),
        ((8, 9), None, (1, 8, 9)),
        ((64,), None, (1, 8, 8)),
        ((192,), None, (3, 8, 8)),
        ((3, 8, 9), 5, (3, 5, 5)),
        ((8, 9, 3), 5, (3, 5, 5)),
        (None, 5, (3, 5, 5)),
    ],
)
def test_frames(shape: Any, size: int | None, expected: tuple[int, ...]) -> None:
    class Model:
        input_shape = shape

    frame = pictures.find_format(Model(), size)
    assert (frame.channels, frame.height, frame.width) == expected
    pixels = np.random.default_rng(0).random((2, *expected)).astype(np.float32)
    images = frame.to_model(pixels)
    assert images.shape[1:] == frame.shape
    np.testing.assert_array_equal(frame.to_pixels(images), pixels)
    if shape == (8, 9, 3):
        assert images[0, 0, 0, 1] == pixels[0, 1, 0, 0]


@pytest.mark.parametrize("shape", [(65,), (5, 8, 8), (2, 3, 4, 5)])
def test_shapes_that_are_no_pictures(shape: tuple[int, ...]) -> None:
    class Model:
        input_shape = shape

    with pytest.raises(ValueError, match="which are no pictures"):
        pictures.find_format(Model())


# Targets


def test_targets_by_a_word() -> None:
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [2, 0, 3, 1]], np.float32)
    labels = np.array([0, 3, 0])

    def choose(wish: str) -> list[int]:
        return classes.choose_targets(
            wish, logits, labels, NAMES, lambda y, k: (y + 1) % k
        ).tolist()

    assert choose("next-likeliest") == [1, 2, 2]
    assert choose("2") == [2, 2, 2]
    assert choose("Tabby Cat") == choose("tabby") == choose("tabby, tabby cat") == [0, 0, 0]
    assert not np.any(np.array(choose("random")) == labels)
    for wish, text in (
        ("4", r"class 4 is not in \[0, 3\]"),
        ("-1", r"class -1 is not in \[0, 3\]"),
        ("crane", "names the classes 1, 2; give the number"),
        ("red fx", "got 'red fx'; close: red fox"),
    ):
        with pytest.raises(ValueError, match=text):
            choose(wish)
    with pytest.raises(ValueError, match=r"names of the classes are not known \(names=\.\.\.\)"):
        classes.choose_targets("tabby", logits, labels, None, lambda y, k: y)


def test_names_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    assert classes.class_names(None, 1000) is None
    (tmp_path / "imagenet").mkdir()
    thousand = [f"class {i}" for i in range(1000)]
    (tmp_path / "imagenet" / "imagenet_labels.json").write_text(json.dumps(thousand))
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    assert classes.class_names(None, 1000) == thousand
    assert classes.class_names(None, 10) is None
    path = tmp_path / "n.json"
    path.write_text(json.dumps({"1": ["n2", "b"], "0": ["n1", "a"]}))
    assert classes.class_names(path, 2) == ["a", "b"]
    (tmp_path / "n.txt").write_text("a\nb\n")
    assert classes.class_names(tmp_path / "n.txt", 2) == ["a", "b"]
    with pytest.raises(ValueError, match="has 2 names, the model 3 classes"):
        classes.class_names(path, 3)
    path.write_text("[1")
    with pytest.raises(ValueError, match="holds no names of classes"):
        classes.class_names(path, 2)
    with pytest.raises(FileNotFoundError, match=r"^names: .*none\.txt does not exist"):
        classes.class_names(tmp_path / "none.txt", 2)


# Runs


def test_a_folder_is_attacked_and_written(folder: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    (folder / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (folder / "in" / "notes.txt").write_text("no picture")
    done = run(
        *("attack", "--model", "my_model.py:sized", "--images", "in", "--pictures", "out"),
        *("--targets", "next-likeliest", "--names", "names.json"),
    )
    assert done.exit_code == 0, done.output
    assert "4 of 4" in done.stdout
    assert "(4 of 4 adversarial ones verified after reading the PNG files back)" in done.stdout
    assert "warning: in/broken.png cannot be read (" in done.stderr
    assert "; the other 4 go on" in done.stderr
    rows = table(folder / "out" / "table.csv")
    assert [row["file"] for row in rows] == ["a.jpg", "a.png", "grey.png", "see_through.PNG"]
    assert tuple(rows[0]) == pictures.COLUMNS
    assert (folder / "out" / "grid.png").read_bytes().startswith(b"\x89PNG")
    model = advcore.load_model("my_model.py:sized")
    import torch

    for row, stem in zip(rows, ("a_jpg", "a_png", "grey", "see_through"), strict=True):
        assert row["adversarial_png"] == f"{stem}_adversarial.png"
        before, after = (
            np.asarray(Image.open(folder / "out" / row[key])).astype(np.float32) / 255
            for key in ("original_png", "adversarial_png")
        )
        assert before.shape == after.shape == (SIDE, SIDE, 3)
        logits = model(torch.from_numpy(np.stack([before, after]).transpose(0, 3, 1, 2)))
        clean, changed = logits.argsort(1, descending=True).tolist()
        assert [int(row["class"]), int(row["target"])] == clean[:2]
        assert int(row["adversarial"]) == int(row["target"]) == changed[0]
        assert row["adversarial_name"] == NAMES[changed[0]].partition(",")[0]
        assert (row["success"], row["verified_in_png"]) == ("1", "1")
        distance = np.linalg.norm((after - before).ravel())
        assert float(row["distortion"]) == pytest.approx(distance, rel=1e-4)
        assert float(row["rms_distortion"]) == pytest.approx(distance / SIDE / 3**0.5, rel=1e-4)
    original = np.asarray(Image.open(folder / "out" / "a_png_original.png"))
    np.testing.assert_array_equal(original, np.asarray(Image.open(folder / "in" / "a.png")))


def test_grey_pictures_for_a_network_of_the_engine(folder: Path) -> None:
    network().save("net.safetensors")
    arguments = ("attack", "--model", "net.safetensors", "--images", "in", "--no-picture")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    rows = table(folder / "advcore_pictures" / "table.csv")
    assert len(rows) == 4
    assert all(row["target"] == row["class_name"] == "" for row in rows)
    assert all(row["adversarial"] != row["class"] for row in rows)
    with Image.open(folder / "advcore_pictures" / "a_png_adversarial.png") as picture:
        assert (picture.mode, picture.size) == ("L", (SIDE, SIDE))
    assert not (folder / "advcore_pictures" / "grid.png").exists()
    done = run(*arguments, "--count", 3, "--targets", "2", "--max-evaluations", 1, "--out", "r.npz")
    assert done.exit_code == 0, done.output
    rows = table(folder / "advcore_pictures" / "table.csv")
    result = advcore.Result.load(folder / "r.npz")
    assert [row["success"] == "1" for row in rows] == result.success.tolist()
    for row, found in zip(rows, result.success, strict=True):
        name = row["original_png"].replace("original", "adversarial")
        assert (folder / "advcore_pictures" / name).exists() == found  # of the first run: removed
        assert row["adversarial_png"] == (name if found else "")


def test_what_the_files_do_not_hold_is_not_verified(folder: Path) -> None:
    net = network()
    found = pictures.read_folder(folder / "in", GREY)
    images = GREY.to_model(found.pixels)
    labels = net.forward(images).argmax(1).astype(np.int64)
    result = advcore.minimize_distortion(net, images)  # not on the grid of 8 bits
    result.adversarial = images + np.float32(0.3 / 255) * np.sign(result.adversarial - images)
    written = pictures.write(
        folder / "o", found.files, images, labels, result, GREY, net.forward, None
    )
    assert (written.successes, written.verified) == (4, 0)
    assert [row["verified_in_png"] for row in table(written.table)] == ["0"] * 4


def test_sizes_that_the_model_does_not_say(folder: Path) -> None:
    pytest.importorskip("torch")
    arguments = ("attack", "--model", "my_model.py:build", "--images", "in", "--no-picture")
    done = run(*arguments)
    assert done.exit_code == 2
    assert "give --size, or the model an attribute input_shape" in done.stderr
    done = run(*arguments, "--size", SIDE, "--count", 1, "--targets", "random")
    assert done.exit_code == 0, done.output
    assert len(table(folder / "advcore_pictures" / "table.csv")) == 1


def test_words_for_targets_of_arrays(folder: Path) -> None:
    network().save("net.safetensors")
    np.save("x.npy", np.random.default_rng(0).random((5, SIDE * SIDE), dtype=np.float32))
    arguments = ("attack", "--model", "net.safetensors", "--images", "x.npy", "--out", "r.npz")
    assert run(*arguments, "--targets", "next-likeliest").exit_code == 0
    second = network().forward(np.load("x.npy")).argsort(1)[:, -2]
    np.testing.assert_array_equal(advcore.Result.load("r.npz").target, second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "none"], "--images: none does not exist"),
        (["--images", "empty"], "--images: no pictures in empty (.png, .jpg"),
        (["--images", "bad"], "--images: no picture in bad can be read; x.png: cannot identify"),
        (
            ["--images", "in", "--pictures", "in"],
            "--pictures: must be another folder than --images",
        ),
        (["--images", "in", "--pictures", "net.safetensors"], "net.safetensors is not a folder"),
        (["--images", "in", "--pictures", "no/such"], "--pictures: folder no does not exist"),
        (["--images", "in", "--levels", "16"], "with --levels 256, --bounds 0 1"),
        (["--images", "in", "--bounds", "-1", "1"], "with --levels 256, --bounds 0 1"),
        (["--images", "in", "--size", "13"], "of shape (144,), which are no pictures"),
        (["--images", "in", "--targets", "tabby"], "got 'tabby'; the names of the classes are not"),
        (["--images", "in", "--targets", "9"], "--targets: class 9 is not in [0, 3]"),
        (["--images", "in", "--names", "none.json"], "--names: none.json does not exist"),
        (["--pictures", "out"], "--pictures and --size need a folder of pictures"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], message: str) -> None:
    network().save("net.safetensors")
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_text("no picture")
    done = run("attack", "--model", "net.safetensors", "--no-picture", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (folder / "advcore_pictures").exists()


def test_missing_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network().save("net.safetensors")
    monkeypatch.setitem(sys.modules, "PIL", None)
    done = run("attack", "--model", "net.safetensors", "--images", "in")
    assert done.exit_code == 2
    assert 'pip install "advcore[pictures]"' in done.stderr


def test_untrained_models_are_noted(folder: Path) -> None:
    pytest.importorskip("torch")
    done = run("attack", "--model", "fc10", "--count", 2, "--no-picture")
    assert done.exit_code == 0, done.output
    assert "note: fc10 has its initial weights" in done.stderr


@needs_data
@pytest.mark.slow
def test_imagenet_pictures_through_squeezenet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("torch")
    samples = Path(os.environ["ADVCORE_DATA"]) / "imagenet" / "samples"
    done = run(
        *("attack", "--model", "squeezenet1_0", "--images", samples.absolute(), "--count", 2),
        *("--targets", "next-likeliest", "--effort", "fast", "--max-evaluations", 30),
    )
    assert done.exit_code == 0, done.output
    rows = table(tmp_path / "advcore_pictures" / "table.csv")
    assert [row["class_name"] for row in rows] == ["boxer", "folding chair"]
    assert [row["target_name"] for row in rows] == ["bull mastiff", "dining table"]
    assert all(row["verified_in_png"] == "1" for row in rows)
    assert all(float(row["distortion"]) < 0.5 for row in rows)


@pytest.mark.filterwarnings("default::FutureWarning")
def test_output_is_the_former_name_of_pictures(folder: Path) -> None:
    network().save("net.safetensors")
    words = ("attack", "--model", "net.safetensors", "--images", "in", "--output", "out")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "warning: --output is --pictures now; the next release has no --output" in done.stderr
    assert (folder / "out" / "table.csv").exists()
    both = run(*words, "--pictures", "other")
    assert both.exit_code == 2
    assert "--output is the former name of --pictures: give one of them, not both" in both.stderr
    assert "--output" not in run("attack", "--help").stdout
