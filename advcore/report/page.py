"""The page of a result: one HTML file with all in it, for a browser of any width.

The module needs Jinja2 and matplotlib (``pip install "advcore[report]"``).
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._durations import precise
from .._extras import require
from .._files import write_text
from ..result.record import labels_of
from ..result.statistics import (
    accuracy_rows,
    class_counts,
    distortion_text,
    evaluations_text,
    per_class,
    statistics,
    status_code,
    status_names,
    withstood_name,
)
from ..validate import to_numpy
from .figures import class_figure, curve_figure, page_svg
from .pictures import displayable

if TYPE_CHECKING:
    from ..result import Result

SHOWN = 6
"""Images among the hardest, and among the easiest."""
MOST_CLASSES = 24
"""Most classes in the figure of classes; the most frequent ones where there are more."""
MAGNIFIED = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Factors of a difference that are tried."""
DIRECTION_MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that would turn the letters beside them around."""


@dataclass(frozen=True)
class Page:
    """What a page is made of, besides the result.

    Attributes
    ----------
    images : array (N, ...) or None
        The clean images.
    class_names : sequence of str or None
        By the number of the class.
    image_names : sequence of str or None
        Of the images (N,), such as file names.
    eps : sequence of float
        Distortions of the table of accuracies. Empty: some are chosen.
    warnings : sequence of str
    """

    images: NDArray[Any] | None = None
    class_names: Sequence[str] | None = None
    image_names: Sequence[str] | None = None
    eps: Sequence[float] = ()
    warnings: Sequence[str] = ()


def write_page(path: str | os.PathLike[str], result: Result, page: Page) -> None:
    """Write the page, as `Result.report` says."""
    write_text(path, html(result, page))


def html(result: Result, page: Page) -> str:
    """Return the text of the page."""
    jinja2 = require("jinja2", "report", "the report")
    require("matplotlib", "report", "the report")
    for name, values in (("images", page.images), ("image_names", page.image_names)):
        if values is not None and len(values) != len(result):
            raise ValueError(
                f"{name} must be those of the {len(result)} images of the result, got {len(values)}"
            )
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return str(environment.from_string(text).render(_context(result, page)))


def visible(value: Any) -> Any:
    """Return a text in which control characters and marks of direction are seen, not obeyed.

    Half characters, as of file names that are not UTF-8, become U+FFFD. Other values come back.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "".join(_visible_character(character) for character in value)


def _visible_character(character: str) -> str:
    if character in DIRECTION_MARKS:
        return f"<U+{ord(character):04X}>"
    kind = unicodedata.category(character)
    if kind == "Cc" and character not in "\n\t":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "\ufffd"
    return "\ufffd" if kind == "Cs" else character


def _context(result: Result, page: Page) -> dict[str, Any]:
    """Return the values of the template."""
    figures = statistics(result, _distortions(result, page.eps))
    record, labelled = result.record, bool(len(result)) and bool((result.label >= 0).all())
    pictures = _Pictures(result, page)
    curve = _svg(lambda: curve_figure(result), "curve") if len(result) else None
    return {
        "title": record.get("model", {}).get("name", "a model"),
        "facts": _facts(result, figures),
        "figures": figures,
        "measure": result.measure,
        "withstood_name": withstood_name(result),
        "curve": curve,
        "rows_of_shares": [
            [f"{entry['eps']:g}", f"{entry['share']:.1%}"]
            for entry in figures["withstood"]
            if entry["share"] is not None
        ],
        "classes": _classes(result, page) if labelled else None,
        "class_rows": _class_rows(result, page) if labelled else [],
        "pictures": pictures.groups(),
        "picture_note": pictures.note,
        "costs": _costs(result),
        "seconds": precise(result.seconds),
        "notes": [*_notes(result, page), *page.warnings],
        "command": record.get("run", {}).get("command"),
        "record": {part: record[part] for part in record if part != "run"},
        "engine": result.engine,
        "began": record.get("run", {}).get("began"),
    }


def _svg(draw: Any, name: str) -> Any:
    from markupsafe import Markup

    return Markup(page_svg(draw, name))  # matplotlib escapes the texts of its figures


def _distortions(result: Result, eps: Sequence[float]) -> Sequence[float]:
    """Return the distortions of the table: those given, else round ones that most images span."""
    found = result.distortion[result.success].astype(np.float64)
    if len(eps) or not len(found) or not (top := float(np.percentile(found, 95))):
        return eps
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(6).tick_values(0, top) if tick >= 0]


def _facts(result: Result, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values of the summary."""
    count, found = figures["images"], figures["adversarial"]
    share = f" ({found / count:.1%})" if count else ""
    facts = [("adversarial", f"{found:,} of {count:,} images{share}")]
    facts += accuracy_rows(result, {**figures, "withstood": []})
    if found:
        facts += [
            (f"distortion {result.measure}", distortion_text(result, figures)),
            ("rms distortion", f"mean {figures['rms_distortion']['mean']:.5f}"),
        ]
    if count:
        facts += [
            ("evaluations", evaluations_text(figures)),
            ("status", result.status_text()),
        ]
    return facts


def _notes(result: Result, page: Page) -> list[str]:
    """Return what a reader should know before the figures are used."""
    counts, record = result.status_counts(), result.record
    texts = {
        "interrupted": "images were not finished when the run was ended: their distortions may be "
        "far above the smallest",
        "not_found": "images have no adversarial example that was found: they count as robust",
        "non_finite": "images ended where the model gave NaN or infinity",
        "no_gradient": "clean images have no gradient: their adversarial images were found from a "
        "random direction and may be far above the smallest",
        "budget": "images used up their budget",
    }
    notes = [f"{counts[name]:,} {text}." for name, text in texts.items() if name in counts]
    if labels_of(record) == "predicted" and not result.targeted:
        notes.append(
            "There are no true labels: classes are the model's own predictions, and the curve is "
            "no accuracy."
        )
    if "effort" in result.engine:
        notes.append(f"Effort: {result.engine['effort']}.")
    known = record.get("input", {}).get("images_sha256")
    if page.images is not None and known and record["input"].get("count") == len(result):
        values: Any = np.ascontiguousarray(to_numpy(page.images), np.float32)
        if hashlib.sha256(values).hexdigest() != known:
            notes.append("The originals are not the images of the run: their SHA-256 differs.")
    stored = record.get("run", {}).get("warnings")
    return notes + (str(stored).splitlines() if stored else [])


def _name(page: Page, number: int) -> str:
    names = page.class_names
    return str(names[number]) if names is not None and 0 <= number < len(names) else str(number)


def _classes(result: Result, page: Page) -> dict[str, Any] | None:
    """Return the figure of classes, and how many it leaves out."""
    classes, counts = class_counts(result)
    if not len(classes):
        return None
    often = np.sort(np.argsort(-(counts.sum(0) + counts.sum(1)), kind="stable")[:MOST_CLASSES])
    part = counts[np.ix_(often, often)]
    names = [visible(_name(page, int(number)))[:18] for number in classes[often]]
    from .figures import ACCENT

    return {
        "figure": _svg(lambda: class_figure(classes[often], part, names, ACCENT), "classes"),
        "across": len(often),
        "shown": len(often),
        "left_out": len(classes) - len(often),
        "outside": int(counts.sum() - part.sum()),
        "largest": _largest(page, classes, counts),
    }


def _largest(page: Page, classes: NDArray[Any], counts: NDArray[Any]) -> list[tuple[str, str, int]]:
    """Return the most frequent pairs of a label and the class reached, with their counts."""
    order = np.argsort(-counts, axis=None, kind="stable")[:5]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [
        (_name(page, int(classes[a])), _name(page, int(classes[b])), int(counts[a, b]))
        for a, b in pairs
        if counts[a, b]
    ]


def _class_rows(result: Result, page: Page) -> list[list[str]]:
    """Return the rows of the table of classes."""
    return [
        [
            _name(page, entry.label),
            f"{entry.images:,}",
            f"{entry.adversarial:,}",
            f"{entry.already_adversarial:,}",
            "" if math.isnan(entry.mean) else f"{entry.mean:.4g}",
            "" if math.isnan(entry.median) else f"{entry.median:.4g}",
            f"{entry.evaluations:.1f}",
        ]
        for entry in per_class(result, ())
    ]


def _costs(result: Result) -> list[list[str]]:
    """Return the rows of the table of costs: name, sum, mean, median, 99th percentile, largest."""
    if not len(result):
        return []
    rows = []
    for name in ("evaluations", "forwards", "queries", "iterations", "rescues"):
        values = getattr(result, name).astype(np.float64)
        cells = (np.mean(values), np.median(values), np.percentile(values, 99), values.max())
        rows.append([name, f"{values.sum():,.0f}", *(f"{cell:,.4g}" for cell in cells)])
    seconds = result.seconds
    rows.append(["time", precise(seconds), precise(seconds / len(result)), "", "", ""])
    return rows


class _Pictures:
    """The hardest and the easiest images. ``note`` says what is missing."""

    def __init__(self, result: Result, page: Page) -> None:
        self.note = ""
        self._result, self._page = result, page
        changed = result.success & (result.status != status_code("already_adversarial"))
        rows = np.flatnonzero(changed)
        order = rows[np.argsort(result.distortion[rows], kind="stable")]
        self._rows = {"easiest": order[:SHOWN], "hardest": order[::-1][:SHOWN]}
        if len(order) <= SHOWN:
            self._rows = {"adversarial": order}
        self._chosen = np.unique(np.concatenate(list(self._rows.values())))
        adversarial = to_numpy(result.adversarial)[self._chosen]
        try:
            self._adversarial = displayable(adversarial) if len(self._chosen) else adversarial
        except ValueError as error:
            self.note, self._rows = f"There are no pictures: {error}.", {}
            return
        if page.images is None:
            self.note = (
                "The originals are not part of a result: give images= (on the command line "
                "--images) to see them, and the differences."
            )
        elif len(self._chosen):
            chosen = np.asarray(to_numpy(page.images)[self._chosen])
            self._originals = displayable(chosen.reshape(adversarial.shape))

    def groups(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Return each group with its cards."""
        return [
            (name, [self._card(int(row)) for row in rows])
            for name, rows in self._rows.items()
            if len(rows)
        ]

    def _card(self, row: int) -> dict[str, Any]:
        result, page = self._result, self._page
        place = int(np.searchsorted(self._chosen, row))
        pictures = self._adversarial
        low, high = float(pictures.min()), float(pictures.max())
        shown = []
        if page.images is not None:
            low = min(low, float(self._originals.min()))
            high = max(high, float(self._originals.max()))
        span = high - low or 1.0
        if page.images is not None:
            difference = (self._adversarial[place] - self._originals[place]) / span
            largest = float(np.abs(difference).max())
            factor = max([f for f in MAGNIFIED if f * largest <= 0.5], default=1)
            shown += [
                ("original", _png((self._originals[place] - low) / span)),
                ("adversarial", _png((pictures[place] - low) / span)),
                (f"difference ×{factor}", _png(0.5 + factor * difference, "RdBu_r")),
            ]
        else:
            shown.append(("adversarial", _png((pictures[place] - low) / span)))
        label = int(result.label[row])
        return {
            "number": row,
            "name": None if page.image_names is None else page.image_names[row],
            "label": _name(page, label) if label >= 0 else None,
            "reached": _name(page, int(result.prediction[row])),
            "distortion": f"{float(result.distortion[row]):.4g}",
            "status": status_names().get(int(result.status[row]), ""),
            "pictures": shown,
        }


def _png(values: NDArray[np.float64], colors: str = "gray") -> str:
    """Return a picture (H, W) or (H, W, 3) of values in [0, 1] as the address of a PNG."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, np.clip(values, 0, 1), cmap=colors, vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
