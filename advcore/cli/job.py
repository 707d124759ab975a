"""The commands `advcore job run` and `advcore job status`, and `advcore attack --out FOLDER`."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import advcore

from .. import jobs
from ..jobs.inputs import file_hash
from ..jobs.picture_folder import open_folder
from ..options import Options, option_info
from .app import (
    RAISED,
    UNFINISHED,
    WITHOUT_RESULT,
    Stage,
    app,
    exit_with,
    one_line_errors,
    print_note,
    printing,
)
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
        model = load_model(spec.model)
        keep_blocks(
            model,
            jobs.open_source(spec.input, model),
            spec.output,
            stage,
            block=spec.block,
            images=spec.images,
            targets=spec.targets,
            untargeted=spec.untargeted,
            names=spec.names,
            shard=shard or spec.shard,
            retry=retry,
            model_name=spec.model,
            **{entry.name: getattr(spec.options, entry.name) for entry in attack_options()},
        )


@job_app.command("status")
def show_status(
    folder: Annotated[Path, typer.Argument(help="output of the job")],
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Shows how far a job is, also while it runs."""
    with one_line_errors(debug), printing():
        print(jobs.status(folder).text())


def attack_blocks(
    sources: Sources,
    out: Path,
    shard: tuple[int, int] | None,
    options: dict[str, Any],
    stage: Stage,
) -> None:
    """Attack the images block by block and keep what is finished in a folder, as a job does."""
    model = load_model(sources.model)
    targets = sources.targets
    source: jobs.Source
    if sources.folder is not None:
        spec = jobs.InputSpec("pictures", str(sources.images), size=sources.folder.size, leave_out=out)
        pictures = open_folder(spec, model, size_option="--size")
        source = replace(pictures, names=pictures.names[: sources.count])
    else:
        inputs = read_arrays(sources, Options(**options)).part(slice(sources.count))
        paths = {"images": sources.images, "labels": sources.labels}
        if targets is not None and targets.endswith(".npy"):
            paths["targets"], targets = Path(targets), None
        hashes = {name: file_hash(path) for name, path in paths.items() if path is not None}
        source = jobs.MemorySource(
            inputs.images, inputs.labels, inputs.targets, hashes=hashes if sources.images else None
        )
    keep_blocks(
        model,
        source,
        out,
        stage,
        images="float32" if sources.folder is None else "png",
        targets=targets,
        untargeted=sources.untargeted,
        names=None if sources.folder is None else sources.folder.names_file,
        shard=shard,
        model_name=sources.model,
        **options,
    )




def keep_blocks(model: Any, source: jobs.Source, out: Path, stage: Stage, **settings: Any) -> None:
    """Run a job, print what is on disk at its end, and exit with the code of what happened."""
    stage.name = f"; the finished blocks are in {out}, and the same command goes on"
    try:
        status = jobs.run(model, source, out, progress=True, **settings)
    except (advcore.ModelError, advcore.DeviceError, jobs.NotWritten) as error:
        raise exit_with(error) from None
    with printing():
        print(status.text())
    if status.blocks_left:
        print_note(f"error: the time limit has passed{stage.name[1:]}")
        raise typer.Exit(UNFINISHED)
    if status.done.unreadable or status.done.failed:
        print_note("error: some images have no result; the column error of the table says why")
        raise typer.Exit(WITHOUT_RESULT)
