"""The command `advcore attack`, which runs `minimize_distortion` on files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import advcore

from ..jobs.plan import check_shard
from ..options import Options, option_info, split_former_norm
from ..result.statistics import (
    accuracy_rows,
    distortion_text,
    evaluations_text,
    statistics,
)
from .app import (
    COMMAND,
    INTERRUPTED,
    ISA_NAMES,
    RAISED,
    Stage,
    app,
    one_line_errors,
    print_note,
    printing,
    with_dashes,
    without_interrupt,
)
from .arguments import AttackInputs, check_writable, distortions, is_job_folder
from .job import attack_blocks
from .pictures import PictureFolder
from .report import PageFile, page_file
from .sources import Sources, read_inputs

if TYPE_CHECKING:
    from ..result import Result
    from ..result.record import Record

PANEL = "Options of the search (docs/options.md)"
"""Heading of the options of `Options` in the help."""


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Options` that the command line has.

    Names, types, defaults and texts are those of `Options`. The command gets them as keywords.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [entry for entry in fields(Options) if option_info(entry.name).command_type]
    parameters += map(_parameter, options)
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _parameter(entry: Field[Any]) -> inspect.Parameter:
    """Return the parameter of a command, as typer reads it."""
    info = option_info(entry.name)
    kind: Any = info.command_type
    text = f"{info.help}; default: {info.without}" if info.without else info.help
    settings: dict[str, Any] = {"help": text, "rich_help_panel": PANEL}
    if info.check.choices:
        settings["metavar"] = f"[{'|'.join(info.check.choices)}]"
    if inspect.isfunction(kind):
        settings["parser"], kind = kind, str
    if entry.default is None:
        kind = kind | None
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=entry.default,
        annotation=Annotated[kind, typer.Option(**settings)],
    )


@app.command()
@with_options
def attack(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="net.onnx, model.pt2 (torch.export), network.safetensors, my_module.py:build, "
            "package.module:build, or a name of advcore.models such as squeezenet1_0; default: "
            "the network of the package"
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help=".npy, (N, ...), or a folder of PNG and JPEG files, or of folders of them; "
            "default: the digits of the package"
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help=".npy, (N,) true classes; default: the model's prediction; of the package's "
            "digits their own"
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="class each image shall be taken for: next-likeliest, random, a number or name, "
            "or .npy, (N,); default: random for the package's digits, untargeted for your own "
            "images"
        ),
    ] = None,
    untargeted: Annotated[bool, typer.Option("--untargeted", help="any wrong class will do")] = (
        False
    ),
    starts: Annotated[
        Path | None, typer.Option(help=".npy, (N, ...) adversarial images to start from too")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="attack the first COUNT images; default: all", min=0)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="write the result there (.npz), or keep each finished block in a folder of that "
            "name, where the same command goes on; default: nowhere"
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            help="images of a block where --out is a folder; default: 4,096, of large ones fewer",
            min=1,
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="attack a part of the images alone, as in 3/8")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="write original, adversarial, magnified difference there; default: "
            "advcore_attack.png for the package's digits, grid.png in --output for a folder, "
            "nowhere for your own arrays"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="folder for the pictures and table.csv where --images is a folder; default: "
            "advcore_pictures"
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="write a page about the result there (.html); default: nowhere. `advcore report` "
            "makes it later"
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="side of the pictures of a folder; default: the model's", min=1),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="names of the classes, .json or one a line; default: ImageNet's for 1,000 "
            "classes, from ADVCORE_DATA"
        ),
    ] = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="distortions at which the accuracy under attack is printed, as in 0.25,0.5,1",
            metavar="NUMBERS",
        ),
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="write no picture")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
    **options: Any,
) -> None:
    """Finds the smallest change of each image that gives it another class.

    Without options: the package's network and its 1,000 MNIST digits, random targets.
    """
    with one_line_errors(debug) as stage:
        options["norm"], options["penalty"] = split_former_norm(
            options["norm"], options["penalty"], dashes="--"
        )
        limits = distortions(eps)
        checked = Options(**options)  # raises for wrong values before any file is read
        if targets is not None and untargeted:
            raise ValueError("--targets and --untargeted exclude each other")
        part = check_shard(shard, "--shard")
        is_job = is_job_folder(out)
        if out is not None:
            check_writable(out, "--out", () if is_job else [".npz"])
        folder = None
        if images is not None and images.is_dir():
            folder = PictureFolder(images, output or Path("advcore_pictures"), size, names)
            options["levels"] = _picture_levels(options)
        elif (output, size) != (None, None):
            raise ValueError("--output and --size need a folder of pictures as --images")
        elif names is not None and report is None:
            raise ValueError("--names needs a folder of pictures as --images, or --report")
        sources = Sources(model, images, labels, targets, untargeted, starts, count, folder)
        if is_job:
            if (starts, picture, output, eps, report) != (None,) * 5:
                raise ValueError(
                    "--starts, --picture, --output, --eps and --report need a name.npz as --out"
                )
            attack_blocks(sources, Path(str(out)), block, part, options, stage)
            return
        if block is not None:
            raise ValueError("--block needs a folder as --out")
        inputs = read_inputs(sources, checked, part)
        if picture is None and images is None:
            picture = Path("advcore_attack.png")
        if no_picture:
            picture = None
        if picture is not None:
            from ..report import picture_suffixes

            check_writable(picture, "--picture", picture_suffixes())
        page = None if report is None else page_file(report, limits, names)
        result, stop = _run(inputs, stage, options)
        _complete_record(result.record, sources, context.meta[COMMAND], stage.warnings)
        if folder is not None and not no_picture:
            picture = picture or folder.output / "grid.png"
        with without_interrupt():
            lines, unwritten = _write(inputs, result, out, folder, picture, page)
            with printing():
                _print_table(result, limits)
                print(*lines, sep="\n", end="\n" if lines else "")
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
    inputs: AttackInputs,
    result: Result,
    out: Path | None,
    folder: PictureFolder | None,
    picture: Path | None,
    page: PageFile | None,
) -> tuple[list[str], OSError | None]:
    """Write all files of a run, before anything is printed.

    Returns lines that say where they are, and the error that the writing ended with.
    """
    lines = []
    try:
        if out is not None:
            result.save(out)
            lines.append(f"result: {out}")
        if folder is not None:
            lines += folder.write(inputs, result, picture)
        elif picture is not None and len(inputs.images):
            from ..report import picture_grid

            picture_grid(picture, inputs.images, result, labels=inputs.labels)
            lines.append(f"picture: {picture}")
        if page is not None:
            page.write(result, inputs.images, folder)
            lines.append(f"report: {page.path}")
    except OSError as error:
        return lines, error
    return lines, None


def _run(
    inputs: AttackInputs, stage: Stage, options: dict[str, Any]
) -> tuple[Result, BaseException | None]:
    """Run the attack with a progress bar, and return the result and what ended the run early."""

    def note_begin(_: advcore.Progress) -> None:
        stage.name = "after the run"  # During the run Ctrl-C comes as Interrupted.

    try:
        result = advcore.minimize_distortion(
            inputs.model,
            inputs.images,
            inputs.targets,
            labels=inputs.labels,
            starts=inputs.starts,
            progress=True,
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


def _print_table(result: Result, eps: Sequence[float]) -> None:
    table = Table(show_header=False, title="minimum-distortion adversarial examples")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(result, eps):
        table.add_row(name, value)
    Console().print(table)


def summary_rows(result: Result, eps: Sequence[float] = ()) -> list[tuple[str, str]]:
    """Return the lines (name, value) of the table. Distortions are over the successes."""
    figures = statistics(result, eps)
    count, successes = figures["images"], figures["adversarial"]
    share = f" ({successes / count:.1%})" if count else ""
    rows = [("success", f"{successes} of {count}{share}"), *accuracy_rows(result, figures)]
    if successes:
        rms = figures["rms_distortion"]["mean"]
        rows += [
            (f"distortion {result.measure}", distortion_text(result, figures)),
            ("RMS distortion sqrt(mean r^2)", f"mean {rms:.5f}"),
        ]
    if count:
        rate = figures["images_per_second"]
        rows += [
            ("evaluations per image", evaluations_text(figures)),
            ("further forwards per image", f"mean {figures['forwards']['mean']:.1f}"),
            ("images per second", f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"),
            ("status", result.status_text()),
        ]
    rows.append(("seconds", f"{result.seconds:.3f}"))
    rows += [
        (f"engine: {key}", ISA_NAMES.get(str(value), str(value)) if key == "isa" else str(value))
        for key, value in result.engine.items()
    ]
    return rows
