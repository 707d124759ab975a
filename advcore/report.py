"""Pictures of results. Needs matplotlib (``pip install "advcore[plots]"``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._extras import require
from .validate import to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

    from .result import Result


def picture_grid(
    path: str | Path,
    images: NDArray[Any],
    result: Result,
    *,
    labels: NDArray[Any] | None = None,
    count: int = 10,
    magnify: float = 10.0,
) -> None:
    """Writes original, adversarial image and difference, one column for each of `count` successes.

    Without a success the first images are drawn. `images` as given to `minimize_distortion`:
    (N, H, W), (N, 1 or 3, H, W), (N, H, W, 1 or 3), or (N, n) with n a square number.
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
        magnify=magnify,
    )
    figure.savefig(path)


def picture_suffixes() -> set[str]:
    """Endings of the files that `picture_grid` writes."""
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
    """Original, adversarial image and difference, a column for each image.

    The difference is magnify * r on a scale from minus to plus the range of the images, blue to
    red, or around middle grey for colour images. Above the images stand `labels` and `predictions`
    (of the adversarial ones), below `distortions`, which are named by `measure`.
    """
    require("matplotlib", "plots", "the picture")
    from matplotlib.figure import Figure

    before, after = displayable(images), displayable(adversarial)
    low, high = float(before.min()), float(before.max())
    span = high - low if high > low else 1.0
    difference = 0.5 + 0.5 * magnify * (after - before) / span
    figure = Figure(figsize=(1.1 * len(before) + 0.4, 4.1), dpi=150, layout="constrained")
    axes = picture_rows(
        figure,
        [
            ("original", (before - low) / span, "gray"),
            ("adversarial", (after - low) / span, "gray"),
            (f"difference x{magnify:g}", difference, "RdBu_r"),
        ],
    )
    for place in range(len(before)):
        if labels is not None:
            axes[0, place].set_title(str(int(labels[place])))
        axes[1, place].set_title(f"\N{RIGHTWARDS ARROW} {int(predictions[place])}")
        axes[2, place].set_xlabel(f"{float(distortions[place]):.{digits}f}")
    if difference.ndim == 3:
        note, last = "red: brighter,\nblue: darker", axes[2, -1]
        last.text(
            *(1.08, 0.5, note),
            transform=last.transAxes,
            fontsize="x-small",
            rotation=90,
            va="center",
        )
    figure.supxlabel(measure, fontsize="medium")
    return figure


def picture_rows(
    figure: FigureBase, rows: Sequence[tuple[str, NDArray[np.float64], str]]
) -> NDArray[Any]:
    """Draws rows of pictures, each a name, (B, H, W[, 3]) values, cut to [0, 1], and a colour map.

    Returns the axes (rows, B).
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
    """(B, H, W) or (B, H, W, 3) float64 from the layouts named in `picture_grid`."""
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
