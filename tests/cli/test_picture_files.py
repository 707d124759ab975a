"""Files of a folder of pictures: names of any bytes, folders below, links, long thin pictures."""

from __future__ import annotations

import csv
import os
import resource
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advcore import Layer, Network, _pictures
from advcore.cli import pictures

pytest.importorskip("PIL")
pytest.importorskip("typer")
from PIL import Image
from support.command_line import run

SIDE = 8
ARGUMENTS = ("attack", "--model", "net.safetensors", "--images", "in", "--pictures", "out")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a network for pictures of 8x8 grey pixels and an empty folder ``in``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, SIDE * SIDE)).astype(np.float32) / SIDE
    Network([Layer(weight, np.zeros(4, np.float32))]).save("net.safetensors")
    (tmp_path / "in").mkdir()
    return tmp_path


def add_pictures(folder: Path, *names: str) -> None:
    """Write a picture of its own for every name."""
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            kind = "JPEG" if name.endswith(".jpg") else "PNG"
            Image.fromarray(pixels).save(file, kind)


def rows_of_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def check_files(folder: Path, done: Any) -> list[dict[str, str]]:
    """Return the table's rows, after a check that each has files of its own with its image."""
    assert done.exit_code == 0, done.output
    rows = rows_of_table(folder / "out" / "table.csv")
    names = [row[key] for row in rows for key in ("original_png", "adversarial_png") if row[key]]
    assert len(set(names)) == len(names)
    written = {path.name for path in (folder / "out").glob("*.png")}
    assert written == set(names)
    for row in rows:
        clean = np.asarray(Image.open(folder / "in" / row["file"]))
        stored = np.asarray(Image.open(folder / "out" / row["original_png"]))
        np.testing.assert_array_equal(stored, clean)
    return rows


def test_names_that_would_clash_are_told_apart(folder: Path) -> None:
    names = ["x.png", "x.jpg", "x_png.png", "x.jpg.png", "y.png", "y_png_2.png", "y.jpeg"]
    add_pictures(folder / "in", *names)
    rows = check_files(folder, run(*ARGUMENTS, "--no-picture"))
    assert sorted(row["file"] for row in rows) == sorted(names)
    originals = {row["file"]: row["original_png"] for row in rows}
    assert originals["x_png.png"] == "x_png_original.png"  # Only it has this stem.


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["a.png", "a.jpg"], ["a_png", "a_jpg"]),
        (["x.png", "x.jpg", "x_png.png"], ["x_png_2", "x_jpg", "x_png"]),
        (["cat/1.png", "dog/1.png", "cat_1.png"], ["cat_1_png", "dog_1", "cat_1_png_2"]),
        (["a.b.png", "a.b.jpg", "a_b.png"], ["a_b_png", "a_b_jpg", "a_b"]),
    ],
)
def test_unique_names(paths: list[str], names: list[str]) -> None:
    assert pictures.unique_names([Path(path) for path in paths]) == names


def test_long_names_leave_room_for_the_ending(folder: Path) -> None:
    long = "é" * 124  # 248 bytes, and 4 of the ending
    add_pictures(folder / "in", f"{long}.png", f"{long[:-1]}x.png")
    rows = check_files(folder, run(*ARGUMENTS, "--no-picture"))
    assert len(rows) == 2


def test_names_may_be_any_bytes(folder: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), "new\nline.png", 'quote".png', "ünï.png"]
    add_pictures(folder / "in", *names)
    (folder / "in" / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    done = run(*ARGUMENTS, "--no-picture")
    rows = check_files(folder, done)
    assert sorted(row["file"] for row in rows) == sorted(names)
    assert (folder / "out" / os.fsdecode(b"caf\xe9_original.png")).exists()
    assert "cannot be read" in done.stderr


def test_an_output_of_any_bytes_is_printed_with_escapes(folder: Path) -> None:
    add_pictures(folder / "in", "a.png")
    output = os.fsdecode(b"out\xff")
    done = run(*ARGUMENTS[:-1], output, "--no-picture", "--out", os.fsdecode(b"r\xff.npz"))
    assert done.exit_code == 0, done.output
    assert "pictures: out\\udcff (" in done.stdout
    assert (folder / output / "table.csv").exists()


def test_folders_of_class_folders(folder: Path) -> None:
    names = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/old/1.png"]
    add_pictures(folder / "in", *names, ".hidden/1.png")
    (folder / "in" / "dog" / "loop").symlink_to("..")
    rows = check_files(folder, run(*ARGUMENTS, "--no-picture"))
    assert [row["file"] for row in rows] == names
    assert [row["original_png"] for row in rows] == [
        "cat_1_original.png", "cat_2_original.png", "dog_1_original.png", "dog_old_1_original.png",
    ]  # fmt: skip


def test_pictures_of_the_folder_itself_come_alone(folder: Path) -> None:
    add_pictures(folder / "in", "1.png", "below/2.png")
    rows = check_files(folder, run(*ARGUMENTS, "--no-picture"))
    assert [row["file"] for row in rows] == ["1.png"]


def test_results_of_a_former_run_are_no_pictures_to_attack(folder: Path) -> None:
    add_pictures(folder / "in", "cat/1.png")
    arguments = (*ARGUMENTS[:-1], "in/out", "--no-picture")
    for _ in range(2):
        assert run(*arguments).exit_code == 0
        rows = rows_of_table(folder / "in" / "out" / "table.csv")
        assert [row["file"] for row in rows] == ["cat/1.png"]


def test_links_in_the_output_are_replaced(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    add_pictures(folder / "in", "a.png")
    (folder / "secret").write_text("untouched")
    (folder / "out").mkdir()
    links = ("a_original.png", "a_adversarial.png", "table.csv", "grid.png")
    for name in links:
        (folder / "out" / name).symlink_to(folder / "secret")
    assert run(*ARGUMENTS).exit_code == 0
    assert (folder / "secret").read_text() == "untouched"
    assert not any((folder / "out" / name).is_symlink() for name in links)
    assert (folder / "out" / "grid.png").read_bytes().startswith(b"\x89PNG")


def thin(path: Path, width: int, height: int) -> None:
    """Write a grey picture of few bytes, dark at its ends and light in its middle."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    ramp = np.abs(np.linspace(-1, 1, max(width, height)))
    pixels = ((1 - ramp) * 255).astype(np.uint8).reshape(height, width)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("upright", [False, True])
def test_long_thin_pictures_take_no_more_than_their_part(tmp_path: Path, upright: bool) -> None:
    thin(tmp_path / "x.png", *((1, 20_000) if upright else (20_000, 1)))
    image_format = pictures.ImageFormat((1, 224, 224), 1, 224, 224)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = pictures.read_folder(tmp_path, image_format).pixels
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert values.shape == (1, 1, 224, 224)
    np.testing.assert_allclose(values, 1, atol=2 / 255)  # The middle is white.


@pytest.mark.parametrize("size", [(600, 30), (30, 600), (3000, 90), (5, 120)])
def test_the_part_alone_is_that_of_the_whole(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image_format = pictures.ImageFormat((3, 20, 20), 3, 20, 20)
    part = pictures.read_folder(tmp_path, image_format).pixels
    monkeypatch.setattr(_pictures, "LARGEST_ENLARGEMENT", 10**9)
    whole = pictures.read_folder(tmp_path, image_format).pixels
    assert np.abs(part - whole).max() <= 1.001 / 255
