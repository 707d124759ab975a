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
from .arguments import array, check_writable, class_numbers, distortions
from .panels import INPUT, OUTPUT, Debug, Eps, Quiet, complete_file, option

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
        option(
            INPUT,
            ".npy, (N, ...) clean images of the result; default: without them",
            metavar="FILE",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        option(
            INPUT,
            "true classes: .npy, .csv, .txt, or one number; default: those of the result",
            metavar="FILE",
            autocompletion=complete_file,
        ),
    ] = None,
    names: Annotated[
        Path | None, option(INPUT, "names of the classes, .json or one a line", metavar="FILE")
    ] = None,
    out: Annotated[
        Path | None,
        option(OUTPUT, "write the page there (.html); default: beside the result", metavar="FILE"),
    ] = None,
    eps: Eps = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Writes a page about a stored result: figures, curve, classes, images, costs, options."""
    with one_line_errors(debug, quiet):
        target = file.with_suffix(".html") if out is None else out
        check_writable(target, "--out", SUFFIXES)
        result = advcore.Result.load(file)
        clean = None if images is None else array(images, "--images", mapped=True)
        classes = None if labels is None else class_numbers(labels, "--labels", len(result))
        named = None if names is None else read_names(names)
        result.report(target, clean, classes, named, eps=distortions(eps))
        with printing():
            if not quiet:
                print(f"report: {target}")
