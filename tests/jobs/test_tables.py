"""Inputs in Parquet files and in data sets of Hugging Face."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, refusals

from advcore.jobs import image_columns, parquet_files
from advcore.jobs.inputs import InputSpec
from advcore.jobs.sources import open_source

pytest.importorskip("pyarrow")
pytest.importorskip("PIL")
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

MODEL = SimpleNamespace(input_shape=(3, 4, 4))
COUNT = 10


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Pixels (10, 3, 4, 4)."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, 3, 4, 4)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def open_parquet(path: Path, model: Any = MODEL, **more: Any) -> Any:
    return open_source(InputSpec("parquet", str(path), **more), model)


def write(path: Path, columns: dict[str, Any], **more: Any) -> Path:
    parquet.write_table(pa.table(columns), path, **more)
    return path


def as_column(pixels: np.ndarray, form: str) -> Any:
    """Return the images as a column of that form."""
    flat = pixels.reshape(len(pixels), -1)
    if form == "bytes":
        return pa.array([png(each) for each in pixels])
    if form == "large_bytes":
        return pa.array([png(each) for each in pixels], pa.large_binary())
    if form == "struct":
        return pa.array([{"bytes": png(each), "path": None} for each in pixels])
    if form == "lists":
        return pa.array(flat.tolist(), pa.list_(pa.uint8()))
    if form == "large_lists":
        return pa.array(flat.tolist(), pa.large_list(pa.uint8()))
    if form == "nested":
        return pa.array(pixels.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    if form == "fixed":
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 48)
    inner = pa.list_(pa.list_(pa.list_(pa.uint8(), 4), 4), 3)
    return pa.array(pixels.tolist(), inner)


FORMS = (
    "bytes", "large_bytes", "struct", "lists", "large_lists", "nested", "fixed", "fixed_nested",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_images_of_every_form(tmp_path: Path, pixels: np.ndarray, form: str) -> None:
    columns = {
        "x": as_column(pixels, form), "y": range(COUNT), "z": range(1, COUNT + 1),
        "id": [f"k{i}" for i in range(COUNT)],
    }  # fmt: skip
    write(tmp_path / "a.parquet", columns, row_group_size=4)
    source = open_parquet(tmp_path / "a.parquet", image="x", label="y", target="z", key="id")
    assert (source.count, source.borders) == (COUNT, [0, COUNT])
    for start, stop in ((0, COUNT), (3, 9), (5, 6)):
        got = source.read(start, stop)
        assert got.keys == [f"k{i}" for i in range(start, stop)]
        expected = pixels[start:stop].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(got.images, expected)
        np.testing.assert_array_equal(got.labels, range(start, stop))
        np.testing.assert_array_equal(got.targets, range(start + 1, stop + 1))
        assert got.labels.dtype == got.targets.dtype == np.int64


@pytest.mark.parametrize("form", ["bytes", "lists"])
def test_bytes_may_stay_as_they_are(tmp_path: Path, pixels: np.ndarray, form: str) -> None:
    write(tmp_path / "a.parquet", {"image": as_column(pixels, form)})
    got = open_parquet(tmp_path / "a.parquet", scale=False).read(0, COUNT)
    np.testing.assert_array_equal(got.images, pixels)


def test_files_of_a_folder_and_keys_by_place(tmp_path: Path, pixels: np.ndarray) -> None:
    for name, start, stop in (("2", 0, 4), ("10", 4, 10)):
        columns = {"image": as_column(pixels[start:stop], "bytes")}
        write(tmp_path / f"{name}.parquet", columns, row_group_size=2)
    source = open_parquet(tmp_path)
    assert (source.count, source.borders) == (10, [0, 4, 10])
    got = source.read(3, 8)
    assert got.keys == ["2.parquet:3", *[f"10.parquet:{row}" for row in range(4)]]
    np.testing.assert_array_equal(got.images, pixels[3:8].astype(np.float32) / np.float32(255))
    assert (got.labels, got.targets) == (None, None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_taken_as_they_are(tmp_path: Path, dtype: Any) -> None:
    values = np.random.default_rng(0).random((5, 6)).astype(dtype)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 6)
    write(tmp_path / "a.parquet", {"image": column})
    got = open_parquet(tmp_path / "a.parquet", None, shape=(2, 3)).read(0, 5)
    np.testing.assert_array_equal(got.images, values.astype(np.float32).reshape(5, 2, 3))


def test_pictures_beside_the_file(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "one.png").write_bytes(png(pixels[0]))
    rows = [{"bytes": None, "path": "one.png"}, {"bytes": None, "path": "nowhere.png"}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    write(tmp_path / "a.parquet", {"image": pa.array(rows, kind)})
    got = open_parquet(tmp_path / "a.parquet").read(0, 2)
    np.testing.assert_array_equal(got.images, pixels[:1].astype(np.float32) / np.float32(255))
    assert got.unreadable == {"a.parquet:1": "No such file or directory"}


def test_rows_that_cannot_be_read_are_told(tmp_path: Path, pixels: np.ndarray) -> None:
    contents = [png(each) for each in pixels[:6]]
    contents[1], contents[3] = b"no picture", None
    write(tmp_path / "a.parquet", {"image": contents, "y": [0, 1, None, 3, -1, 5]})
    got = open_parquet(tmp_path / "a.parquet", label="y").read(0, 6)
    assert got.keys == ["a.parquet:0", "a.parquet:5"]
    np.testing.assert_array_equal(got.labels, [0, 5])
    np.testing.assert_array_equal(got.images * 255, pixels[[0, 5]])
    assert got.unreadable == {
        "a.parquet:1": "cannot identify image file", "a.parquet:2": "label is missing",
        "a.parquet:3": "cannot identify image file", "a.parquet:4": "label -1 is no class",
    }  # fmt: skip


@pytest.mark.parametrize("size", [None, 4])
def test_lists_that_cannot_be_read_are_told(tmp_path: Path, size: int | None) -> None:
    kind = pa.list_(pa.float32()) if size is None else pa.list_(pa.float32(), size)
    lists = [[0, 1, 2, 3], None, [0, 1, None, 3], [0, float("nan"), 2, 3], [4, 5, 6, 7]]
    lists.append([1, 2, 3] if size is None else None)
    write(tmp_path / "a.parquet", {"image": pa.array(lists, kind)})
    got = open_parquet(tmp_path / "a.parquet", shape=(2, 2)).read(0, 6)
    assert got.keys == ["a.parquet:0", "a.parquet:4"]
    np.testing.assert_array_equal(got.images, [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    reasons = [got.unreadable[f"a.parquet:{row}"] for row in (1, 2, 3, 5)]
    assert reasons[:3] == ["a value is missing"] * 2 + ["a value is not finite in float32"]
    is_short = "it has 3 values, shape (2, 2) needs 4"
    assert reasons[3] == (is_short if size is None else "a value is missing")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"image": "w"}, r"input.image must be one of the columns x, y, s, k, got 'w' \(a.parq"),
        ({"image": "s"}, r"input.image: column 's' must hold bytes of pictures, .* got string"),
        ({"image": "x", "label": "s"}, r"input.label: column 's' must hold integers, got string"),
        ({"image": "x", "key": "x"}, r"input.key: column 'x' must hold texts or integers, got li"),
        ({"image": "x", "key": "k"}, r"input.key: keys must be unique, .* images 0 and 2"),
        ({"image": "x", "key": "m"}, r"input.key: a key is missing"),
        ({"image": "x", "shape": None}, r"input.shape is missing: neither the type"),
        ({"image": "f", "shape": (3,)}, r"input.shape: \(3,\) has 3 values, the lists of 'f' ha"),
    ],
)
def test_wrong_columns(tmp_path: Path, more: Any, text: str) -> None:
    pairs = [[0.0, 1.0]] * 3
    columns = {"x": pairs, "y": [0, 1, 2], "s": ["a", "b", "c"], "k": [1, 2, 1]}
    if "m" in more.values():
        columns["m"] = [None, 1, 2]
    if "f" in more.values():
        columns["f"] = pa.array(pairs, pa.list_(pa.float32(), 2))
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=text):
        open_parquet(tmp_path / "a.parquet", None, **({"shape": (2,)} | more))


def test_a_row_group_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((1000, 20_000), np.float32)
    values[:] = np.random.default_rng(0).random(20_000)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 20_000)
    write(tmp_path / "a.parquet", {"image": column}, row_group_size=1000, compression="none",
          use_dictionary=False)  # fmt: skip
    del column
    source = open_parquet(tmp_path / "a.parquet", shape=(20_000,))
    sizes = []
    decode = source.columns.__class__.decode

    def watched(columns: Any, table: Any, keys: Any) -> Any:
        sizes.append((table.num_rows, pa.total_allocated_bytes()))
        return decode(columns, table, keys)

    monkeypatch.setattr(source.columns.__class__, "decode", watched)
    before = pa.total_allocated_bytes()
    got = source.read(900, 970)
    np.testing.assert_array_equal(got.images, values[900:970])
    assert [rows for rows, _ in sizes] == [36, 34]  # They end at 936 = 9 * 104.
    assert max(size for _, size in sizes) - before < values.nbytes / 4


def test_ranges_one_after_another_decode_each_row_once(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"image": as_column(pixels, "bytes"), "y": range(COUNT)}
    source = open_parquet(write(tmp_path / "a.parquet", columns, row_group_size=7), label="y")
    monkeypatch.setattr(image_columns, "PICTURE_ROWS", 3)
    opened: list[int] = []
    open_group = parquet_files.GroupReader

    def count(path: Path, group: Any, *more: Any) -> Any:
        opened.append(group.number)
        return open_group(path, group, *more)

    monkeypatch.setattr(parquet_files, "GroupReader", count)
    ranges = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    for start, stop in ranges:
        got = source.read(start, stop)
        np.testing.assert_array_equal(got.labels, range(start, stop))
        np.testing.assert_array_equal(got.images * 255, pixels[start:stop])
    assert opened == [0, 1]
    for start, stop in reversed(ranges):
        np.testing.assert_array_equal(source.read(start, stop).labels, range(start, stop))


@pytest.mark.parametrize("form", ["bytes", "lists", "fixed"])
def test_damaged_files(tmp_path: Path, pixels: np.ndarray, form: str) -> None:
    columns = {"image": as_column(pixels, form), "y": range(COUNT)}
    path = write(tmp_path / "a.parquet", columns, row_group_size=5)
    unreadable: list[str] = []

    def read(path: Path) -> None:
        source = open_parquet(path, label="y")
        count = min(source.count, COUNT)
        got = source.read(0, count)
        assert len(got.keys) + len(got.unreadable) == count
        unreadable.extend(got.unreadable.values())

    texts = refusals(read, path, damaged(path.read_bytes(), 300))
    assert len(texts) > 50
    assert len(unreadable) > 5


def test_a_row_group_that_is_damaged(tmp_path: Path, pixels: np.ndarray) -> None:
    columns = {"image": as_column(pixels, "bytes"), "id": [f"k{i}" for i in range(COUNT)]}
    path = write(tmp_path / "a.parquet", columns, row_group_size=5, compression="none")
    source = open_parquet(path, key="id")
    content = path.read_bytes()
    place = content.index(png(pixels[7]))
    path.write_bytes(content[: place - 4] + b"\xff" * 4 + content[place:])  # its length
    got = source.read(2, 10)
    assert got.keys == ["k2", "k3", "k4"]
    assert got.images.shape == (3, 3, 4, 4)
    assert list(got.unreadable) == [f"a.parquet:{row}" for row in range(5, 10)]
    assert len(set(got.unreadable.values())) == 1


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError("no memory")])
def test_what_is_no_damage_is_an_error(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    source = open_parquet(write(tmp_path / "a.parquet", {"image": as_column(pixels, "bytes")}))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(parquet_files, "GroupReader", fail)
    with pytest.raises(type(error), match=str(error.args[-1])):
        source.read(0, 3)


def test_damaged_footers_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match=r"input.path: a.parquet is no Parquet file \("):
        open_parquet(tmp_path / "a.parquet")


def test_a_file_out_of_reach_is_an_error(tmp_path: Path, pixels: np.ndarray) -> None:
    path = write(tmp_path / "a.parquet", {"image": as_column(pixels, "bytes")})
    source = open_parquet(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0, 3)


def test_fingerprints_follow_the_content(tmp_path: Path, pixels: np.ndarray) -> None:
    for name, rows in (("a", slice(0, 5)), ("b", slice(5, 10))):
        write(tmp_path / f"{name}.parquet", {"image": as_column(pixels[rows], "bytes")})
    before = open_parquet(tmp_path).fingerprint()
    write(tmp_path / "b.parquet", {"image": as_column(pixels[4:9], "bytes")})
    after = open_parquet(tmp_path).fingerprint()
    assert list(before) == ["a.parquet", "b.parquet", "columns", "reading"]
    assert before["a.parquet"] == after["a.parquet"]
    assert before["b.parquet"] != after["b.parquet"]


def test_fingerprints_follow_what_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    columns = {name: as_column(pixels, "lists") for name in "xz"}
    write(tmp_path / "a.parquet", columns | {"a": range(COUNT), "b": range(COUNT)})
    kinds = [{"image": "x"}, {"image": "z"}, {"image": "x", "scale": False}]
    kinds += [{"image": "x", "shape": (48,)}, {"image": "x", "key": "a"}]
    kinds += [{"image": "x", "label": name} for name in "ab"] + [{"image": "x", "target": "a"}]
    prints = [open_parquet(tmp_path / "a.parquet", **kind).fingerprint() for kind in kinds]
    assert len({str(each) for each in prints}) == len(kinds)


# --- data sets


def test_without_the_package_a_data_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"kind = 'dataset' needs datasets: pip install datas"):
        open_source(InputSpec("dataset", "mnist", split="test"), MODEL)


@pytest.fixture
def stored(tmp_path: Path, pixels: np.ndarray) -> Path:
    """Folder of a stored data set of two splits."""
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(each.transpose(1, 2, 0)) for each in pixels]
    columns = {"image": pictures, "label": list(range(COUNT)), "id": [f"k{i}" for i in range(10)]}
    types = {
        "image": datasets.Image(), "label": datasets.ClassLabel(COUNT),
        "id": datasets.Value("string"),
    }  # fmt: skip
    whole = datasets.Dataset.from_dict(columns, datasets.Features(types))
    splits = {"train": whole.select(range(7)), "test": whole.select([9, 8, 7])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def open_dataset(path: Path, **more: Any) -> Any:
    return open_source(InputSpec("dataset", str(path), **more), MODEL)


def test_a_split_of_a_stored_data_set(stored: Path, pixels: np.ndarray) -> None:
    source = open_dataset(stored, split="test", label="label", key="id")
    assert (source.count, source.borders) == (3, None)
    got = source.read(1, 3)
    assert got.keys == ["k8", "k7"]
    np.testing.assert_array_equal(got.labels, [8, 7])
    np.testing.assert_array_equal(got.images, pixels[[8, 7]].astype(np.float32) / np.float32(255))
    assert open_dataset(stored, split="train").read(5, 7).keys == ["5", "6"]


def test_a_data_set_of_arrays(tmp_path: Path, pixels: np.ndarray) -> None:
    datasets = pytest.importorskip("datasets")
    types = datasets.Features({"image": datasets.Array3D((3, 4, 4), "uint8")})
    datasets.Dataset.from_dict({"image": list(pixels)}, types).save_to_disk(tmp_path / "set")
    got = open_dataset(tmp_path / "set").read(2, 5)
    np.testing.assert_array_equal(got.images, pixels[2:5].astype(np.float32) / np.float32(255))


def test_a_data_set_is_read_in_batches(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(image_columns, "PICTURE_ROWS", 2)
    contents = [{"bytes": png(each), "path": None} for each in pixels]
    datasets.Dataset.from_dict({"image": contents}).save_to_disk(tmp_path / "set")
    got = open_dataset(tmp_path / "set").read(1, 8)
    assert got.keys == [str(row) for row in range(1, 8)]
    np.testing.assert_array_equal(got.images * 255, pixels[1:8])


def test_wrong_data_sets(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input.split must be one of train, test, got None"):
        open_dataset(stored)
    with pytest.raises(ValueError, match=r"has no splits, got 'test'"):
        open_dataset(stored / "train", split="test")
    with pytest.raises(ValueError, match=r"input.path: .*nowhere cannot be loaded \("):
        open_dataset(tmp_path / "nowhere")
    for file in (stored / "train").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"input.path: .*train cannot be loaded \("):
        open_dataset(stored / "train")


def test_fingerprints_of_data_sets_follow_the_content(stored: Path) -> None:
    before = open_dataset(stored, split="train").fingerprint()
    assert before == open_dataset(stored, split="train").fingerprint()
    assert before != open_dataset(stored, split="test").fingerprint()
    stored.rename(stored.with_name("moved"))
    assert before == open_dataset(stored.with_name("moved"), split="train").fingerprint()
