"""Pictures of results.

The module needs matplotlib (``pip install "advcore[plots]"``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from .._files import replacing
from ..validate import to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

    from ..result import Result


def picture_grid(
    path: str | Path,
    images: NDArray[Any],
    result: Result,
    *,
    labels: NDArray[Any] | None = None,
    count: int = 10,
    magnify: float = 10.0,
) -> None:
    """Write original, adversarial image and difference, one column for each of `count` successes.

    Without a success the first images are drawn.

    Parameters
    ----------
    path : file of the picture. Its ending gives the format.
    images : images as given to `minimize_distortion`. Their shape is (N, H, W), (N, 1 or 3, H, W),
        (N, H, W, 1 or 3), or (N, n) with n a square number.
    labels : (N,) true classes, drawn above the images.
    magnify : factor of the difference.

    Raises
    ------
    ValueError : there is no image, or images of this shape cannot be drawn.
    ImportError : matplotlib is not installed.
    """
    columns = np.flatnonzero(result.success)
    columns = (columns if len(columns) else np.arange(len(images)))[:count]
    if not len(columns):
        raise ValueError("a picture needs at least one image, got 0")
    figure = adversarial_figure(
        np.asarray(images)[columns],
        to_numpy(result.adversarial)[columns],
        result.prediction[columns],
        result.distortion[columns],
        labels=None if labels is None else np.asarray(labels)[columns],
        measure=f"distortion {result.measure}",
        magnify=magnify,
    )
    write_figure(figure, path)


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the ending of ``path``. A former file stays until then."""
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix.removeprefix(".").lower() or None)


def picture_suffixes() -> set[str]:
    """Return the endings of the files that `picture_grid` can write."""
    require("matplotlib", "plots", "the picture")
    from matplotlib.figure import Figure

    return {f".{name}" for name in Figure().canvas.get_supported_filetypes()}


def adversarial_figure(
    images: NDArray[Any],
    adversarial: NDArray[Any],
    predictions: NDArray[Any],
    distortions: NDArray[Any],
    *,
    labels: NDArray[Any] | None = None,
    magnify: float = 10.0,
    measure: str = "distortion ||r||",
    digits: int = 2,
) -> Figure:
    """Draw original, adversarial image and difference, a column for each image.

    The difference is magnify * r on a scale from minus to plus the range of the images. The scale
    runs from blue to red, or around middle grey for colour images. `labels` stand above the
    originals and `predictions` above the adversarial images. `distortions` stand below, and
    `measure` names them.
    """
    require("matplotlib", "plots", "the picture")
    from matplotlib.figure import Figure

    originals, perturbed = displayable(images), displayable(adversarial)
    low, high = float(originals.min()), float(originals.max())
    span = high - low if high > low else 1.0
    difference = 0.5 + 0.5 * magnify * (perturbed - originals) / span
    figure = Figure(figsize=(1.1 * len(originals) + 0.4, 4.1), dpi=150, layout="constrained")
    axes = picture_rows(
        figure,
        [
            ("original", (originals - low) / span, "gray"),
            ("adversarial", (perturbed - low) / span, "gray"),
            (f"difference x{magnify:g}", difference, "RdBu_r"),
        ],
    )
    for place in range(len(originals)):
        if labels is not None:
            axes[0, place].set_title(str(int(labels[place])))
        axes[1, place].set_title(f"\N{RIGHTWARDS ARROW} {int(predictions[place])}")
        axes[2, place].set_xlabel(f"{float(distortions[place]):.{digits}f}")
    if difference.ndim == 3:
        note, last_axes = "red: brighter,\nblue: darker", axes[2, -1]
        last_axes.text(
            1.08,
            0.5,
            note,
            transform=last_axes.transAxes,
            fontsize="x-small",
            rotation=90,
            va="center",
        )
    figure.supxlabel(measure, fontsize="medium")
    return figure


def picture_rows(
    figure: FigureBase, rows: Sequence[tuple[str, NDArray[np.float64], str]]
) -> NDArray[Any]:
    """Draw rows of pictures, and return the axes (rows, B).

    rows : for each row a name, values (B, H, W[, 3]), which are cut to [0, 1], and a colour map.
    """
    axes: NDArray[Any] = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for (name, pictures, colours), line in zip(rows, axes, strict=True):
        for axis, pixels in zip(line, pictures, strict=True):
            axis.imshow(np.clip(pixels, 0, 1), colours, vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name)
    return axes


def displayable(images: NDArray[Any]) -> NDArray[np.float64]:
    """Convert the layouts of `picture_grid` to (B, H, W) or (B, H, W, 3) float64.

    Raises
    ------
    ValueError : images of this shape cannot be drawn.
    """
    pixels = np.asarray(images, dtype=np.float64)
    if pixels.ndim == 2:
        side = math.isqrt(pixels.shape[1])
        if side * side != pixels.shape[1]:
            raise ValueError(
                f"a picture of flat images needs a square number of pixels, got {pixels.shape[1]}"
            )
        return pixels.reshape(-1, side, side)
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3):
        pixels = np.moveaxis(pixels, 1, -1)
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[-1] != 3):
        raise ValueError(f"images of shape {images.shape[1:]} cannot be drawn")
    return pixels
