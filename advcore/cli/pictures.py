"""Folders of pictures for `advcore attack`: reading, 8-bit results, table and grid.

The module needs Pillow (``pip install "advcore[pictures]"``).
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._files import replacing, write_text
from .._pictures import (
    SUFFIXES,
    ImageFormat,
    find_format,
    find_pictures,
    picture_error,
    read_picture,
)
from ..jobs.classes import short
from ..oracles.logits import batched, margins
from ..validate import to_numpy
from .app import print_remark
from .arguments import check_writable

if TYPE_CHECKING:
    from ..result import Result
    from .arguments import AttackInputs

Floats = NDArray[np.float32]
LONGEST_NAME = 200
"""Largest number of bytes of a picture's name before ``_adversarial.png``; folders allow 255."""
COLUMNS = (
    "file", "class", "class_name", "target", "target_name", "adversarial", "adversarial_name",
    "success", "verified_in_png", "distortion", "rms_distortion", "margin", "status",
    "evaluations", "original_png", "adversarial_png",
)  # fmt: skip
"""Columns of table.csv."""


@dataclass(frozen=True)
class ReadPictures:
    """The pictures of a folder, or of the folders below it, in the order of their paths."""

    files: list[Path]
    pixels: Floats  # (N, C, H, W), multiples of 1/255
    unread: list[tuple[Path, str]]  # files that cannot be read, each with the reason


def read_folder(
    folder: Path,
    image_format: ImageFormat,
    count: int | None = None,
    leave_out: Path | None = None,
) -> ReadPictures:
    """Read the first ``count`` pictures that can be read, resized and cropped to the format.

    The pictures are those of `find_pictures`.

    Raises
    ------
    ValueError : no picture can be read.
    """
    require("PIL", "pictures", "reading pictures")
    paths = [folder / name for name in find_pictures(folder, leave_out)]
    if not paths:
        raise ValueError(f"--images: no pictures in {folder} ({', '.join(SUFFIXES)})")
    files: list[Path] = []
    pixels: list[NDArray[np.uint8]] = []
    unread: list[tuple[Path, str]] = []
    for path in paths:
        if count is not None and len(files) == count:
            break
        try:
            pixels.append(read_picture(path, image_format))
        except Exception as error:  # Pillow raises errors of many types.
            unread.append((path, picture_error(error)))
        else:
            files.append(path)
    if unread and not files:
        path, reason = unread[0]
        raise ValueError(f"--images: no picture in {folder} can be read; {path.name}: {reason}")
    shape = (0, image_format.channels, image_format.height, image_format.width)
    values = np.stack(pixels) if pixels else np.empty(shape, np.uint8)
    return ReadPictures(files, values.astype(np.float32) / np.float32(255), unread)


@dataclass(frozen=True)
class WriteReport:
    """Summary of the files that `write` has written."""

    successes: int
    verified: int  # successes that are adversarial after reading the file back
    table: Path


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return a name for the results of each file, given by its path in the folder of pictures.

    The name is the path without its ending, with ``_`` between its parts. Where two files would
    share it, their endings are added, and where that is not enough, numbers. The names have at
    most `LONGEST_NAME` bytes.
    """
    short_names = ["_".join(path.with_suffix("").parts) for path in files]
    counts = Counter(map(_cut, short_names))
    taken = {_cut(name) for name in short_names if counts[_cut(name)] == 1}
    names = []
    for path, short_name in zip(files, short_names, strict=True):
        name = _cut(short_name)
        if counts[name] > 1:
            long_name = "_".join(path.parts).replace(".", "_")
            name, number = _cut(long_name), 1
            while name in taken:
                number += 1
                ending = f"_{number}"
                name = _cut(long_name, LONGEST_NAME - len(ending)) + ending
            taken.add(name)
        names.append(name)
    return names


def _cut(name: str, limit: int = LONGEST_NAME) -> str:
    """Return the first ``limit`` bytes of a name."""
    return os.fsdecode(os.fsencode(name)[:limit])


def write(
    folder: Path,
    files: Sequence[Path],
    clean: Floats,
    labels: NDArray[np.int64],
    result: Result,
    image_format: ImageFormat,
    forward: Any,
    names: Sequence[str] | None,
) -> WriteReport:
    """Write originals and adversarial pictures as PNG, and ``table.csv``, into a new folder.

    Parameters
    ----------
    files : paths of the pictures in their folder.
    clean : images (N, ...) in the shape of the model.
    labels : the model's classes (N,) of the clean images.
    forward : function from rows (N, n) to logits (N, K). It evaluates the files, which are read
        back.
    """
    Image = require("PIL.Image", "pictures", "writing pictures")
    folder.mkdir(parents=True, exist_ok=True)
    adversarial = image_format.to_pixels(to_numpy(result.adversarial))
    originals = image_format.to_pixels(clean)
    rows: list[dict[str, Any]] = []
    success = result.success
    attacked = np.flatnonzero(success)
    stored = np.empty((len(attacked), *adversarial.shape[1:]), np.float32)
    for i, (path, name) in enumerate(zip(files, unique_names(files), strict=True)):
        target = int(result.target[i])
        original_path = folder / f"{name}_original.png"
        adversarial_path = folder / f"{name}_adversarial.png"
        _write_png(Image, original_path, originals[i])
        adversarial_path.unlink(missing_ok=True)  # An earlier run may have left one.
        if success[i]:
            _write_png(Image, adversarial_path, adversarial[i])
            place = int(np.searchsorted(attacked, i))
            with Image.open(adversarial_path) as file:
                values = np.asarray(file, np.uint8)
            values = values.reshape(image_format.height, image_format.width, -1)
            stored[place] = np.moveaxis(values, 2, 0).astype(np.float32) / np.float32(255)
        rows.append(
            {
                "file": path.as_posix(),
                "class": int(labels[i]),
                "class_name": short(names, int(labels[i])),
                "target": target if target >= 0 else "",
                "target_name": short(names, target),
                "success": int(success[i]),
                "verified_in_png": 0,
                "distortion": f"{result.distortion[i]:.6g}" if success[i] else "",
                "rms_distortion": f"{result.rms_distortion[i]:.6g}" if success[i] else "",
                "status": _status(int(result.status[i])),
                "evaluations": int(result.evaluations[i]),
                "original_png": original_path.name,
                "adversarial_png": adversarial_path.name if success[i] else "",
            }
        )
    verified = 0
    if len(attacked):
        flat = image_format.to_model(stored).reshape(len(attacked), -1)
        classes = np.where(result.target >= 0, result.target, labels)[attacked].astype(np.int32)
        targeted = bool((result.target >= 0).all())
        margin, predicted = margins(batched(forward, flat, 64), classes, targeted)
        for place, row in enumerate(attacked):
            confirmed = bool(margin[place] > 0 and (predicted[place] == classes[place]) == targeted)
            verified += confirmed
            rows[int(row)] |= {
                "verified_in_png": int(confirmed),
                "margin": f"{margin[place]:.6g}",
                "adversarial": int(predicted[place]),
                "adversarial_name": short(names, int(predicted[place])),
            }
    table = folder / "table.csv"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, text.getvalue())
    return WriteReport(len(attacked), verified, table)


def _write_png(Image: Any, path: Path, pixels: Floats) -> None:
    """Write a picture of 8 bits, from values (C, H, W) in [0, 1]."""
    values = np.rint(np.moveaxis(pixels, 0, 2) * 255).astype(np.uint8)
    with replacing(path) as file:
        Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(file, "PNG")


def _status(code: int) -> str:
    from .. import _core

    return str(_core.Status(code).name)


def grid(
    path: Path,
    clean: Floats,
    labels: NDArray[np.int64],
    result: Result,
    image_format: ImageFormat,
    names: Sequence[str] | None,
    count: int = 10,
) -> None:
    """Draw original, adversarial picture and difference of the first successes, with class names.

    The difference is magnified x100 if none of it is above 0.02, else x10.
    """
    from ..report import adversarial_figure, write_figure

    rows = np.flatnonzero(result.success)
    rows = (rows if len(rows) else np.arange(len(clean)))[:count]
    adversarial = to_numpy(result.adversarial)[rows]
    figure = adversarial_figure(
        image_format.to_pixels(clean[rows]),
        image_format.to_pixels(adversarial),
        result.prediction[rows],
        result.distortion[rows],
        labels=labels[rows],
        measure=f"distortion {result.measure}",
        magnify=10 if np.abs(adversarial - clean[rows]).max() > 0.02 else 100,
    )
    if names is not None:
        for place, i in enumerate(rows):
            for axis, number in ((place, labels[i]), (place + len(rows), result.prediction[i])):
                text = short(names, int(number)) or str(int(number))
                figure.axes[axis].set_title(text[:18], fontsize="xx-small")
    write_figure(figure, path)


@dataclass
class PictureFolder:
    """A folder of pictures to attack, and the folder where the results are written.

    Attributes
    ----------
    names_file : Path or None
        Names of the classes.
    image_format, files
        Format of the model's pictures, and the pictures that were read; `read` sets them.
    forward, class_names, labels
        The model from (N, n) to logits, names of its classes, and its classes (N,) of the clean
        pictures; to be set before `write`.
    """

    folder: Path
    output: Path
    size: int | None
    names_file: Path | None
    image_format: ImageFormat = field(init=False)
    files: list[Path] = field(init=False)
    forward: Any = field(init=False)
    class_names: list[str] | None = field(init=False)
    labels: Any = field(init=False)

    def read(self, model: Any, count: int | None) -> Floats:
        """Read pictures in the shape of the model, and name on stderr those that cannot be read."""
        if self.output.resolve() == self.folder.resolve():
            raise ValueError("--pictures: must be another folder than --images")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--pictures: {self.output} is not a folder")
        check_writable(self.output, "--pictures")
        self.image_format = find_format(model, self.size)
        pictures = read_folder(self.folder, self.image_format, count, leave_out=self.output)
        for path, reason in pictures.unread:
            print_remark(
                f"warning: {path} cannot be read ({reason}); the other {len(pictures.files)} go on"
            )
        self.files = pictures.files
        return self.image_format.to_model(pictures.pixels)

    def cut(self, rows: slice) -> None:
        """Keep these pictures alone, and their classes where they are known."""
        self.files = self.files[rows]
        if hasattr(self, "labels"):
            self.labels = self.labels[rows]

    def write(
        self, inputs: AttackInputs, result: Result, picture: Path | None
    ) -> list[tuple[str, Path, str]]:
        """Write the PNG files and the table, and the grid if ``picture`` names its file.

        Returns what each is, its path, and a note on it.
        """
        report = write(
            self.output,
            [path.relative_to(self.folder) for path in self.files],
            inputs.images,
            self.labels,
            result,
            self.image_format,
            self.forward,
            self.class_names,
        )
        note = (
            f" ({report.verified} of {report.successes} adversarial ones verified after reading "
            "the PNG files back)"
        )
        written = [("pictures", self.output, note), ("table", report.table, "")]
        if picture is not None and len(inputs.images):
            grid(picture, inputs.images, self.labels, result, self.image_format, self.class_names)
            written.append(("picture", picture, ""))
        return written
