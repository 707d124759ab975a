"""Pictures of results. Needs matplotlib (``pip install "advcore[plots]"``)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._extras import require
from .result import to_numpy

if TYPE_CHECKING:
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

    The difference is magnify * r on a scale from minus to plus the range of the images, blue to
    red, or around middle grey for colour images. Without a success the first images are drawn.
    `images` as given to `minimize_distortion`: (N, H, W), (N, 1 or 3, H, W), (N, H, W, 1 or 3), or
    (N, n) with n a square number.
    """
    require("matplotlib", "plots", "the picture")
    from matplotlib.figure import Figure

    columns = np.flatnonzero(result.success)
    columns = (columns if len(columns) else np.arange(len(images)))[:count]
    if not len(columns):
        raise ValueError("a picture needs at least one image, got 0")
    before = displayable(np.asarray(images)[columns])
    after = displayable(to_numpy(result.adversarial)[columns])
    low, high = float(before.min()), float(before.max())
    span = high - low if high > low else 1.0
    rows = [
        ("original", (before - low) / span),
        ("adversarial", (after - low) / span),
        (f"difference x{magnify:g}", 0.5 + 0.5 * magnify * (after - before) / span),
    ]
    figure = Figure(figsize=(1.1 * len(columns) + 0.4, 4.1), dpi=150, layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (name, pictures), line in zip(rows, axes, strict=True):
        for axis, pixels in zip(line, pictures, strict=True):
            colours = "RdBu_r" if name.startswith("difference") else "gray"
            axis.imshow(np.clip(pixels, 0, 1), colours, vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name)
    for place, index in enumerate(columns):
        if labels is not None:
            axes[0, place].set_title(str(int(labels[index])))
        axes[1, place].set_title(f"\N{RIGHTWARDS ARROW} {int(result.prediction[index])}")
        axes[2, place].set_xlabel(f"{float(result.distortion[index]):.2f}")
    if rows[2][1].ndim == 3:
        note, place = "red: brighter,\nblue: darker", axes[2, -1]
        place.text(
            *(1.08, 0.5, note),
            transform=place.transAxes,
            fontsize="x-small",
            rotation=90,
            va="center",
        )
    figure.supxlabel("distortion ||r||", fontsize="medium")
    figure.savefig(path)


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
