"""Arguments of `advcore attack`: arrays from files, checks of files to write."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import ZIP_MAGIC, map_array, member_names, read_archive, read_array
from .._pictures import SUFFIXES

TEXT_SUFFIXES = (".csv", ".txt", ".tsv")
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class AttackInputs:
    """Model and arrays of one call of `minimize_distortion`."""

    model: Any
    images: NDArray[Any]  # (N, ...)
    labels: NDArray[Any] | None  # (N,)
    targets: NDArray[Any] | None  # (N,)
    starts: NDArray[Any] | None  # (N, ...)

    def part(self, rows: slice) -> AttackInputs:
        """Return the inputs of these images."""

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[rows]

        return AttackInputs(
            self.model,
            self.images[rows],
            cut(self.labels),
            cut(self.targets),
            cut(self.starts),
        )


def array(path: Path, option: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read an array of one or more dimensions from a .npy file, without unpickling.

    An .npz file with one array will do.

    mapped : whether memory is taken only for the parts that are used, when they are.

    Raises
    ------
    FileNotFoundError : the file does not exist.
    ValueError : it holds no such array. Both messages begin with the name of the option.
    """
    try:
        begin = _first_bytes(path)
        if begin.startswith(ZIP_MAGIC):
            return _only_member(path)
        if not begin.startswith(NPY_MAGIC):
            raise _NoArray(_what_instead(path))
        values = map_array(path, "iufc") if mapped else read_array(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{option}: {path} does not exist") from None
    except _NoArray as error:
        raise ValueError(f"{option}: {path} {error}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}: {path} is not a .npy file of numbers ({error})") from None
    if values.ndim == 0:
        raise ValueError(f"{option}: {path} holds a single number, expected an array")
    return values


def _only_member(path: Path) -> NDArray[Any]:
    """Read the array of an .npz archive that has one alone."""
    names = member_names(path)
    if len(names) != 1:
        raise _NoArray(f"is an .npz archive ({', '.join(names)}), expected one array")
    return read_archive(path, lambda _: None, "iufc")[names[0]]


def is_class_file(text: str) -> bool:
    """Return whether a word of the command line names a file of classes."""
    return Path(text).suffix.lower() in (".npy", ".npz", *TEXT_SUFFIXES)


def class_numbers(text: str, option: str, count: int) -> NDArray[Any]:
    """Read classes (N,) from a file, or take one number for all ``count`` images.

    A .csv, .txt or .tsv file has a number for each image, apart by lines, commas or spaces.

    Raises
    ------
    FileNotFoundError, ValueError : there is no such file, or it holds no classes. Both messages
        begin with the name of the option.
    """
    path = Path(text)
    if not is_class_file(text) and not path.exists():
        try:
            return np.full(count, int(text))
        except ValueError:
            raise ValueError(
                f"{option}: expected a number, or a file (.npy, .npz, .csv, .txt), got {text!r}"
            ) from None
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return array(path, option)
    try:
        words = re.split(r"[,;\s]+", path.read_text().strip())
        return np.array([int(word) for word in words if word], np.int64)
    except FileNotFoundError:
        raise FileNotFoundError(f"{option}: {path} does not exist") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{option}: {path} is no text with a whole number for each image ({error})"
        ) from None


class _NoArray(ValueError):
    """Raised for a file that is no .npy file. The text goes on after the path."""


def _first_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise _NoArray("is not a .npy file, but a folder or a device")
    with path.open("rb") as file:
        return file.read(len(NPY_MAGIC))


def _what_instead(path: Path) -> str:
    """Return that this is no .npy file, and what to do with a file of that name."""
    ending = path.suffix.lower()
    if ending in SUFFIXES:
        return "is a picture, not a .npy file; put it into a folder and give --images FOLDER"
    if ending in TEXT_SUFFIXES:
        return (
            "is a text, not a .npy file; convert it: "
            f"numpy.save({path.stem + '.npy'!r}, numpy.loadtxt({path.name!r}, delimiter=','))"
        )
    return "is not a .npy file of numbers; numpy.save writes one"


def distortions(words: Sequence[str] | None) -> list[float]:
    """Return the numbers of --eps, which stand apart by commas or spaces.

    Raises
    ------
    ValueError : one of them is no number >= 0.
    """
    numbers = []
    for word in re.split(r"[,\s]+", ",".join(words or ())):
        if not word:
            continue
        try:
            number = float(word)
        except ValueError:
            number = -1.0
        if not number >= 0:
            raise ValueError(f"--eps: expected numbers >= 0, as in 0.25,0.5,1, got {word!r}")
        numbers.append(number)
    return numbers


OTHER_FILES = (*TEXT_SUFFIXES, *SUFFIXES, ".json", ".npy", ".parquet")
"""Endings of files that are no results, and hardly names of folders."""


def is_job_folder(out: Path | None) -> bool:
    """Return whether --out names a folder, in which finished blocks are kept, and no .npz file."""
    if out is not None and not out.is_dir() and out.suffix.lower() in OTHER_FILES:
        raise ValueError(f"--out: expected a name that ends in .npz, or a folder, got {out}")
    return out is not None and out.suffix.lower() != ".npz"


def check_writable(path: Path, option: str, suffixes: Collection[str] = ()) -> None:
    """Raise now what writing the file would raise after a long run.

    suffixes : endings that the name may have. Empty: any, and the path may be a folder.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        endings = ", ".join(sorted(suffixes))
        raise ValueError(f"{option}: expected a name that ends in {endings}, got {path}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: folder {path.parent} does not exist")
    if suffixes and path.is_dir():
        raise ValueError(f"{option}: {path} is a folder")
    # A file is written beside the former one, so that its folder must be writable too.
    places = [path] if path.exists() else []
    if not path.is_dir():
        places.append(path.absolute().parent)
    if not all(os.access(place, os.W_OK) for place in places):
        raise PermissionError(f"{option}: {path} cannot be written")
