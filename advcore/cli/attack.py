"""The command `advcore attack`, which runs `minimize_distortion` on files."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import advcore

from ..jobs.plan import check_shard
from ..options import Options, split_former_norm
from .app import (
    COMMAND,
    INTERRUPTED,
    RAISED,
    Stage,
    app,
    one_line_errors,
    print_json,
    print_note,
    printing,
    with_dashes,
    without_interrupt,
)
from .arguments import AttackInputs, check_writable, distortions, is_job_folder
from .job import attack_blocks
from .panels import (
    INPUT,
    OUTPUT,
    RUN,
    Debug,
    Eps,
    Json,
    Quiet,
    complete_file,
    complete_model,
    option,
    with_options,
)
from .pictures import PictureFolder
from .report import PageFile, page_file
from .sources import Sources, read_inputs
from .summary import print_table, summary_json

if TYPE_CHECKING:
    from ..result import Result
    from ..result.record import Record

Written = list[tuple[str, Path, str]]
"""Files of a run: what each is, its path, and a note that follows it in the text."""


@dataclass(frozen=True)
class Outputs:
    """What a run writes and prints."""

    out: Path | None
    picture: Path | None
    page: PageFile | None
    eps: Sequence[float]
    json: bool
    quiet: bool


@app.command()
@with_options
def attack(
    context: typer.Context,
    model: Annotated[
        str | None,
        option(
            INPUT,
            "net.onnx, model.pt2 (torch.export), network.safetensors, my_module.py:build, "
            "package.module:build, or a name of advcore.models such as squeezenet1_0; default: "
            "the network of the package",
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        option(
            INPUT,
            ".npy, (N, ...), or a folder of PNG and JPEG files, or of folders of them; default: "
            "the digits of the package",
            metavar="FILE",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        option(
            INPUT,
            "true classes: .npy, (N,), a text with a number for each image (.csv, .txt), or one "
            "number; default: the model's prediction; of the package's digits their own",
            metavar="FILE",
            autocompletion=complete_file,
        ),
    ] = None,
    targets: Annotated[
        str | None,
        option(
            INPUT,
            "class each image shall be taken for: next-likeliest, random, a number or name, or a "
            "file as for --labels; default: random for the package's digits, untargeted for your "
            "own images",
            metavar="CLASS",
        ),
    ] = None,
    untargeted: Annotated[
        bool, option(INPUT, "any wrong class will do", "--untargeted", metavar="")
    ] = False,
    starts: Annotated[
        Path | None,
        option(INPUT, ".npy, (N, ...) adversarial images to start from too", metavar="FILE"),
    ] = None,
    count: Annotated[
        int | None,
        option(INPUT, "attack the first COUNT images; default: all", min=0, metavar="COUNT"),
    ] = None,
    size: Annotated[
        int | None,
        option(
            INPUT, "side of the pictures of a folder; default: the model's", min=1, metavar="PIXELS"
        ),
    ] = None,
    names: Annotated[
        Path | None,
        option(
            INPUT,
            "names of the classes, .json or one a line; default: ImageNet's for 1,000 classes, "
            "from ADVCORE_DATA",
            metavar="FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            OUTPUT,
            "write the result there (.npz), or keep each finished block in a folder of that name, "
            "where the same command goes on; default: nowhere",
            metavar="PATH",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        option(
            OUTPUT,
            "folder for the pictures and table.csv where --images is a folder; default: "
            "advcore_pictures",
            metavar="FOLDER",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        option(
            OUTPUT,
            "write original, adversarial, magnified difference there; default: advcore_attack.png "
            "for the package's digits, grid.png in --pictures for a folder, nowhere for your own "
            "arrays",
            metavar="FILE",
        ),
    ] = None,
    no_picture: Annotated[
        bool, option(OUTPUT, "write no picture", "--no-picture", metavar="")
    ] = False,
    report: Annotated[
        Path | None,
        option(
            OUTPUT,
            "write a page about the result there (.html); default: nowhere; advcore report makes "
            "it later",
            metavar="FILE",
        ),
    ] = None,
    eps: Eps = None,
    json: Json = False,
    quiet: Quiet = False,
    block: Annotated[
        int | None,
        option(
            RUN,
            "images of a block where --out is a folder; default: 4,096, of large ones fewer",
            min=1,
            metavar="COUNT",
        ),
    ] = None,
    shard: Annotated[
        str | None, option(RUN, "attack a part of the images alone, as in 3/8", metavar="K/N")
    ] = None,
    debug: Debug = False,
    output: Annotated[Path | None, option(OUTPUT, "former name of --pictures", hidden=True)] = None,
    **options: Any,
) -> None:
    """Finds the smallest change of each image that gives it another class.

    Without options: the package's network and its 1,000 MNIST digits, random targets.
    """
    with one_line_errors(debug, quiet) as stage:
        options["norm"], options["penalty"] = split_former_norm(
            options["norm"], options["penalty"], dashes="--"
        )
        outputs = Outputs(out, picture, None, distortions(eps), json, quiet)
        checked = Options(**options)  # raises for wrong values before any file is read
        if targets is not None and untargeted:
            raise ValueError("--targets and --untargeted exclude each other")
        part = check_shard(shard, "--shard")
        pictures = _pictures(pictures, output)
        is_job = is_job_folder(out)
        if out is not None:
            check_writable(out, "--out", () if is_job else [".npz"])
        folder = None
        if images is not None and images.is_dir():
            folder = PictureFolder(images, pictures or Path("advcore_pictures"), size, names)
            options["levels"] = _picture_levels(options)
        elif (pictures, size) != (None, None):
            raise ValueError("--pictures and --size need a folder of pictures as --images")
        elif names is not None and report is None:
            raise ValueError("--names needs a folder of pictures as --images, or --report")
        sources = Sources(model, images, labels, targets, untargeted, starts, count, folder)
        if is_job:
            if (starts, picture, pictures, eps, report) != (None,) * 5:
                raise ValueError(
                    "--starts, --picture, --pictures, --eps and --report need a name.npz as --out"
                )
            attack_blocks(sources, Path(str(out)), block, part, options, stage, json, quiet)
            return
        if block is not None:
            raise ValueError("--block needs a folder as --out")
        inputs = read_inputs(sources, checked, part)
        outputs = replace(
            outputs,
            picture=_picture(outputs.picture, no_picture, folder, images),
            page=None if report is None else page_file(report, outputs.eps, names),
        )
        result, stop = _run(inputs, stage, options, not quiet)
        _complete_record(result.record, sources, context.meta[COMMAND], stage.warnings)
        with without_interrupt():
            written, unwritten = _write(inputs, result, folder, outputs)
            with printing():
                _print(result, outputs, written, _ended(stop, unwritten))
    _raise_stop(stop, unwritten)


def _pictures(pictures: Path | None, output: Path | None) -> Path | None:
    """Return the folder of --pictures, which may have its former name."""
    if output is None:
        return pictures
    if pictures is not None:
        raise ValueError("--output is the former name of --pictures: give one of them, not both")
    warnings.warn(
        "--output is --pictures now; the next release has no --output", FutureWarning, stacklevel=2
    )
    return output


def _picture(
    picture: Path | None, no_picture: bool, folder: PictureFolder | None, images: Path | None
) -> Path | None:
    """Return the file of the picture, and raise now what writing it would raise."""
    if no_picture:
        return None
    if picture is None and folder is not None:
        return folder.output / "grid.png"
    if picture is None and images is None:
        picture = Path("advcore_attack.png")
    if picture is not None:
        from ..report import picture_suffixes

        check_writable(picture, "--picture", picture_suffixes())
    return picture


def _print(result: Result, outputs: Outputs, written: Written, ended: str) -> None:
    """Print what came out, unless all is to be quiet."""
    if outputs.json:
        files = {name: path for name, path, _ in written}
        print_json(summary_json(result, outputs.eps, files, ended))
    elif not outputs.quiet:
        print_table(result, outputs.eps)
        for name, path, note in written:
            print(f"{name}: {path}{note}")


def _ended(stop: BaseException | None, unwritten: OSError | None) -> str:
    """Return "finished", or what ended the run early."""
    if isinstance(stop, KeyboardInterrupt):
        return "interrupted"
    error = stop or unwritten
    return "finished" if error is None else " ".join(str(error).split())


def _raise_stop(stop: BaseException | None, unwritten: OSError | None) -> None:
    """Raise the exit of a run that was ended early, or that could not write all files."""
    if isinstance(stop, KeyboardInterrupt):
        print_note("error: interrupted; the images finished so far are in the result")
        raise typer.Exit(INTERRUPTED)
    if stop is not None:
        raise _exit_with(stop)
    if unwritten is not None:
        raise _exit_with(unwritten)


def _picture_levels(options: dict[str, Any]) -> int:
    """Return the levels of pictures, whose files have 8 bits."""
    if options["levels"] not in (None, 256) or options["bounds"] != (0.0, 1.0):
        raise ValueError("a folder of pictures is attacked with --levels 256, --bounds 0 1")
    return 256


def _write(
    inputs: AttackInputs, result: Result, folder: PictureFolder | None, outputs: Outputs
) -> tuple[Written, OSError | None]:
    """Write all files of a run, before anything is printed.

    Returns what was written, and the error that the writing ended with.
    """
    written: Written = []
    try:
        if outputs.out is not None:
            result.save(outputs.out)
            written.append(("result", outputs.out, ""))
        if folder is not None:
            written += folder.write(inputs, result, outputs.picture)
        elif outputs.picture is not None and len(inputs.images):
            from ..report import picture_grid

            picture_grid(outputs.picture, inputs.images, result, labels=inputs.labels)
            written.append(("picture", outputs.picture, ""))
        if outputs.page is not None:
            outputs.page.write(result, inputs.images, folder)
            written.append(("report", outputs.page.path, ""))
    except OSError as error:
        return written, error
    return written, None


def _run(
    inputs: AttackInputs, stage: Stage, options: dict[str, Any], progress: bool
) -> tuple[Result, BaseException | None]:
    """Run the attack, and return the result and what ended the run early."""

    def note_begin(_: advcore.Progress) -> None:
        stage.name = "after the run"  # During the run Ctrl-C comes as Interrupted.

    try:
        result = advcore.minimize_distortion(
            inputs.model,
            inputs.images,
            inputs.targets,
            labels=inputs.labels,
            starts=inputs.starts,
            progress=progress,
            callback=note_begin,
            record=True,
            **options,
        )
    except (advcore.Interrupted, advcore.ModelError, advcore.DeviceError) as stop:
        if stop.result is None:  # The GPU failed before anything was computed.
            raise _exit_with(stop) from None
        return stop.result, stop
    return result, None


def _complete_record(
    record: Record, sources: Sources, command: str, warnings: Sequence[str]
) -> None:
    """Add to the record what the command line alone knows."""
    record["model"]["name"] = sources.model or "the network of the package"
    record["run"]["command"] = command
    if warnings:
        record["run"]["warnings"] = "\n".join(warnings)
    if (
        sources.images is not None
        and sources.labels is None
        and record["input"]["labels"] == "given"
    ):
        record["input"]["labels"] = "predicted"  # They were asked of the model for the targets.


def _exit_with(error: BaseException) -> typer.Exit:
    """Print an error of the model, the GPU or the disk as one line, and return the exit."""
    text = " ".join(str(error).split())
    text = text.replace("the exception's .result holds", "the table and --out hold")
    print_note(f"error: {with_dashes(text)}")
    return typer.Exit(RAISED)
