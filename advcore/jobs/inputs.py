"""What every input of a job is: rows with keys, read from a place in their order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

KINDS = {
    "pictures": ("label", "size"),
    "arrays": ("image", "label", "target", "key"),
    "parquet": ("image", "label", "target", "key", "shape", "size"),
    "dataset": ("image", "label", "target", "key", "shape", "size", "split", "config"),
}
"""Fields that an `InputSpec` of a kind may have besides ``kind`` and ``path``."""
WHOLE_BYTES = 1 << 20
"""Size up to which all bytes of a file are hashed."""
PIECE_BYTES = 1 << 16
"""Size of a piece of a larger file that is hashed."""
PIECES = 16
"""Number of pieces of a larger file that are hashed, evenly spaced with the first and last bytes.
With `PIECE_BYTES` a file costs 1 MiB of reading, a job over 1,000 shards 1 GiB."""


@dataclass(frozen=True)
class InputSpec:
    """Description of a job's images.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    path : str
        A file, a folder or a pattern such as ``shards/*.npy``; of a data set also its name.
    image, label, target, key : str or None
        Where the values are. Columns of Parquet files and data sets; arrays of .npz files; of .npy
        files the path of a .npy file for all images, or a pattern with ``{stem}`` for one beside
        each shard. For pictures ``label`` is None or ``"folders"``.
    shape : tuple of int or None
        Shape of an image that is stored as a flat list of numbers. None: the model's.
    size : int or None
        Side of the pictures. None: the model's.
    split, config : str or None
        Split and configuration of a data set.
    scale : bool
        uint8 values, also those of pictures, are divided by 255. False: they stay as they are, for
        a model that takes values from 0 to 255.
    leave_out : Path or None
        Folder below a folder of pictures that is no input, such as the job's output.
    """

    kind: str
    path: str
    image: str | None = None
    label: str | None = None
    target: str | None = None
    key: str | None = None
    shape: tuple[int, ...] | None = None
    size: int | None = None
    split: str | None = None
    config: str | None = None
    scale: bool = True
    leave_out: Path | None = None


@dataclass(frozen=True)
class Rows:
    """A range of a source.

    Attributes
    ----------
    keys : list of str
        Names of the readable images, unique in the source.
    images : ndarray
        Readable images (B, ...) in their order, float32.
    labels, targets : int64 ndarray or None
        Classes (B,) of the readable images.
    unreadable : dict of str to str
        Reason for the key of each image that cannot be read. These are in no array.
    """

    keys: list[str]
    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    targets: NDArray[np.int64] | None
    unreadable: dict[str, str]


class Source(Protocol):
    """The images of a job, which are read in ranges.

    Attributes
    ----------
    count : int
        Number of images, those that cannot be read included.
    borders : sequence of int or None
        0, the place behind each file, and so at last ``count``. A block crosses none of them.
        None: blocks may be cut anywhere.
    """

    count: int
    borders: Sequence[int] | None

    def read(self, start: int, stop: int) -> Rows:
        """Read the images ``start`` to ``stop``; memory is that of these images.

        Raises OSError where a file cannot be reached. An image that is damaged raises nothing.
        """
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return a hash for each file, or for all pictures, and how they are read.

        It does not depend on the place of the files.
        """
        ...


def rows(
    keys: Sequence[str],
    images: NDArray[Any],
    labels: NDArray[Any] | None,
    targets: NDArray[Any] | None,
    unreadable: dict[str, str] | None = None,
    *,
    scale: bool = True,
) -> Rows:
    """Return rows, without images that have values that are not finite or classes below 0.

    images : (B, ...), uint8 or another type of numbers.
    unreadable : reasons for images that are in no array already. The order of the keys is free.
    scale : divide uint8 by 255.
    """
    reasons = dict(unreadable or {})
    with np.errstate(over="ignore"):
        values = np.asarray(images, np.float32)
    if scale and images.dtype == np.uint8:
        values = values / np.float32(255)
    good: Any = np.isfinite(values.reshape(len(values), math.prod(values.shape[1:]))).all(axis=1)
    for row in np.flatnonzero(~good).tolist():
        reasons[keys[row]] = "a value is not finite in float32"
    for name, classes in (("label", labels), ("target", targets)):
        if classes is not None:
            for row in np.flatnonzero(good & (classes < 0)).tolist():
                reasons[keys[row]] = f"{name} {int(classes[row])} is no class"
                good[row] = False
    if not good.all():
        keys = [key for key, is_good in zip(keys, good, strict=True) if is_good]
        values = values[good]
        labels, targets = (None if x is None else x[good] for x in (labels, targets))
    labels, targets = (None if x is None else x.astype(np.int64) for x in (labels, targets))
    return Rows(list(keys), values, labels, targets, reasons)


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several ranges as one. There is at least one."""
    if len(parts) == 1:
        return parts[0]
    filled = [part for part in parts if len(part.keys)] or parts[:1]

    def concatenate(name: str) -> Any:
        values = [getattr(part, name) for part in filled]
        return None if values[0] is None else np.concatenate(values)

    return Rows(
        [key for part in parts for key in part.keys],
        concatenate("images"),
        concatenate("labels"),
        concatenate("targets"),
        {key: reason for part in parts for key, reason in part.unreadable.items()},
    )


def check_unique(parts: Iterable[Sequence[str]]) -> None:
    """Raise a ValueError where a key comes twice. Of each, a hash of 8 bytes is kept, no text."""
    arrays = [np.fromiter(map(hash, part), np.int64, len(part)) for part in parts]
    hashes = np.concatenate([np.empty(0, np.int64), *arrays])
    order = np.argsort(hashes, kind="stable")
    repeats = np.flatnonzero(np.diff(hashes[order]) == 0)
    if repeats.size:
        first, second = order[repeats[0]], order[repeats[0] + 1]
        raise ValueError(
            f"input.key: keys must be unique, got the same one for the images {first} and {second}"
        )


def file_hash(path: Path) -> str:
    """Return a hash of a file's size and content: all of it, or `PIECES` pieces of a large file."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(f"{size} bytes\n".encode())
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for piece in range(PIECES):
                file.seek((size - PIECE_BYTES) * piece // (PIECES - 1))
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()
