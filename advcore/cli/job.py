"""The commands `advcore job run` and `advcore job status`, and `advcore attack --out FOLDER`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import advcore

from .. import jobs
from ..jobs.inputs import file_hash
from ..jobs.picture_folder import open_folder
from ..options import Options
from .app import (
    RAISED,
    UNFINISHED,
    WITHOUT_RESULT,
    Stage,
    app,
    one_line_errors,
    print_json,
    print_note,
    printing,
)
from .arguments import class_numbers, is_class_file
from .panels import RUN, Debug, Json, Quiet, option
from .sources import Sources, load_model, read_arrays

FORMAT = "advcore.job.1"
"""Name of the form of the JSON object."""
job_app = typer.Typer(
    no_args_is_help=True, help="Attacks on data sets that keep what is finished, and go on."
)
app.add_typer(job_app, name="job")


@job_app.command("run")
def run_job(
    file: Annotated[Path, typer.Argument(help="job file, .toml (docs/jobs.md)")],
    shard: Annotated[
        str | None,
        option(RUN, "attack every N-th block alone, from the K-th on", metavar="K/N"),
    ] = None,
    retry: Annotated[
        bool, option(RUN, "attack blocks again on which the model raised", "--retry", metavar="")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Attacks the images of a job file. The same command goes on where it was ended."""
    with one_line_errors(debug, quiet) as stage:
        spec = jobs.read_job(file)

        def run() -> jobs.JobStatus:
            return jobs.run_job(spec, shard=shard, retry=retry, progress=not quiet)

        keep_blocks(spec.output, stage, run, json, quiet)


@job_app.command("status")
def show_status(
    folder: Annotated[Path, typer.Argument(help="output of the job")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Shows how far a job is, also while it runs."""
    with one_line_errors(debug):
        _print_status(jobs.status(folder), json)


def _print_status(status: jobs.JobStatus, json: bool) -> None:
    """Print how far a job is, as text or as one JSON object."""
    with printing():
        if json:
            facts = {**asdict(status), "folder": str(status.folder)}
            print_json({"format": FORMAT, **facts, "remaining_seconds": status.remaining_seconds})
        else:
            print(status.text())


def attack_blocks(
    sources: Sources,
    out: Path,
    block: int | None,
    shard: tuple[int, int] | None,
    options: dict[str, Any],
    stage: Stage,
    json: bool,
    quiet: bool,
) -> None:
    """Attack the images block by block and keep what is finished in a folder, as a job does."""
    model = load_model(sources.model)
    targets = sources.targets
    source: jobs.Source
    if sources.folder is not None:
        source = _open_pictures(sources, model, out)
    else:
        inputs = read_arrays(sources, Options(**options)).part(slice(sources.count))
        words = {"images": sources.images, "labels": sources.labels}
        if targets is not None and is_class_file(targets):
            words["targets"], targets = targets, None
        hashes = {
            name: file_hash(Path(word)) if Path(word).is_file() else str(word)
            for name, word in words.items()
            if word is not None
        }
        source = jobs.MemorySource(
            inputs.images, inputs.labels, inputs.targets, hashes=hashes if sources.images else None
        )

    def run() -> jobs.JobStatus:
        return jobs.run(
            model,
            source,
            out,
            block=block,
            images="float32" if sources.folder is None else "png",
            targets=targets,
            untargeted=sources.untargeted,
            names=None if sources.folder is None else sources.folder.names_file,
            shard=shard,
            model_name=sources.model,
            progress=not quiet,
            **options,
        )

    keep_blocks(out, stage, run, json, quiet)


def _open_pictures(sources: Sources, model: Any, out: Path) -> jobs.Source:
    """Open the first pictures of a folder. Those that cannot be read count."""
    assert sources.folder is not None
    if sources.targets is not None and is_class_file(sources.targets):
        raise ValueError("--targets: a file needs a .npy file as --images where --out is a folder")
    spec = jobs.InputSpec("pictures", str(sources.images), size=sources.folder.size, leave_out=out)
    try:
        source = open_folder(spec, model)
    except ValueError as error:
        text = str(error).replace("input.path", "--images").replace("input.size", "--size")
        raise ValueError(text) from None
    names = source.names[: sources.count]
    labels = None
    if sources.labels is not None:
        labels = class_numbers(sources.labels, "--labels", len(names))
    if labels is not None:
        if len(labels) < len(names):
            raise ValueError(f"--labels has {len(labels)} entries for {len(names)} pictures")
        labels = labels[: len(names)].astype(np.int64)
    return replace(source, names=names, labels=labels)


def keep_blocks(
    out: Path, stage: Stage, run: Callable[[], jobs.JobStatus], json: bool, quiet: bool
) -> None:
    """Run a job, print what is on disk at its end, and exit with the code of what happened."""
    stage.name = f"(what is finished is kept in {out}; the same command goes on)"
    try:
        status = run()
    except (advcore.ModelError, advcore.DeviceError, jobs.NotWritten) as error:
        print_note(f"error: {str(error).partition('; the exception')[0]}")
        raise typer.Exit(RAISED) from None
    if json or not quiet:
        _print_status(status, json)
    if status.blocks_left:
        print_note(f"error: the time limit has passed {stage.name}")
        raise typer.Exit(UNFINISHED)
    if status.done.unreadable or status.done.failed:
        print_note("error: some images have no result; the column error of the table says why")
        raise typer.Exit(WITHOUT_RESULT)
