"""The page of a result: `advcore report`, and `advcore attack --report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import advcore

from .._extras import require
from ..jobs.classes import read_names
from .app import app, one_line_errors, printing
from .arguments import array, check_writable, distortions

if TYPE_CHECKING:
    from ..result import Result
    from .pictures import PictureFolder

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class PageFile:
    """A page that is written after a run."""

    path: Path
    eps: Sequence[float]
    names: list[str] | None

    def write(self, result: Result, images: Any, folder: PictureFolder | None) -> None:
        """Write the page of a result of these images. Pictures of a folder have names."""
        names, image_names = self.names, None
        if folder is not None:
            names = names or folder.class_names
            image_names = [path.relative_to(folder.folder).as_posix() for path in folder.files]
        result.report(self.path, images, class_names=names, image_names=image_names, eps=self.eps)


def page_file(path: Path, eps: Sequence[float], names: Path | None) -> PageFile:
    """Return the page, and raise now what writing it would raise after a long run."""
    check_writable(path, "--report", SUFFIXES)
    for package in ("jinja2", "matplotlib"):
        require(package, "report", "--report")
    return PageFile(path, eps, None if names is None else read_names(names))


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="RESULT", help="result of advcore attack, .npz")],
    images: Annotated[
        Path | None,
        typer.Option(help=".npy, (N, ...) clean images of the result; default: without them"),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help=".npy, (N,) true classes; default: those of the result")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="names of the classes, .json or one a line")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the page there (.html); default: beside the result")
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="distortions in the table of accuracies, as in 0.25,0.5,1", metavar="NUMBERS"
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Writes a page about a stored result: figures, curve, classes, images, costs, options."""
    with one_line_errors(debug):
        target = file.with_suffix(".html") if out is None else out
        check_writable(target, "--out", SUFFIXES)
        result = advcore.Result.load(file)
        clean = None if images is None else array(images, "--images", mapped=True)
        classes = None if labels is None else array(labels, "--labels")
        named = None if names is None else read_names(names)
        result.report(target, clean, classes, named, eps=distortions(eps))
        with printing():
            print(f"report: {target}")
