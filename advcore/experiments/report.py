"""The page of a reproduction: every experiment that a folder holds, in one self-contained file."""

from __future__ import annotations

import base64
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import EXPERIMENTS
from .tables import DPI, Outcome, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

INVOCATIONS = "runs.json"
LARGEST_SVG = 300_000
"""Bytes; a larger drawing goes into the page as PNG."""


def write(out: Path) -> None:
    """Writes ``report.html`` from the results and failures below `out`."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"markdown": markdown, "inline": inline, "duration": duration}
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )
    outcomes = [
        Outcome.read(path) for name in EXPERIMENTS if (path := out / name / f"{name}.json").exists()
    ]
    page = template.render(
        outcomes=outcomes,
        failures=failures(out),
        runs=invocations(out),
        image=lambda outcome, figure: image(out / outcome.name, figure.name),
    )
    write_text(out / "report.html", page)


def add_invocation(out: Path, entry: dict[str, Any]) -> None:
    """Appends what is known of one call of `reproduce`."""
    write_text(out / INVOCATIONS, json.dumps([*invocations(out), entry], indent=1) + "\n")


def invocations(out: Path) -> list[dict[str, Any]]:
    """All calls that have written to `out`, the oldest first."""
    path = out / INVOCATIONS
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    return found


def failures(out: Path) -> dict[str, str]:
    """Last line of the traceback by experiment, for those whose last run raised."""
    traces = {name: out / name / "error.txt" for name in EXPERIMENTS}
    return {
        name: path.read_text("utf-8").strip().splitlines()[-1]
        for name, path in traces.items()
        if path.exists()
    }


def image(folder: Path, name: str) -> dict[str, Any]:
    """`src` and `width` of a figure: SVG, or PNG if it is made of pictures or large."""
    picture, drawing = (folder / f"{name}.png").read_bytes(), (folder / f"{name}.svg").read_bytes()
    kind, content = "svg+xml", drawing
    if b"<image" in drawing or len(drawing) > LARGEST_SVG:
        kind, content = "png", picture
    width = int.from_bytes(picture[16:20], "big")  # of the header; CSS has 96 pixels to the inch
    return {
        "src": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        "width": round(width * 96 / DPI),
    }


def markdown(text: str) -> Markup:
    """Paragraphs of Markdown as HTML; HTML in them is shown as it stands."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("js-default").render(text))


def inline(text: str) -> Markup:
    """One line of Markdown as HTML."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("js-default").renderInline(text))


def duration(seconds: float) -> str:
    """Seconds in words: 8.1 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
