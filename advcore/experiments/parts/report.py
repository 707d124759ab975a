"""The page of a reproduction, one self-contained file with every experiment of a folder."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advcore._files import write_text

from .tables import DPI, Outcome

if TYPE_CHECKING:
    from markupsafe import Markup

INVOCATIONS = "runs.json"
LARGEST_SVG = 300_000
"""Size in bytes above which a drawing goes into the page as PNG."""


def write(out: Path, names: Sequence[str]) -> None:
    """Write ``report.html`` from the results and failures of these experiments below `out`.

    An experiment whose files are damaged stands among the failures.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"markdown": markdown, "inline": inline, "duration": duration}
    template = environment.from_string(
        resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )

    def page(outcomes: Sequence[Outcome], failed: dict[str, str], runs: Sequence[Any]) -> str:
        return template.render(
            outcomes=outcomes,
            failures=failed,
            runs=runs,
            image=lambda outcome, figure: image(out / outcome.name, figure.name),
        )

    outcomes, failed, runs = [], failures(out, names), []
    for name in names:
        path = out / name / f"{name}.json"
        if not path.exists():
            continue
        try:
            outcome = Outcome.read(path)
            page([outcome], {}, [])
        except Exception as error:  # A damaged file has anything in the place of anything.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            failed[name] = f"its files are damaged ({reason}); run it again"
        else:
            outcomes.append(outcome)
    for entry in invocations(out):
        with suppress(Exception):  # as above
            page([], {}, [entry])
            runs.append(entry)
    write_text(out / "report.html", page(outcomes, failed, runs))


def add_invocation(out: Path, entry: dict[str, Any]) -> None:
    """Append the facts of one call of `reproduce` to ``runs.json``.

    A damaged list is kept as ``runs.json.damaged``, and a new one begins.
    """
    path = out / INVOCATIONS
    if path.exists() and _invocations(path) is None:
        path.replace(path.with_name(f"{INVOCATIONS}.damaged"))
    write_text(out / INVOCATIONS, json.dumps([*invocations(out), entry], indent=1) + "\n")


def invocations(out: Path) -> list[dict[str, Any]]:
    """Return the facts of all calls that have written to `out`, the oldest first."""
    path = out / INVOCATIONS
    return (_invocations(path) if path.exists() else None) or []


def _invocations(path: Path) -> list[dict[str, Any]] | None:
    """Return the entries of ``runs.json``, or None if it is damaged."""
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    return entries if whole else None


def failures(out: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the last line of the traceback of each experiment whose last run raised."""
    traces = {name: out / name / "error.txt" for name in names}
    last_lines = {}
    for name, path in traces.items():
        if path.exists():
            lines = path.read_text("utf-8", errors="replace").strip().splitlines()
            last_lines[name] = lines[-1] if lines else "error.txt is empty"
    return last_lines


def image(folder: Path, name: str) -> dict[str, Any]:
    """Return `src` and `width` of a figure, as PNG if it has pictures or is large, else as SVG."""
    picture, drawing = (folder / f"{name}.png").read_bytes(), (folder / f"{name}.svg").read_bytes()
    kind, content = "svg+xml", drawing
    if b"<image" in drawing or len(drawing) > LARGEST_SVG:
        kind, content = "png", picture
    width = int.from_bytes(picture[16:20], "big")  # from the header; CSS has 96 pixels to the inch
    return {
        "src": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        "width": round(width * 96 / DPI),
    }


def markdown(text: str) -> Markup:
    """Convert paragraphs of Markdown to HTML, and show HTML in them as text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("js-default").render(text))


def inline(text: str) -> Markup:
    """Convert one line of Markdown to HTML."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("js-default").renderInline(text))


def duration(seconds: float) -> str:
    """Format seconds, for example as "8.1 s", "3 min 20 s" or "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
