"""Commands of `advcore`: attack, info. Needs typer and rich (``pip install "advcore[cli]"``)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import advcore

from . import data, models, validate
from .models import loading
from .result import already_note, images_per_second

if TYPE_CHECKING:
    from .result import Result

RAISED = 1
BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_ISA = {"v4": "AVX-512 (v4)", "v3": "AVX2 (v3)", "base": "baseline (base)"}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"advcore {advcore.__version__}")
        raise typer.Exit


@app.callback()
def advcore_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="show it and exit"),
    ] = False,
) -> None:
    """Minimum-distortion adversarial examples."""


@app.command()
def attack(
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
            help=".npy, (N, ...), or a folder of PNG and JPEG files; default: the digits of the "
            "package"
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
    count: Annotated[
        int | None, typer.Option(help="attack the first COUNT images; default: all", min=0)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the result there (.npz); default: nowhere")
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
    no_picture: Annotated[bool, typer.Option("--no-picture", help="write no picture")] = False,
    effort: Annotated[
        str | None, typer.Option(help="fast, default or thorough; default: default")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="margin or cross_entropy; default: margin")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="l2 or l2_unsquared; default: l2")] = None,
    c_search: Annotated[str | None, typer.Option(help="fused or bisection; default: fused")] = None,
    c_init: Annotated[
        float | None, typer.Option(help="first c; default: from the linearised problem")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="margin required, in logits; default: 1e-4")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="relative change of c and of x that ends a search; default: 1e-3"),
    ] = None,
    history: Annotated[int | None, typer.Option(help="pairs of L-BFGS, 3 to 8; default: 5")] = None,
    bounds: Annotated[
        tuple[float, float] | None,
        typer.Option(help="least and largest value of a pixel; default: 0 1"),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            help="results on a grid of so many values, 256 for 8 bits; default: no grid, for a "
            "folder of pictures 256"
        ),
    ] = None,
    starts: Annotated[
        Path | None, typer.Option(help=".npy, (N, ...) adversarial images to start from too")
    ] = None,
    max_evaluations: Annotated[
        int | None, typer.Option(help="budget of each image; default: none but that of the effort")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="seconds for the whole run; default: no limit")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="images in work at once; default: chosen for the model")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: ADVCORE_NUM_THREADS, else all CPUs")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, or a device of torch; default: the model's")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the random targets and of the engine", min=0)] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
) -> None:
    """Finds the smallest change of each image that gives it another class.

    Without options: the package's network and its 1,000 MNIST digits, random targets.
    """
    options = {
        "effort": effort,
        "loss": loss,
        "penalty": norm,
        "c_search": c_search,
        "c_init": c_init,
        "confidence": confidence,
        "tolerance": tolerance,
        "history": history,
        "bounds": bounds,
        "levels": levels,
        "max_evaluations": max_evaluations,
        "time_limit": time_limit,
        "batch_size": batch_size,
        "threads": threads,
        "device": device,
    }
    with one_line_errors(debug) as stage:
        if targets is not None and untargeted:
            raise ValueError("--targets and --untargeted exclude each other")
        if out is not None:
            loading.check_writable(out, "--out", [".npz"])
        album = None
        if images is not None and images.is_dir():
            album = Album(images, output or Path("advcore_pictures"), size, names)
            if levels not in (None, 256) or bounds not in (None, (0.0, 1.0)):
                raise ValueError("a folder of pictures is attacked with --levels 256, --bounds 0 1")
            options["levels"] = 256
        elif (output, size, names) != (None, None, None):
            raise ValueError("--output, --size and --names need a folder of pictures as --images")
        job = _job(model, images, labels, targets, untargeted, count, starts, seed, device, album)
        if picture is None and images is None:
            picture = Path("advcore_attack.png")
        if picture is not None and not no_picture:
            from .report import picture_suffixes

            loading.check_writable(picture, "--picture", picture_suffixes())
        given = {name: value for name, value in options.items() if value is not None}
        result, stop = _run(job, stage, seed=seed, **given)
        _print_table(result)
        if out is not None:
            result.save(out)
            print(f"result: {out}")
        if album is not None:
            album.write(job, result, None if no_picture else picture or album.output / "grid.png")
        elif picture is not None and not no_picture and len(job.images):
            from .report import picture_grid

            picture_grid(picture, job.images, result, labels=job.labels)
            print(f"picture: {picture}")
    if isinstance(stop, KeyboardInterrupt):
        print("error: interrupted; the images finished so far are in the result", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if stop is not None:
        raise _raised(stop)


@app.command()
def info() -> None:
    """Version, instruction set and CUDA of this installation."""
    from . import _core

    print(f"advcore {advcore.__version__}")
    with one_line_errors(False):
        isa = _core.isa()
    print(f"instruction set: {_ISA.get(isa, isa)}")
    _, devices, reason = _core.cuda_status()
    print(f"CUDA: {devices} GPU{'s' * (devices > 1)}" if devices else f"CUDA: no ({reason})")
    for name in ("numpy", "torch"):
        try:
            print(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")


def _job(
    model: str | None,
    images: Path | None,
    labels: Path | None,
    targets: str | None,
    untargeted: bool,
    count: int | None,
    starts: Path | None,
    seed: int,
    device: str | None,
    album: Album | None,
) -> loading.Task:
    """Model and arrays of a run, cut to the first `count` images."""
    wanted: NDArray[Any] | None = None
    truth: NDArray[Any] | None = None
    pixels: NDArray[Any]
    network: Any = None
    if images is None:
        pixels, truth = data.embedded_digits()
        if labels is not None or starts is not None:
            raise ValueError("--labels and --starts need --images")
        if targets is None and not untargeted:
            wanted = data.random_targets(truth, classes=10, seed=seed)
    elif album is not None:
        network = _model(model)
        pixels = album.read(network, count)
    else:
        pixels = loading.array(images, "--images")
    if labels is not None:
        truth = loading.array(labels, "--labels")
    from_file = targets is not None and targets.endswith(".npy")
    if targets is not None and from_file:
        wanted = loading.array(Path(targets), "--targets")
    begin = None if starts is None else loading.array(starts, "--starts")
    for option, values in (("--labels", truth), ("--targets", wanted), ("--starts", begin)):
        if values is not None and len(values) != len(pixels):
            raise ValueError(f"{option} has {len(values)} entries for {len(pixels)} images")
    network = _model(model) if network is None else network
    job = loading.Task(network, pixels, truth, wanted, begin).first(count)
    if (targets is None or from_file) and album is None:
        return job
    return _aimed(job, None if from_file else targets, seed, device, album)


def _model(source: str | None) -> Any:
    if source in models.BUILDERS and source not in models.PRETRAINED:
        print(f"note: {source} has its initial weights", file=sys.stderr)
    return data.embedded_network() if source is None else loading.model(source)


def _aimed(
    job: loading.Task, targets: str | None, seed: int, device: str | None, album: Album | None
) -> loading.Task:
    """The job with the classes that the model sees as labels, and the targets of a word."""
    from .classes import choose_targets, class_names

    forward, logits = loading.judge(job.model, job.images, device)
    labels = logits.argmax(axis=1)
    if job.labels is not None:
        labels = validate.classes(job.labels, "labels", len(labels), logits.shape[1])
    names = class_names(None if album is None else album.names, logits.shape[1])
    if album is not None:
        album.forward, album.known, album.labels = forward, names, labels
    wanted = job.targets
    if targets is not None:
        wanted = choose_targets(targets, logits, labels, names, seed)
    truth = job.labels if wanted is None else labels
    return loading.Task(job.model, job.images, truth, wanted, job.starts)


@dataclass
class Album:
    """A folder of pictures and what is written for it."""

    folder: Path
    output: Path
    size: int | None
    names: Path | None
    forward: Any = None  # (N, n) to logits
    known: list[str] | None = None  # names of the classes
    labels: Any = None  # (N,) classes of the clean pictures

    def read(self, model: Any, count: int | None) -> NDArray[np.float32]:
        """The pictures as the model takes them; names those that cannot be read on stderr."""
        from . import pictures

        if self.output.resolve() == self.folder.resolve():
            raise ValueError("--output: must be another folder than --images")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"--output: {self.output} is not a folder")
        loading.check_writable(self.output, "--output")
        self.frame = pictures.frame(model, self.size)
        found = pictures.read_folder(self.folder, self.frame, count)
        for path, why in found.unread:
            print(
                f"warning: {path} cannot be read ({why}); the other {len(found.files)} go on",
                file=sys.stderr,
            )
        self.files = found.files
        return self.frame.to_model(found.pixels)

    def write(self, job: loading.Task, result: Result, picture: Path | None) -> None:
        """PNG files, table and grid."""
        from . import pictures

        written = pictures.write(
            *(self.output, self.files, job.images, self.labels, result, self.frame),
            *(self.forward, self.known),
        )
        print(
            f"pictures: {self.output} ({written.verified} of {written.successes} adversarial ones "
            "verified after reading the PNG files back)"
        )
        print(f"table: {written.table}")
        if picture is not None and len(job.images):
            pictures.grid(picture, job.images, self.labels, result, self.frame, self.known)
            print(f"picture: {picture}")


@dataclass
class Stage:
    """How far the command has come, in words that follow "interrupted"."""

    name: str = "before the run began"


def _run(job: loading.Task, stage: Stage, **options: Any) -> tuple[Result, BaseException | None]:
    """The result, with what cut it short if anything did; shows a progress bar on stderr."""

    def begun(_: advcore.Progress) -> None:
        stage.name = "after the run"  # in the middle of it Ctrl-C comes as Interrupted

    try:
        result = advcore.minimize_distortion(
            job.model,
            job.images,
            job.targets,
            labels=job.labels,
            starts=job.starts,
            progress=True,
            callback=begun,
            **options,
        )
    except (advcore.Interrupted, advcore.ModelError, advcore.DeviceError) as stop:
        if stop.result is None:  # the GPU failed before anything was computed
            raise _raised(stop) from None
        return stop.result, stop
    return result, None


def _raised(error: BaseException) -> typer.Exit:
    """What the model or the GPU raised, as one line on stderr and the exit code."""
    text = " ".join(str(error).split())
    text = text.replace("the exception's .result holds", "the table and --out hold")
    print(f"error: {text}", file=sys.stderr)
    return typer.Exit(RAISED)


def _print_table(result: Result) -> None:
    table = Table(show_header=False, title="minimum-distortion adversarial examples")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(result):
        table.add_row(name, value)
    Console().print(table)


def summary_rows(result: Result) -> list[tuple[str, str]]:
    """(name, value) of each line of the table; distortions are over the successes."""
    count, found = len(result.success), int(result.success.sum())
    share = f" ({found / count:.1%})" if count else ""
    rows = [("success", f"{found} of {count}{share}")]
    if found:
        distortion = result.distortion[result.success]
        rms = result.rms_distortion[result.success]
        rows += [
            (
                "distortion ||r||",
                f"mean {distortion.mean():.4f}, median {np.median(distortion):.4f}"
                f"{already_note(result)}",
            ),
            ("RMS distortion sqrt(mean r^2)", f"mean {rms.mean():.5f}"),
        ]
    if count:
        evaluations = result.evaluations
        late = np.percentile(evaluations, 99)
        rate = images_per_second(result)
        rows += [
            ("evaluations per image", f"mean {evaluations.mean():.1f}, p99 {late:.0f}"),
            ("further forwards per image", f"mean {result.forwards.mean():.1f}"),
            ("images per second", f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"),
            ("status", ", ".join(f"{name} {n}" for name, n in result.status_counts().items())),
        ]
    rows.append(("seconds", f"{result.seconds:.3f}"))
    rows += [
        (f"engine: {key}", _ISA.get(str(value), str(value)) if key == "isa" else str(value))
        for key, value in result.engine.items()
    ]
    return rows


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


@contextmanager
def one_line_errors(debug: bool) -> Iterator[Stage]:
    """Turns Ctrl-C and errors about the user's input into one line on stderr and an exit code."""
    stage = Stage()
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _one_line
            yield stage
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print(f"error: interrupted {stage.name}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
