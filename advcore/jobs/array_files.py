"""Images in .npy and .npz files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import array_header, member_names, read_rows
from .files import as_key, input_files
from .inputs import InputSpec, Rows, check_unique, file_hash, joined, rows

ENDINGS = (".npy", ".npz")
NUMBERS = "biuf"
INTEGERS = "iu"
KEYS = "Uiu"
"""Kinds of dtypes of images, of classes and of keys, as letters of ``dtype.kind``."""
STEM = "{stem}"
"""Stands for the name of a shard without its ending, in the path of a file beside it."""
CHECKED_KEYS = 1 << 16
"""Number of keys that are read at once when they are checked; 1 MiB of hashes."""


@dataclass(frozen=True)
class ArrayFile:
    """An array of a file.

    Attributes
    ----------
    path : Path
    member : str or None
        Its name in an .npz file; None for a .npy file.
    shape : tuple of int
    kinds : str
        Kinds of dtypes that it may have.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    kinds: str

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Read rows. Raises OSError where the file is not the one that was opened any more."""
        values = read_rows(self.path, start, stop, self.kinds, self.member)
        if values.shape != (stop - start, *self.shape[1:]):
            raise OSError(f"{self.path} has changed since the job began")
        return values


@dataclass(frozen=True)
class Stack:
    """Arrays one after another, as one."""

    files: Sequence[ArrayFile]
    borders: Sequence[int]  # 0 and the number of rows up to the end of each file

    def parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return file, start and stop in it for each file of which rows are in the range."""
        first = int(np.searchsorted(self.borders, start, side="right")) - 1
        found = []
        for number in range(max(first, 0), len(self.files)):
            begin, end = self.borders[number], self.borders[number + 1]
            if begin >= stop:
                break
            if end > start:
                found.append((number, max(start, begin) - begin, min(stop, end) - begin))
        return found

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return np.concatenate(
            [self.files[number].read(low, high) for number, low, high in self.parts(start, stop)]
        )


def open_arrays(spec: InputSpec) -> ArraySource:
    """Open .npy and .npz files. Of them headers alone are read, and keys, which must be unique.

    Raises ValueError and OSError as `open_source` does.
    """
    folder, names = input_files(spec.path, ENDINGS)
    names = _without_siblings(folder, names, spec)
    images = [_open(folder / name, spec.image, "image", NUMBERS) for name in names]
    for name, file in zip(names, images, strict=True):
        if len(file.shape) < 2 or 0 in file.shape[1:]:
            raise ValueError(f"input: {name} must hold images (N, ...), got shape {file.shape}")
        if file.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"input: {name} has images of shape {file.shape[1:]}, {names[0]} of shape "
                f"{images[0].shape[1:]}"
            )
    stack = _stack(images)
    label = _side(spec.label, "label", INTEGERS, stack)
    target = _side(spec.target, "target", INTEGERS, stack)
    key = _side(spec.key, "key", KEYS, stack)
    source = ArraySource(names, stack, label, target, key, spec.scale)
    if key is not None:
        check_unique(
            key.read(start, min(start + CHECKED_KEYS, source.count)).astype(str).tolist()
            for start in range(0, source.count, CHECKED_KEYS)
        )
    return source


def _without_siblings(folder: Path, names: list[str], spec: InputSpec) -> list[str]:
    """Return the names without the files that hold the labels, targets or keys of others."""
    siblings: set[Path] = set()
    for place in (spec.label, spec.target, spec.key):
        if place is not None and place.endswith(".npy"):
            siblings |= {_sibling(folder / name, place).resolve() for name in names}
    kept = [name for name in names if (folder / name).resolve() not in siblings]
    if not kept:
        raise ValueError(f"input.path: {spec.path} holds no images besides labels, targets or keys")
    return kept


def _sibling(shard: Path, place: str) -> Path:
    return shard.parent / place.replace(STEM, shard.stem) if STEM in place else Path(place)


def _stack(files: Sequence[ArrayFile]) -> Stack:
    return Stack(files, [0, *np.cumsum([file.shape[0] for file in files]).tolist()])


def _open(path: Path, member: str | None, name: str, kinds: str) -> ArrayFile:
    """Read the header of a file. ``member`` counts for .npz files alone."""
    try:
        if path.suffix.lower() == ".npz":
            member = _only_member(path) if member is None else member
        else:
            member = None
        shape, _ = array_header(path, kinds, member)
    except FileNotFoundError:
        raise FileNotFoundError(f"input.{name}: {path} does not exist") from None
    except ValueError as error:
        raise ValueError(f"input.{name}: {path} cannot be read ({error})") from None
    return ArrayFile(path, member, shape, kinds)


def _only_member(path: Path) -> str:
    """Return the name of the images of an .npz file: ``images``, or that of its only array."""
    names = member_names(path)
    if "images" not in names and len(names) != 1:
        raise ValueError(f"name the array of the images with image, one of {', '.join(names)}")
    return names[0] if len(names) == 1 else "images"


def _side(place: str | None, name: str, kinds: str, images: Stack) -> Stack | None:
    """Open the labels, targets or keys of the images."""
    if place is None:
        return None
    if not place.endswith(".npy"):
        if not all(file.path.suffix.lower() == ".npz" for file in images.files):
            raise ValueError(
                f"input.{name} must be a path that ends in .npy where images are in .npy files, "
                f"got {place!r}"
            )
        stack = _stack([_open(file.path, place, name, kinds) for file in images.files])
    elif STEM in place:
        paths = [_sibling(file.path, place) for file in images.files]
        stack = _stack([_open(path, None, name, kinds) for path in paths])
    else:
        stack = _stack([_open(Path(place), None, name, kinds)])
    whole = images.borders if len(stack.files) > 1 else [0, images.borders[-1]]
    for number, file in enumerate(stack.files):
        expected = whole[number + 1] - whole[number]
        if file.shape != (expected,):
            raise ValueError(
                f"input.{name}: {file.path} must have shape ({expected},), one for each image, "
                f"got {file.shape}"
            )
    return stack


@dataclass
class ArraySource:
    """Images of .npy and .npz files, of which one range is in memory at a time.

    Without keys of its own an image is called by its file and its place there, ``a.npy:17``. A
    range of a file that is damaged is unreadable as a whole.
    """

    names: list[str]  # of the files, in their folder
    images: Stack
    label: Stack | None
    target: Stack | None
    key: Stack | None
    scale: bool

    def __post_init__(self) -> None:
        self.borders: Sequence[int] | None = self.images.borders
        self.count = self.images.borders[-1]

    def read(self, start: int, stop: int) -> Rows:
        return joined([self._read(*part) for part in self.images.parts(start, stop)])

    def _read(self, number: int, low: int, high: int) -> Rows:
        """Read rows of one file."""
        file, begin = self.images.files[number], self.images.borders[number]
        name = as_key(self.names[number])
        keys = [f"{name}:{row}" for row in range(low, high)]
        try:
            if self.key is not None:
                keys = self.key.read(begin + low, begin + high).astype(str).tolist()
            images = file.read(low, high)
            label, target = (
                None if side is None else side.read(begin + low, begin + high)
                for side in (self.label, self.target)
            )
        except ValueError as error:
            none = np.empty((0, *file.shape[1:]), np.float32)
            classes = np.empty(0, np.int64)
            label, target = (None if x is None else classes for x in (self.label, self.target))
            return Rows([], none, label, target, dict.fromkeys(keys, str(error)))
        return rows(keys, images, label, target, scale=self.scale)

    def fingerprint(self) -> dict[str, str]:
        hashes = {
            as_key(name): file_hash(file.path)
            for name, file in zip(self.names, self.images.files, strict=True)
        }
        for name, side in (("label", self.label), ("target", self.target), ("key", self.key)):
            if side is not None:
                # An array of an .npz file is hashed with the file; its name counts here.
                texts = [f"{file.member} {file_hash(file.path)}" for file in side.files]
                hashes[name] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        members = sorted({file.member or "" for file in self.images.files} - {""})
        return hashes | {"reading": f"image {', '.join(members) or None}, scale {self.scale}"}
