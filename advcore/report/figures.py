"""Figures of results: curves of accuracy under attack, and which class was led to which.

The module needs matplotlib (``pip install "advcore[plots]"``).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require
from ..result.statistics import withstood_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..result import Result

FIGURE = (5.2, 3.2)
"""Width and height of a curve in inches."""
INK, ACCENT = "#123451", "#123452"
"""Colours that a page sets itself: those of text and lines, and of what is drawn."""
NUMBERED = 15
"""Most classes whose counts stand in the cells."""
_STYLE = {
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": INK, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.prop_cycle": None, "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none",
    "text.parse_math": False,
}  # fmt: skip


def curve_figure(results: Result | Mapping[str, Result]) -> Figure:
    """Draw the share of images that withstood the attack against the distortion.

    Parameters
    ----------
    results : one result, or several by the names that the legend gives them. They have one norm.

    Raises
    ------
    ValueError : there is none, one has no image, or they differ in their norm.
    ImportError : matplotlib is not installed.
    """
    require("matplotlib", "plots", "the curve")
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    named = dict(results) if isinstance(results, Mapping) else {"": results}
    norms = dict.fromkeys(result.norm for result in named.values())
    if len(norms) != 1 or not all(map(len, named.values())):
        found = ", ".join(f"{len(result)} images in {result.norm}" for result in named.values())
        raise ValueError(f"results must have images and one norm, got {found or 'none'}")
    figure = Figure(figsize=FIGURE, layout="constrained")
    axes = figure.subplots()
    for name, result in named.items():
        axes.step(*curve_points(result), where="post", label=name or None)
    first = next(iter(named.values()))
    axes.set_xlabel(f"distortion {first.measure}")
    axes.set_ylabel(withstood_name(first) if len(named) == 1 else "withstood")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    if "" not in named:
        axes.legend()
    return figure


def curve_points(result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distortions at which the share that withstood falls, from 0, and the shares."""
    found = np.unique(result.distortion[result.success].astype(np.float64))
    eps = np.unique(np.concatenate([[0.0], found]))
    return eps, np.asarray(result.robust_accuracy(eps), np.float64)


def class_figure(
    classes: NDArray[Any], counts: NDArray[Any], names: Sequence[str], color: Any = None
) -> Figure:
    """Draw which class was led to which, a row for each label and a column for each class reached.

    Parameters
    ----------
    classes, counts : as `Result.class_counts` returns them.
    names : of these classes.
    color : colour of the largest count.

    Raises
    ------
    ImportError : matplotlib is not installed.
    """
    require("matplotlib", "plots", "the classes")
    from matplotlib.colors import LinearSegmentedColormap, to_rgba
    from matplotlib.figure import Figure

    count, full = len(classes), to_rgba(color or "C0")
    side = min(max(2.2, 0.34 * count), 6.5)
    figure = Figure(figsize=(side + 1.2, side + 0.7), layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("counts", [(*full[:3], 0.0), (*full[:3], 0.6)])
    axes.pcolormesh(counts, cmap=colors, vmin=0, vmax=max(counts.max(initial=0), 1))
    places = np.arange(count) + 0.5
    axes.set_xticks(places, names, rotation=90 if max(map(len, names), default=0) > 2 else 0)
    axes.set_yticks(places, names)
    axes.tick_params(length=0)
    axes.set_xlabel("class reached")
    axes.set_ylabel("label")
    axes.invert_yaxis()
    axes.set_aspect("equal")
    if count <= NUMBERED:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center",
                fontsize=8,
            )  # fmt: skip
    return figure


def page_svg(draw: Any, salt: str) -> str:
    """Return a figure as an SVG element for a page, which gives text and lines its own colours.

    Parameters
    ----------
    draw : function that returns the figure.
    salt : text by which the element's names differ from those of other figures of the page.
    """
    matplotlib = require("matplotlib", "plots", "a figure of the report")
    from cycler import cycler

    style = _STYLE | {"axes.prop_cycle": cycler(color=[ACCENT]), "svg.hashsalt": salt}
    text, left_out = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has the letters that the font of matplotlib lacks.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        draw().savefig(text, format="svg", metadata=left_out)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(ACCENT, "var(--accent)")
    return re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
