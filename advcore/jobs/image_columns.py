"""Images, classes and keys in the columns of an Arrow table."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._pictures import ImageFormat, find_format
from .inputs import InputSpec, Rows, rows
from .picture_folder import is_of_one_file, read_pictures

IMAGE = "image"
"""Column of the images where the input names none."""
PICTURE_ROWS = 64
"""Rows with bytes of pictures that are decoded at once; 64 pictures of 100 kB are 6 MB."""
BATCH_BYTES = 8 << 20
"""Bytes in float32 of the lists of numbers that are decoded at once."""
MOST_ROWS = 1024
"""Largest number of rows that are decoded at once."""
PURPOSE = "reading Parquet files and data sets"


@dataclass(frozen=True)
class Columns:
    """Columns of a table that a job reads.

    Attributes
    ----------
    image, label, target, key : str or None
        Their names.
    image_format : ImageFormat or None
        Format of images that are bytes of pictures.
    shape : tuple of int
        Shape of an image.
    folder : Path
        Folder from which the paths of pictures without bytes start.
    scale : bool
        Divide uint8 by 255.
    """

    image: str
    label: str | None
    target: str | None
    key: str | None
    image_format: ImageFormat | None
    shape: tuple[int, ...]
    folder: Path
    scale: bool

    def names(self) -> list[str]:
        """Return the columns to read."""
        return [
            name for name in (self.image, self.label, self.target, self.key) if name is not None
        ]

    def fingerprint(self) -> dict[str, str]:
        """Return how the columns are read."""
        names = f"image {self.image}, label {self.label}, target {self.target}, key {self.key}"
        return {"columns": names, "reading": f"shape {self.shape}, scale {self.scale}"}

    @property
    def batch_rows(self) -> int:
        """Number of rows that are decoded at once."""
        if self.image_format is not None:
            return PICTURE_ROWS
        return int(np.clip(BATCH_BYTES // (4 * math.prod(self.shape)), 1, MOST_ROWS))

    def damaged(self, keys: Sequence[str], error: Exception) -> Rows:
        """Return rows that cannot be read. Raise the error again if it is not about damage."""
        if isinstance(error, FileNotFoundError) or not is_of_one_file(error):
            raise error
        label, target = (
            None if name is None else np.empty(0, np.int64) for name in (self.label, self.target)
        )
        reason = " ".join(str(error).split()) or type(error).__name__
        none = np.empty((0, *self.shape), np.float32)
        return Rows([], none, label, target, dict.fromkeys(keys, reason))

    def decode(self, table: Any, keys: Sequence[str]) -> Rows:
        """Return the rows of a table; ``keys`` are used where it has no column of keys."""
        unreadable: dict[str, str] = {}
        if self.key is not None:
            keys = as_texts(table[self.key])
        image = _combined(table[self.image])
        if self.image_format is not None:
            places, images, reasons = read_pictures(
                keys, _pictures(image, self.folder), self.image_format
            )
        else:
            places, images, reasons = _arrays(image, keys, self.shape)
        kept = np.zeros(len(keys), np.bool_)
        kept[places] = True
        classes: list[NDArray[Any] | None] = []
        for kind, name in (("label", self.label), ("target", self.target)):
            if name is None:
                classes.append(None)
                continue
            column = _combined(table[name])
            for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                unreadable[keys[row]] = f"{kind} is missing"
                kept[row] = False
            classes.append(column.fill_null(0).to_numpy(zero_copy_only=False))
        readable = kept[places]
        places = [place for place in places if kept[place]]
        labels, targets = (None if values is None else values[places] for values in classes)
        return rows(
            [keys[place] for place in places],
            images[readable],
            labels,
            targets,
            unreadable | reasons,
            scale=self.scale,
        )


def find_columns(spec: InputSpec, model: Any, schema: Any, folder: Path) -> Columns:
    """Return the columns of an input, after a check of their types.

    Raises ValueError, with the columns that the table has.
    """
    types = require("pyarrow.types", "jobs", PURPOSE)
    image = IMAGE if spec.image is None else spec.image
    _check_columns(spec, image, schema, types)
    kind = schema.field(image).type
    if _is_bytes(kind, types) or (
        types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_bytes(kind.field("bytes").type, types)
    ):
        require("PIL", "pictures", "reading pictures")
        image_format = find_format(model, spec.size, option="input.size")
        shape = image_format.shape
    else:
        image_format, shape = None, _list_shape(spec, image, kind, model, types)
    names = (image, spec.label, spec.target, spec.key)
    return Columns(*names, image_format, shape, folder, spec.scale)


def _check_columns(spec: InputSpec, image: str, schema: Any, types: Any) -> None:
    """Raise unless the columns exist, once each, and have integers, or of keys texts."""
    for field, name in (
        ("image", image), ("label", spec.label), ("target", spec.target), ("key", spec.key)
    ):  # fmt: skip
        if name is None:
            continue
        if schema.names.count(name) != 1:
            raise ValueError(
                f"input.{field} must be one of the columns {', '.join(schema.names)}, got {name!r}"
            )
        kind = schema.field(name).type
        is_integer = types.is_integer(kind)
        is_text = types.is_string(kind) or types.is_large_string(kind)
        if field in ("label", "target") and not is_integer:
            raise ValueError(f"input.{field}: column {name!r} must hold integers, got {kind}")
        if field == "key" and not (is_integer or is_text):
            raise ValueError(f"input.key: column {name!r} must hold texts or integers, got {kind}")


def as_texts(column: Any) -> list[str]:
    """Return the values of a column of keys as texts. Raise a ValueError where one is missing."""
    if column.null_count:
        raise ValueError("input.key: a key is missing")
    return [str(value) for value in column.to_pylist()]


def _is_bytes(kind: Any, types: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _list_shape(spec: InputSpec, image: str, kind: Any, model: Any, types: Any) -> tuple[int, ...]:
    """Return the shape of images that are lists: that of the input, of the type or of the model."""
    sizes: list[int] = []
    inner, is_fixed = getattr(kind, "storage_type", kind), True
    while types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        if types.is_fixed_size_list(inner):
            sizes.append(inner.list_size)
        else:
            is_fixed = False
        inner = inner.value_type
    if inner is kind or not (types.is_integer(inner) or types.is_floating(inner)):
        raise ValueError(
            f"input.image: column {image!r} must hold bytes of pictures, structs with bytes and "
            f"path, or lists of numbers, got {kind}"
        )
    shape: Any = spec.shape
    if shape is None and is_fixed and len(sizes) > 1:
        shape = sizes
    if shape is None:
        shape = getattr(model, "input_shape", None)
    if shape is None and isinstance(getattr(model, "inputs", None), int):
        shape = (model.inputs,)
    if shape is None:
        raise ValueError(
            "input.shape is missing: neither the type of the column nor the model says which shape "
            f"the lists of {image!r} have"
        )
    if is_fixed and math.prod(sizes) != math.prod(shape):
        raise ValueError(
            f"input.shape: {tuple(shape)} has {math.prod(shape)} values, the lists of {image!r} "
            f"have {math.prod(sizes)}"
        )
    return tuple(int(extent) for extent in shape)


def _combined(column: Any) -> Any:
    """Return a column as one array, without an extension type."""
    array = column.combine_chunks()
    return getattr(array, "storage", array)


def _pictures(image: Any, folder: Path) -> Iterator[Path | BinaryIO]:
    """Yield the bytes of pictures, or the path where a struct has a path alone."""
    for value in image:
        content, path = value.as_py(), None
        if isinstance(content, dict):
            content, path = content["bytes"], content.get("path")
        yield folder / path if path and content is None else io.BytesIO(content or b"")


def _arrays(
    image: Any, keys: Sequence[str], shape: tuple[int, ...]
) -> tuple[list[int], NDArray[Any], dict[str, str]]:
    """Return the places of the lists with the right number of values, their values and reasons."""
    values, missing, offsets = _flat(image)
    needed = math.prod(shape)
    lengths = np.diff(offsets)
    is_missing = image.is_null().to_numpy(zero_copy_only=False)
    if missing is not None:
        missing_before = np.concatenate([[0], np.cumsum(missing)])
        is_missing |= missing_before[offsets[1:]] > missing_before[offsets[:-1]]
    good = ~is_missing & (lengths == needed)
    if good.all():
        return list(range(len(good))), values.reshape(len(good), *shape), {}
    unreadable = {}
    for row in np.flatnonzero(~good).tolist():
        reason = f"it has {lengths[row]} values, shape {shape} needs {needed}"
        unreadable[keys[row]] = "a value is missing" if is_missing[row] else reason
    places = np.flatnonzero(good).tolist()
    chosen = np.empty((len(places), needed), values.dtype)
    for place, row in enumerate(places):
        chosen[place] = values[offsets[row] : offsets[row + 1]]
    return places, chosen.reshape(len(places), *shape), unreadable


def _flat(array: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64]]:
    """Return all numbers of nested lists, which of them are missing, and the offsets of the rows.

    Row ``i`` has the numbers ``offsets[i]`` to ``offsets[i + 1]``. A list that is missing is empty,
    or has the length of its type. Where no number is missing there is None in their place.
    """
    rows_of_level = np.arange(len(array) + 1, dtype=np.int64)
    while hasattr(array.type, "value_type"):
        if hasattr(array.type, "list_size"):
            size = array.type.list_size
            offsets = np.arange(len(array) + 1, dtype=np.int64) * size
            array = array.values.slice(array.offset * size, len(array) * size)
        else:
            offsets = array.offsets.to_numpy().astype(np.int64)
            array = array.values.slice(offsets[0], offsets[-1] - offsets[0])
            offsets = offsets - offsets[0]
        rows_of_level = offsets[rows_of_level]
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    values = array.fill_null(0) if array.null_count else array
    return values.to_numpy(zero_copy_only=False), missing, rows_of_level
