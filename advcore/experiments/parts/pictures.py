"""Rows of digits as pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from advcore import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from .run import Trained


def slug(name: str) -> str:
    """Turn a name into one for files, for example "FC10(1e-4)" into "fc10_1e_4"."""
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def predictions(network: Trained, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (N,) classes of the largest logit."""
    import torch

    with torch.inference_mode():
        classes: NDArray[np.int64] = network.model(torch.as_tensor(images)).argmax(1).numpy()
    return classes


def strip(images: NDArray[np.float32], gap: int = 2) -> NDArray[np.float64]:
    """Put the images side by side in one picture, with white between them."""
    padded = np.pad(report.displayable(images), ((0, 0), (0, 0), (0, gap)), constant_values=1.0)
    return np.concatenate(list(padded), axis=1)[:, :-gap]


def noise_grid(
    network: Trained,
    labels: NDArray[np.int64],
    rows: Sequence[tuple[str, NDArray[np.float32], float]],
) -> Drawing:
    """Draw rows of pictures, each from a name, its images and an accuracy in percent.

    The predicted class stands above a picture, in red where it is not the label.
    """
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(1.0 * len(labels) + 1.2, 1.22 * len(rows)), layout="constrained")
    axes = report.picture_rows(
        figure, [(name, report.displayable(images), "gray") for name, images, _ in rows]
    )
    for line, (name, images, accuracy) in zip(axes, rows, strict=True):
        line[0].set_ylabel(
            f"{name}\n{accuracy:.0f}% right", rotation=0, ha="right", va="center", labelpad=8
        )
        for axis, prediction, label in zip(line, predictions(network, images), labels, strict=True):
            axis.set_title(
                str(prediction), color="black" if prediction == label else "tab:red", pad=3
            )
    return figure
