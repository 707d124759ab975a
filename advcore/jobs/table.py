"""The table of a job: its columns, and the rows of a block. The module needs pyarrow."""

from __future__ import annotations

import io
from dataclasses import astuple, dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._extras import require
from ..validate import to_numpy
from .inputs import Rows

if TYPE_CHECKING:
    from ..result import Result

UNREADABLE, FAILED = "unreadable", "failed"
"""Statuses of rows without a result, besides the names of `advcore.Status`: the image cannot be
read; the model raised on its block."""
ADVERSARIAL = "adversarial"
"""Name of the column of the images."""
PNG_COMPRESSION = 1
"""Level of zlib. A picture of 224x224 with level 6 is a few percent smaller and takes longer."""


MOST_VALUES = 2**31 - 1
"""Numbers of the lists of a chunk, as Arrow counts them in 32 bits."""


def arrow() -> Any:
    """Return the module pyarrow."""
    return require("pyarrow", "jobs", "a job")


def schema(images: str) -> Any:
    """Return the columns of a block whose adversarial images are "none", "float32" or "png"."""
    pa = arrow()
    fields = [
        pa.field("key", pa.string(), nullable=False),
        ("label", pa.int64()),
        ("target", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),
        ("distortion", pa.float32()),
        ("margin", pa.float32()),
        ("c", pa.float64()),
        ("evaluations", pa.int32()),
        ("prediction", pa.int64()),
        ("error", pa.string()),
    ]
    if images != "none":
        kind = pa.list_(pa.float32()) if images == "float32" else pa.binary()
        fields.append((ADVERSARIAL, kind))
    return pa.schema(fields)


@dataclass(frozen=True)
class Counts:
    """Sums over rows of a table.

    Attributes
    ----------
    images, succeeded, unreadable, failed : int
        Numbers of rows, and of those with the success, the status unreadable and failed.
    distortion : float
        Sum of the distortions of the successes.
    evaluations : int
    """

    images: int = 0
    succeeded: int = 0
    unreadable: int = 0
    failed: int = 0
    distortion: float = 0.0
    evaluations: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def result_table(
    rows: Rows,
    result: Result,
    labels: NDArray[np.int64] | None,
    images: str,
    limits: tuple[float, float],
) -> Any:
    """Return the rows of a block: those of its result, then the images that cannot be read.

    Values that an image does not have are null, such as the distortion without success.

    Parameters
    ----------
    labels : (B,) of the readable images, or None
    limits : bounds of the values; those of "png" are its black and white.
    """
    pa = arrow()
    success = result.success
    names = {int(member.value): name for name, member in _core.Status.__members__.items()}
    known = {
        "key": pa.array(rows.keys, pa.string()),
        "label": None if labels is None else pa.array(labels),
        "target": pa.array(result.target, mask=result.target < 0),
        "status": pa.array([names[code] for code in result.status.tolist()], pa.string()),
        "success": pa.array(success),
        "distortion": pa.array(result.distortion, mask=~success),
        "margin": pa.array(result.margin.astype(np.float32), mask=np.isnan(result.margin)),
        "c": pa.array(result.c.astype(np.float64), mask=np.isnan(result.c)),
        "evaluations": pa.array(result.evaluations),
        "prediction": pa.array(result.prediction),
    }
    if images != "none":
        adversarial = to_numpy(result.adversarial)
        known[ADVERSARIAL] = (
            _float_lists(adversarial) if images == "float32" else _pngs(adversarial, *limits)
        )
    return joined([_table(known, images), missing_table(rows.unreadable, images)])


def joined(tables: list[Any]) -> Any:
    """Return the rows of several tables as one."""
    return arrow().concat_tables(tables)


def missing_table(
    reasons: dict[str, str],
    images: str,
    status: str = UNREADABLE,
    labels: NDArray[np.int64] | None = None,
    targets: NDArray[np.int64] | None = None,
) -> Any:
    """Return rows of images without a result, with the reason for each key.

    Labels and targets (B,) are those of the keys, where they are known.
    """
    pa = arrow()
    known = {
        "key": pa.array(list(reasons), pa.string()),
        "label": None if labels is None else pa.array(labels),
        "target": None if targets is None else pa.array(targets),
        "status": pa.array([status] * len(reasons), pa.string()),
        "success": pa.array([False] * len(reasons), pa.bool_()),
        "error": pa.array(list(reasons.values()), pa.string()),
    }
    return _table(known, images)


def count(table: Any) -> Counts:
    """Return the counts of a table."""
    status = table.column("status").to_pylist()
    success = np.asarray(table.column("success"))
    distortion = np.asarray(table.column("distortion").fill_null(0), np.float64)
    return Counts(
        len(status),
        int(success.sum()),
        status.count(UNREADABLE),
        status.count(FAILED),
        float(distortion[success].sum()),
        int(np.asarray(table.column("evaluations").fill_null(0), np.int64).sum()),
    )


def _table(known: dict[str, Any], images: str) -> Any:
    """Return a table with nulls in the columns that are not known."""
    pa = arrow()
    length, columns = len(known["key"]), []
    for field in schema(images):
        values = known.get(field.name)
        columns.append(pa.nulls(length, field.type) if values is None else values)
    return pa.Table.from_arrays(columns, schema=schema(images))


def _float_lists(images: NDArray[np.float32]) -> Any:
    flat = images.reshape(len(images), -1)
    rows = max(1, MOST_VALUES // flat.shape[1])
    parts = [flat[start : start + rows] for start in range(0, max(len(flat), 1), rows)]
    return arrow().chunked_array([_chunk_of_lists(part) for part in parts])


def _chunk_of_lists(flat: NDArray[np.float32]) -> Any:
    pa = arrow()
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * flat.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(flat.reshape(-1)))


def _pngs(images: NDArray[np.float32], low: float, high: float) -> Any:
    """Return PNG files of images (N, ...) on 256 levels."""
    from .._pictures import find_format

    pa = arrow()
    Image = require("PIL.Image", "pictures", "adversarial images as PNG")
    picture_format = find_format(SimpleNamespace(input_shape=images.shape[1:]))
    pixels = picture_format.to_pixels(images).astype(np.float64)
    values = np.rint((pixels - low) * (255 / (high - low))).astype(np.uint8)
    files = []
    for picture in np.moveaxis(values, 1, 3):
        file = io.BytesIO()
        picture = picture[..., 0] if picture.shape[2] == 1 else picture
        Image.fromarray(picture).save(file, "PNG", compress_level=PNG_COMPRESSION)
        files.append(file.getvalue())
    return pa.array(files, pa.binary())
