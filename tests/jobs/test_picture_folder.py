"""Inputs that are folders of pictures."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.damage import damaged

from advcore import _pictures
from advcore.jobs import picture_folder
from advcore.jobs.inputs import InputSpec
from advcore.jobs.sources import open_source

pytest.importorskip("PIL")
from PIL import Image

MODEL = SimpleNamespace(input_shape=(3, 8, 8))


def add(folder: Path, *names: str) -> dict[str, np.ndarray]:
    """Write a picture for each name, and return their pixels (3, 8, 8)."""
    pixels = {}
    for seed, name in enumerate(names):
        values = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(folder / name, "PNG")
        pixels[name] = values.transpose(2, 0, 1)
    return pixels


def open_folder(folder: Path, model: Any = MODEL, **more: Any) -> Any:
    return open_source(InputSpec("pictures", str(folder), **more), model)


def test_pictures_in_the_order_of_their_paths(tmp_path: Path) -> None:
    pixels = add(tmp_path, "b/2.png", "a/1.png", "a/deep/1.png", "a-b/1.png", ".hidden/1.png")
    source = open_folder(tmp_path)
    names = ["a/1.png", "a/deep/1.png", "a-b/1.png", "b/2.png"]
    assert (source.count, source.borders) == (4, None)
    got = source.read(1, 4)
    assert got.keys == names[1:]
    expected = np.stack([pixels[name] for name in names[1:]])
    np.testing.assert_array_equal(got.images, expected.astype(np.float32) / np.float32(255))
    assert (got.labels, got.targets, got.unreadable) == (None, None, {})


def test_pictures_are_those_that_the_command_reads(tmp_path: Path) -> None:
    pytest.importorskip("typer")
    from advcore.cli import pictures

    values = np.random.default_rng(0).integers(0, 256, (40, 23, 3)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg")
    model = SimpleNamespace(input_shape=(8, 8, 1))
    image_format = pictures.find_format(model)
    read = image_format.to_model(pictures.read_folder(tmp_path, image_format).pixels)
    np.testing.assert_array_equal(open_folder(tmp_path, model).read(0, 1).images, read)


def test_the_size_may_be_given(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    assert open_folder(tmp_path, None, size=5).read(0, 1).images.shape == (1, 3, 5, 5)
    with pytest.raises(ValueError, match=r"give input\.size, or the model"):
        open_folder(tmp_path, None)


@pytest.mark.parametrize(
    ("folders", "classes"), [(("cat", "ant"), (1, 0)), (("10", "9", "009"), (10, 9, 9))]
)
def test_labels_from_class_folders(
    tmp_path: Path, folders: tuple[str, ...], classes: tuple[int, ...]
) -> None:
    add(tmp_path, *[f"{folder}/x/{folder}.png" for folder in folders])
    assert open_folder(tmp_path).read(0, len(folders)).labels is None
    got = open_folder(tmp_path, label="folders").read(0, len(folders))
    numbers = dict(zip(folders, classes, strict=True))
    np.testing.assert_array_equal(got.labels, [numbers[Path(key).stem] for key in got.keys])


def test_labels_need_class_folders(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"needs a folder for each class, but a.png is in none"):
        open_folder(tmp_path, label="folders")
    with pytest.raises(ValueError, match=r"input.label must be 'folders' for pictures, got 'x'"):
        open_folder(tmp_path, label="x")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    add(tmp_path, "0/a.png", "1/b.png", "2/c.png", "3/d.png")
    source = open_folder(tmp_path, label="folders")
    (tmp_path / "0/a.png").write_bytes(b"no picture")
    whole = (tmp_path / "2/c.png").read_bytes()
    (tmp_path / "2/c.png").write_bytes(whole[:100])
    (tmp_path / "3/d.png").unlink()
    got = source.read(0, 4)
    assert got.keys == ["1/b.png"]
    np.testing.assert_array_equal(got.labels, [1])
    assert got.images.shape == (1, 3, 8, 8)
    assert list(got.unreadable) == ["0/a.png", "2/c.png", "3/d.png"]
    assert got.unreadable["0/a.png"] == "cannot identify image file"
    assert "truncated" in got.unreadable["2/c.png"]
    assert got.unreadable["3/d.png"] == "No such file or directory"
    none = source.read(2, 4)
    assert (none.keys, none.images.shape, len(none.labels)) == ([], (0, 3, 8, 8), 0)


def test_a_folder_out_of_reach_is_an_error(tmp_path: Path) -> None:
    add(tmp_path / "in", "a.png")
    source = open_folder(tmp_path / "in")
    (tmp_path / "in").rename(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"input.path: .*in does not exist"):
        source.read(0, 1)


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "a.png")
    source = open_folder(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(picture_folder, "read_picture", fail)
    with pytest.raises(OSError, match="Input/output error"):
        source.read(0, 1)


def test_only_the_range_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, *[f"{i}.png" for i in range(6)])
    opened: list[str] = []

    def read(path: Path, image_format: Any) -> Any:
        opened.append(path.name)
        return _pictures.read_picture(path, image_format)

    monkeypatch.setattr(picture_folder, "read_picture", read)
    source = open_folder(tmp_path)
    source.fingerprint()
    assert opened == []
    source.read(2, 4)
    assert opened == ["2.png", "3.png"]


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    add(tmp_path, os.fsdecode(b"caf\xe9.png"), "ünï.png")
    got = open_folder(tmp_path).read(0, 2)
    assert set(got.keys) == {"caf\\udce9.png", "ünï.png"}


def test_the_output_is_no_input(tmp_path: Path) -> None:
    add(tmp_path, "a/1.png", "out/2.png")
    assert open_folder(tmp_path, leave_out=tmp_path / "out").count == 1


def test_fingerprints_follow_names_and_sizes(tmp_path: Path) -> None:
    add(tmp_path / "in", "a.png", "b.png")
    before = open_folder(tmp_path / "in").fingerprint()
    assert list(before) == ["pictures", "reading"]
    (tmp_path / "in").rename(tmp_path / "moved")
    assert open_folder(tmp_path / "moved").fingerprint() == before
    (tmp_path / "moved/b.png").rename(tmp_path / "moved/c.png")
    assert open_folder(tmp_path / "moved").fingerprint() != before


def test_fingerprints_follow_what_is_read(tmp_path: Path) -> None:
    add(tmp_path, "0/a.png", "1/b.png")
    kinds = [{}, {"size": 4}, {"label": "folders"}, {"scale": False}]
    prints = [open_folder(tmp_path, **kind).fingerprint() for kind in kinds]
    assert len({str(each) for each in prints}) == len(kinds)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"input.path: .*nowhere does not exist"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"input.path: no pictures in .* \(.png, .jpg"):
        open_folder(tmp_path)
    with pytest.raises(ValueError, match=r"input.key is not for inputs of kind 'pictures', which"):
        open_folder(tmp_path, key="x")
    with pytest.raises(ValueError, match=r"input.kind must be one of pictures, arrays, .* 'x'"):
        open_source(InputSpec("x", "y"), None)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*decompression bomb.*")
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "webp"])
def test_damaged_pictures(tmp_path: Path, ending: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / f"a.{ending}")
    whole = (tmp_path / f"a.{ending}").read_bytes()
    for i, content in enumerate(damaged(whole, 200)):
        (tmp_path / f"b{i:03}.{ending}").write_bytes(content)
    got = open_folder(tmp_path).read(0, 201)
    assert len(got.keys) + len(got.unreadable) == 201
    assert got.images.shape == (len(got.keys), 3, 8, 8)
    assert len(got.unreadable) > 20
    assert not any(str(tmp_path) in reason or "0x" in reason for reason in got.unreadable.values())
