"""The commands `advcore job run` and `advcore job status`, and `advcore attack --out FOLDER`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    print_note,
    printing,
)
from .arguments import array
from .sources import Sources, load_model, read_arrays

job_app = typer.Typer(
    no_args_is_help=True, help="Attacks on data sets that keep what is finished, and go on."
)
app.add_typer(job_app, name="job")


@job_app.command("run")
def run_job(
    file: Annotated[Path, typer.Argument(help="job file, .toml (docs/jobs.md)")],
    shard: Annotated[
        str | None, typer.Option(help="attack every N-th block alone, from the K-th on: K/N")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="attack blocks again on which the model raised")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Attacks the images of a job file. The same command goes on where it was ended."""
    with one_line_errors(debug) as stage:
        spec = jobs.read_job(file)

        def run() -> jobs.JobStatus:
            return jobs.run_job(spec, shard=shard, retry=retry, progress=True)

        keep_blocks(spec.output, stage, run)


@job_app.command("status")
def show_status(
    folder: Annotated[Path, typer.Argument(help="output of the job")],
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Shows how far a job is, also while it runs."""
    with one_line_errors(debug):
        text = jobs.status(folder).text()
        with printing():
            print(text)


def attack_blocks(
    sources: Sources,
    out: Path,
    block: int | None,
    shard: tuple[int, int] | None,
    options: dict[str, Any],
    stage: Stage,
) -> None:
    """Attack the images block by block and keep what is finished in a folder, as a job does."""
    model = load_model(sources.model)
    targets = sources.targets
    source: jobs.Source
    if sources.folder is not None:
        source = _open_pictures(sources, model, out)
    else:
        inputs = read_arrays(sources, Options(**options)).part(slice(sources.count))
        paths = {"images": sources.images, "labels": sources.labels}
        if targets is not None and targets.endswith(".npy"):
            paths["targets"], targets = Path(targets), None
        hashes = {name: file_hash(path) for name, path in paths.items() if path is not None}
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
            progress=True,
            **options,
        )

    keep_blocks(out, stage, run)


def _open_pictures(sources: Sources, model: Any, out: Path) -> jobs.Source:
    """Open the first pictures of a folder. Those that cannot be read count."""
    assert sources.folder is not None
    if sources.targets is not None and sources.targets.endswith(".npy"):
        raise ValueError(
            "--targets: a .npy file needs a .npy file as --images where --out is a folder"
        )
    spec = jobs.InputSpec("pictures", str(sources.images), size=sources.folder.size, leave_out=out)
    try:
        source = open_folder(spec, model)
    except ValueError as error:
        text = str(error).replace("input.path", "--images").replace("input.size", "--size")
        raise ValueError(text) from None
    names = source.names[: sources.count]
    labels = None if sources.labels is None else array(sources.labels, "--labels")
    if labels is not None:
        if len(labels) < len(names):
            raise ValueError(f"--labels has {len(labels)} entries for {len(names)} pictures")
        labels = labels[: len(names)].astype(np.int64)
    return replace(source, names=names, labels=labels)


def keep_blocks(out: Path, stage: Stage, run: Callable[[], jobs.JobStatus]) -> None:
    """Run a job, print what is on disk at its end, and exit with the code of what happened."""
    stage.name = f"(what is finished is kept in {out}; the same command goes on)"
    try:
        status = run()
    except (advcore.ModelError, advcore.DeviceError, jobs.NotWritten) as error:
        print_note(f"error: {str(error).partition('; the exception')[0]}")
        raise typer.Exit(RAISED) from None
    with printing():
        print(status.text())
    if status.blocks_left:
        print_note(f"error: the time limit has passed {stage.name}")
        raise typer.Exit(UNFINISHED)
    if status.done.unreadable or status.done.failed:
        print_note("error: some images have no result; the column error of the table says why")
        raise typer.Exit(WITHOUT_RESULT)
