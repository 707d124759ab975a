"""Pictures and figures of results, and the page of a result.

The modules need matplotlib (``pip install "advcore[plots]"``), the page Jinja2 too
(``pip install "advcore[report]"``).
"""

from .figures import class_figure, curve_figure, curve_points
from .pictures import (
    adversarial_figure,
    displayable,
    picture_grid,
    picture_rows,
    picture_suffixes,
    write_figure,
)

__all__ = [
    "adversarial_figure",
    "class_figure",
    "curve_figure",
    "curve_points",
    "displayable",
    "picture_grid",
    "picture_rows",
    "picture_suffixes",
    "write_figure",
]
