"""Pictures of a folder, read into the format of a model.

Reading needs Pillow (``pip install "advcore[pictures]"``).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ._extras import require

Floats = NDArray[np.float32]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""Endings of the files of a folder that are read as pictures."""
SHORT_SIDE = 256
"""Short side of a picture before it is cropped to 200 to 256 pixels, as is usual on ImageNet."""
LARGEST_ENLARGEMENT = 16
"""Largest number of pixels before the crop, over those after it, that are computed and cropped. Of
longer and thinner pictures the part alone is computed, with at most one level of difference."""


@dataclass(frozen=True)
class ImageFormat:
    """The shape in which a model takes a picture, and the picture's channels, height and width."""

    shape: tuple[int, ...]
    channels: int
    height: int
    width: int

    def to_model(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Convert pictures (N, C, H, W) to images (N, ...) of the model."""
        if len(self.shape) == 3 and self.shape[0] != self.channels:
            pixels = np.moveaxis(pixels, 1, 3)
        return np.ascontiguousarray(pixels.reshape(len(pixels), *self.shape))

    def to_pixels(self, images: NDArray[Any]) -> Floats:
        """Convert images (N, ...) of the model to pictures (N, C, H, W)."""
        if len(self.shape) == 3 and self.shape[0] != self.channels:
            images = np.moveaxis(images, 3, 1)
        return images.reshape(len(images), self.channels, self.height, self.width)


def find_format(model: Any, size: int | None = None, option: str = "--size") -> ImageFormat:
    """Return the format of a model's pictures.

    It follows from the ``input_shape`` of the model, from the ``inputs`` of a Network, or from
    ``size``, the side of a square. Errors call it ``option``.

    Raises
    ------
    ValueError : nothing says how large the pictures shall be, or they have no shape of pictures.
    """
    shape: Any = getattr(model, "input_shape", None)
    if shape is None and isinstance(getattr(model, "inputs", None), int):
        shape = (model.inputs,)
    if size is not None and (shape is None or len(shape) == 3):
        channels_last = shape is not None and shape[0] not in (1, 3)
        channels = 3 if shape is None else shape[2] if channels_last else shape[0]
        shape = (size, size, channels) if channels_last else (channels, size, size)
    if shape is None:
        raise ValueError(
            f"the model does not say how large its pictures are; give {option}, or the model an "
            "attribute input_shape = (channels, height, width)"
        )
    shape = tuple(int(n) for n in shape)
    if len(shape) == 1:
        for channels in (1, 3):
            side = math.isqrt(shape[0] // channels)
            if side * side * channels == shape[0] and size in (None, side):
                return ImageFormat(shape, channels, side, side)
    if len(shape) == 2:
        return ImageFormat(shape, 1, *shape)
    if len(shape) == 3 and shape[0] in (1, 3):
        return ImageFormat(shape, *shape)
    if len(shape) == 3 and shape[2] in (1, 3):
        return ImageFormat(shape, shape[2], shape[0], shape[1])
    raise ValueError(f"the model takes images of shape {shape}, which are no pictures of that size")


def find_pictures(folder: Path, leave_out: Path | None = None) -> list[str]:
    """Return the pictures of a folder, or where it has none those of all folders below it.

    They are paths in the folder, in the order of their parts. Folders whose name begins with a dot
    are left out, and so is the folder ``leave_out``. A folder that several links lead to is read
    once.
    """
    seen: set[tuple[int, int]] = set()
    if leave_out is not None and leave_out.is_dir():
        seen.add(_identity(leave_out))
    pictures: list[str] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        inner = "" if Path(place) == folder else f"{Path(place).relative_to(folder).as_posix()}/"
        for name in names:
            stem, _, ending = name.rpartition(".")
            if stem and f".{ending.lower()}" in SUFFIXES and Path(place, name).is_file():
                pictures.append(inner + name)
        if pictures and Path(place) == folder:
            break
        seen.add(_identity(Path(place)))
        below = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in below:
            identity = _identity(Path(place, name))
            if identity not in seen:
                seen.add(identity)
                folders.append(name)
    return sorted(pictures, key=lambda name: name.replace("/", "\0"))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def read_picture(source: Path | BinaryIO, image_format: ImageFormat) -> NDArray[np.uint8]:
    """Read a picture from a file or its bytes, and return its middle in the format, (C, H, W).

    Resizing is bilinear. Where the picture shrinks, the filter covers the whole area of a pixel.
    Palettes and grey become colours, or colours grey. Transparent parts lie on white.

    Raises
    ------
    Exception : it is no picture, or damaged. Pillow raises many types; `picture_error` describes
        them.
    """
    Image = require("PIL.Image", "pictures", "reading pictures")
    ImageOps = require("PIL.ImageOps", "pictures", "reading pictures")
    with Image.open(source) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I"):  # The pixels have 16 bits.
            picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if image_format.channels == 1 else "RGB")
    width, height = picture.size
    if (height, width) != (image_format.height, image_format.width):
        sides = (image_format.height, image_format.width)
        as_imagenet = min(sides) == max(sides) and 200 <= min(sides) <= SHORT_SIDE
        least_sides = (SHORT_SIDE, SHORT_SIDE) if as_imagenet else sides
        ratio = max(least_sides[0] / height, least_sides[1] / width)
        new_width = max(image_format.width, round(width * ratio))
        new_height = max(image_format.height, round(height * ratio))
        left, top = (new_width - image_format.width) // 2, (new_height - image_format.height) // 2
        part = (left, top, left + image_format.width, top + image_format.height)
        if new_width * new_height <= LARGEST_ENLARGEMENT * image_format.width * image_format.height:
            picture = picture.resize((new_width, new_height), Image.Resampling.BILINEAR).crop(part)
        else:  # Only the part is computed: a line of 20,000 pixels would become 5 GB.
            scale_x, scale_y = width / new_width, height / new_height
            box = (part[0] * scale_x, part[1] * scale_y, part[2] * scale_x, part[3] * scale_y)
            box = (box[0], box[1], min(box[2], width), min(box[3], height))
            size = (image_format.width, image_format.height)
            picture = picture.resize(size, Image.Resampling.BILINEAR, box=box)
    values = np.asarray(picture, np.uint8)
    return values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)


def picture_error(error: Exception) -> str:
    """Return the text of an error of `read_picture`, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
