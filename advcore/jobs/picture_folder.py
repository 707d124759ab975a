"""Images in files of PNG, JPEG and other formats."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._pictures import (
    SUFFIXES,
    ImageFormat,
    find_format,
    find_pictures,
    picture_error,
    read_picture,
)
from .files import as_key
from .inputs import InputSpec, Rows, rows

FOLDERS = "folders"
"""Value of ``label`` with which the names of the class folders give the classes."""
ERRORS_OF_A_FILE = (None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP)
"""Numbers of system errors that concern one file. Pillow's own errors for damage have none."""


def is_of_one_file(error: Exception) -> bool:
    """Return whether an error says that a file is damaged or missing, and not that a disk failed or
    memory is short.
    """
    if isinstance(error, OSError):
        return error.errno in ERRORS_OF_A_FILE
    return not isinstance(error, MemoryError)


def read_pictures(
    keys: Sequence[str], sources: Iterable[Path | BinaryIO], image_format: ImageFormat
) -> tuple[list[int], NDArray[np.uint8], dict[str, str]]:
    """Read pictures in the format of the model.

    Returns the places of those that can be read, their pixels (B, ...) in the shape of the model,
    and the reasons of the others by key. The reasons name no place and no address.
    """
    places: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    unreadable: dict[str, str] = {}
    for place, source in enumerate(sources):
        try:
            pixels.append(read_picture(source, image_format))
        except Exception as error:  # Pillow raises errors of many types.
            if not is_of_one_file(error):
                raise
            text = error.strerror if isinstance(error, OSError) else None
            text = text or re.sub(r" *('.*'|<.*>)$", "", picture_error(error))
            unreadable[keys[place]] = text
        else:
            places.append(place)
    shape = (0, image_format.channels, image_format.height, image_format.width)
    stacked = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
    return places, image_format.to_model(stacked), unreadable


@dataclass
class PictureFolder:
    """Pictures of a folder, or of the folders below it. A picture's key is its path in the folder.

    Attributes
    ----------
    folder : Path
    names : list of str
        Paths in the folder, some 100 bytes of memory each.
    image_format : ImageFormat
    labels : int64 ndarray or None
    scale : bool
        Divide by 255.
    """

    folder: Path
    names: list[str]
    image_format: ImageFormat
    labels: NDArray[np.int64] | None
    scale: bool = True

    def __post_init__(self) -> None:
        self.borders: Sequence[int] | None = None
        self.count = len(self.names)

    def read(self, start: int, stop: int) -> Rows:
        names = self.names[start:stop]
        if not self.folder.is_dir():  # Its pictures are not damaged, but out of reach.
            raise FileNotFoundError(f"input.path: {self.folder} does not exist")
        keys = [as_key(name) for name in names]
        paths = (self.folder / name for name in names)
        places, images, unreadable = read_pictures(keys, paths, self.image_format)
        labels = None if self.labels is None else self.labels[start:stop][places]
        return rows(
            [keys[place] for place in places], images, labels, None, unreadable, scale=self.scale
        )

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of all names and sizes, and how they are read; no picture is read."""
        digest = hashlib.sha256()
        for name in self.names:
            try:
                size = (self.folder / name).stat().st_size
            except FileNotFoundError:
                size = -1
            digest.update(f"{as_key(name)}\0{size}\0".encode())
        found = {
            "pictures": digest.hexdigest(),
            "reading": f"shape {self.image_format.shape}, scale {self.scale}",
        }
        if self.labels is not None:
            found["label"] = hashlib.sha256(self.labels.tobytes()).hexdigest()
        return found


def open_folder(spec: InputSpec, model: Any) -> PictureFolder:
    """Find the pictures of a folder.

    Raises ValueError, OSError and ImportError as `open_source` does.
    """
    require("PIL", "pictures", "reading pictures")
    folder = Path(spec.path)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"input.path: {spec.path} {kind}")
    if spec.label not in (None, FOLDERS):
        raise ValueError(f"input.label must be {FOLDERS!r} for pictures, got {spec.label!r}")
    names = find_pictures(folder, spec.leave_out)
    if not names:
        raise ValueError(f"input.path: no pictures in {folder} ({', '.join(SUFFIXES)})")
    image_format = find_format(model, spec.size, option="input.size")
    labels = None if spec.label is None else _folder_classes(names)
    return PictureFolder(folder, names, image_format, labels, spec.scale)


def _folder_classes(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each picture from the first folder on its path.

    Where all these folders are called by numbers, they are the classes. Else the classes are the
    places of the folders in the order of their names.
    """
    folders = [name.partition("/")[0] if "/" in name else "" for name in names]
    ordered = sorted(set(folders))
    if "" in ordered:
        raise ValueError(
            f"input.label = {FOLDERS!r} needs a folder for each class, but {names[0]} is in none"
        )
    if all(re.fullmatch("[0-9]{1,18}", folder) for folder in ordered):
        numbers = {folder: int(folder) for folder in ordered}
    else:
        numbers = {folder: place for place, folder in enumerate(ordered)}
    return np.array([numbers[folder] for folder in folders], np.int64)
