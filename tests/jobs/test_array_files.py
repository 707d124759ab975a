"""Inputs in .npy and .npz files."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, refusals

from advcore.jobs import inputs
from advcore.jobs.inputs import InputSpec, Rows
from advcore.jobs.sources import open_source


def open_arrays(path: Any, **more: Any) -> Any:
    return open_source(InputSpec("arrays", str(path), **more), None)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).random((10, 3, 2, 2)).astype(np.float32)


@pytest.fixture
def shards(tmp_path: Path, images: np.ndarray) -> Path:
    """Folder with the shards 2, 3 and 10 of 4, 3 and 3 images, in .npy files with labels beside."""
    for name, start, stop in (("2", 0, 4), ("3", 4, 7), ("10", 7, 10)):
        np.save(tmp_path / f"{name}.npy", images[start:stop])
        np.save(tmp_path / f"{name}_labels.npy", np.arange(start, stop))
    return tmp_path


def check(got: Rows, keys: list[str], images: np.ndarray, labels: Any = None) -> None:
    assert got.keys == keys
    assert got.images.dtype == np.float32
    np.testing.assert_array_equal(got.images, images)
    if labels is None:
        assert got.labels is None
    else:
        assert got.labels is not None
        assert got.labels.dtype == np.int64
        np.testing.assert_array_equal(got.labels, labels)


def test_a_file(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", images)
    source = open_arrays(tmp_path / "a.npy")
    assert (source.count, list(source.borders)) == (10, [0, 10])
    check(source.read(3, 6), ["a.npy:3", "a.npy:4", "a.npy:5"], images[3:6])


@pytest.mark.parametrize("pattern", ["", "[0-9]*.npy"])
def test_shards_in_natural_order(shards: Path, images: np.ndarray, pattern: str) -> None:
    source = open_arrays(shards / pattern, label="{stem}_labels.npy")
    assert (source.count, list(source.borders)) == (10, [0, 4, 7, 10])
    keys = ["2.npy:3", "3.npy:0", "3.npy:1", "3.npy:2", "10.npy:0"]
    check(source.read(3, 8), keys, images[3:8], range(3, 8))
    check(source.read(0, 4), [f"2.npy:{i}" for i in range(4)], images[:4], range(4))


def test_one_file_of_labels_for_all_shards(shards: Path, images: np.ndarray) -> None:
    for path in shards.glob("*_labels.npy"):
        path.unlink()
    np.save(shards / "labels.npy", np.arange(10, 20))
    np.save(shards / "keys.npy", np.array([f"k{i}" for i in range(10)]))
    more = {name: str(shards / f"{name}s.npy") for name in ("label", "key")}
    source = open_arrays(shards, **more)
    check(source.read(3, 8), [f"k{i}" for i in range(3, 8)], images[3:8], range(13, 18))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives(tmp_path: Path, images: np.ndarray, save: Any) -> None:
    for start in (0, 5):
        rows = slice(start, start + 5)
        names = np.array([f"k{i}" for i in range(10)])[rows]
        save(tmp_path / f"{start}.npz", x=images[rows], y=np.arange(10)[rows], key=names)
    source = open_arrays(tmp_path, image="x", label="y", target="y", key="key")
    for start, stop in ((0, 5), (2, 4), (3, 8), (9, 10)):
        got = source.read(start, stop)
        check(got, [f"k{i}" for i in range(start, stop)], images[start:stop], range(start, stop))
        np.testing.assert_array_equal(got.targets, range(start, stop))


def test_bytes_are_scaled_and_other_types_are_not(tmp_path: Path) -> None:
    values = np.arange(0, 256, 5).reshape(-1, 1, 2)
    for dtype, factor in ((np.uint8, np.float32(255)), (np.int32, 1), (np.float64, 1)):
        np.save(tmp_path / "a.npy", values.astype(dtype))
        got = open_arrays(tmp_path / "a.npy").read(0, 26).images
        np.testing.assert_array_equal(got, values.astype(np.float32) / factor)


def test_an_array_in_fortran_order(tmp_path: Path, images: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(images))
    check(open_arrays(tmp_path / "a.npy").read(4, 6), ["a.npy:4", "a.npy:5"], images[4:6])


def test_rows_that_are_no_images_are_unreadable(tmp_path: Path, images: np.ndarray) -> None:
    images[2, 0, 0, 0] = np.nan
    labels = np.array([0, 1, 2, -1, 4, 5, 6, 7, 8, 9])
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    got = open_arrays(tmp_path / "a.npz", label="labels").read(1, 5)
    check(got, ["a.npz:1", "a.npz:4"], images[[1, 4]], [1, 4])
    assert got.unreadable == {
        "a.npz:2": "a value is not finite in float32", "a.npz:3": "label -1 is no class",
    }  # fmt: skip


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_memory_is_that_of_the_rows(tmp_path: Path, ending: str) -> None:
    images = np.zeros((4000, 1000), np.uint8)
    save = np.save if ending == "npy" else np.savez_compressed
    save(tmp_path / f"a.{ending}", images)
    source = open_arrays(tmp_path / f"a.{ending}")
    tracemalloc.start()
    assert source.read(3900, 3910).images.shape == (10, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.nbytes / 8


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"label": "y"}, r"input.label must be a path that ends in .npy .* got 'y'"),
        ({"label": "nowhere.npy"}, r"input.label: nowhere.npy does not exist"),
        ({"label": "{stem}.npy"}, r"holds no images besides labels"),
    ],
)
def test_wrong_columns(tmp_path: Path, images: np.ndarray, more: Any, text: str) -> None:
    np.save(tmp_path / "a.npy", images)
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        open_arrays(tmp_path / "a.npy", **more)


def test_wrong_files(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(FileNotFoundError, match=r"input.path: .*nowhere.npy does not exist"):
        open_arrays(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match=r"input.path: no files in .* \(.npy, .npz\)"):
        open_arrays(tmp_path)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(9))
    with pytest.raises(ValueError, match=r"name the array of the images with image, .* x, y"):
        open_arrays(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"it has no array 'z', but x, y"):
        open_arrays(tmp_path / "a.npz", image="x", label="z")
    with pytest.raises(ValueError, match=r"must have shape \(10,\), one .* got \(9,\)"):
        open_arrays(tmp_path / "a.npz", image="x", label="y")
    with pytest.raises(ValueError, match=r"must hold images \(N, ...\), got shape \(9,\)"):
        open_arrays(tmp_path / "a.npz", image="y")
    np.savez(tmp_path / "b.npz", x=images[:, :2])
    with pytest.raises(ValueError, match=r"b.npz has images of shape \(2, 2, 2\), a.npz of"):
        open_arrays(tmp_path, image="x")
    (tmp_path / "c.txt").write_text("x")
    with pytest.raises(ValueError, match=r"expected files \(.npy, .npz\), got .*c.txt"):
        open_arrays(tmp_path / "c.txt")


def test_keys_must_be_unique(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=images, key=[0, 1, 2, 3, 4, 5, 6, 3, 8, 9])
    with pytest.raises(ValueError, match=r"keys must be unique, .* the images 3 and 7"):
        open_arrays(tmp_path / "a.npz", key="key")


@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_damaged_files(tmp_path: Path, save: Any) -> None:
    images = np.random.default_rng(0).random((10, 100, 20)).astype(np.float32)
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, images)
    unreadable: list[str] = []

    def read(path: Path) -> None:
        source = open_arrays(path)
        rows = min(source.count, 10)
        got = source.read(0, rows)
        assert len(got.keys) + len(got.unreadable) == rows
        unreadable.extend(got.unreadable.values())

    texts = refusals(read, path, damaged(path.read_bytes(), 300))
    assert len(texts) > 50
    assert all(re.search("cannot be read|must hold images", text) for text in texts)
    assert len(unreadable) > (0 if save is np.save else 10)


def test_a_shard_that_is_damaged_later(shards: Path, images: np.ndarray) -> None:
    source = open_arrays(shards / "[0-9]*.npy", label="{stem}_labels.npy")
    (shards / "3.npy").write_bytes((shards / "3.npy").read_bytes()[:-1])
    got = source.read(2, 9)
    assert got.keys == ["2.npy:2", "2.npy:3", "10.npy:0", "10.npy:1"]
    np.testing.assert_array_equal(got.labels, [2, 3, 7, 8])
    assert list(got.unreadable) == ["3.npy:0", "3.npy:1", "3.npy:2"]
    assert "needs 144 bytes, there are 143" in got.unreadable["3.npy:0"]


def test_fingerprints_follow_what_is_read(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x=images, z=images, a=range(10), b=range(10))
    kinds = [{"image": "x"}, {"image": "z"}, {"image": "x", "scale": False}]
    kinds += [{"image": "x", "label": name} for name in "ab"] + [{"image": "x", "target": "a"}]
    prints = [open_arrays(tmp_path / "a.npz", **kind).fingerprint() for kind in kinds]
    assert len({str(each) for each in prints}) == len(kinds)


def test_fingerprints_follow_the_content(
    shards: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prints() -> dict[str, str]:
        fingerprint: dict[str, str] = open_arrays(
            shards / "[0-9]*.npy", label="{stem}_labels.npy"
        ).fingerprint()
        return fingerprint

    before = prints()
    assert list(before) == ["2.npy", "3.npy", "10.npy", "label", "reading"]
    assert prints() == before
    np.save(shards / "3.npy", images[5:8])
    np.save(shards / "10_labels.npy", [1, 2, 3])
    after = prints()
    assert {name for name in before if before[name] != after[name]} == {"3.npy", "label"}
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 10)
    monkeypatch.setattr(inputs, "PIECE_BYTES", 8)
    sampled = prints()
    np.save(shards / "3.npy", images[4:7])
    assert {name for name in sampled if sampled[name] != prints()[name]} == {"3.npy"}


@pytest.mark.parametrize("shape", [(8, 3), (12, 4)])
def test_a_file_that_has_got_another_shape_ends_the_job(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((12, 3), np.float32))
    source = open_source(InputSpec("arrays", str(path)), None)
    assert len(source.read(6, 12).keys) == 6
    np.save(path, np.zeros(shape, np.float32))
    with pytest.raises(OSError, match=r"x\.npy has changed since the job began"):
        source.read(6, 12)
