"""The app of the command `advcore`, its exit codes and its errors. The module needs typer."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import advcore

from .. import _core
from ..jobs.job_file import JobFileError
from ..result.tables import without_nan
from ..solve.interrupts import SIGNALS, sigterm_as_ctrl_c

RAISED = 1
"""Exit code if the model or an experiment raised."""
BAD_INPUT = 2
"""Exit code if an argument or a file is wrong."""
WITHOUT_RESULT = 3
"""Exit code of a job that ran to its end, where images could not be read or the model raised."""
UNFINISHED = 4
"""Exit code of a job that its time limit ended. The same command goes on."""
INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as a shell gives it: 128 and the number of SIGINT."""
ISA_NAMES = {"v4": "AVX-512 (v4)", "v3": "AVX2 (v3)", "base": "baseline (base)"}


COMMAND = "advcore.command"
"""Name under which the context has the whole command line."""


class Commands(TyperGroup):
    """Lists the commands in the order of their names, and keeps the whole command line."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted(self.commands)

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        context.meta[COMMAND] = shlex.join(["advcore", *arguments])
        return super().parse_args(context, arguments)

    def main(self, *arguments: Any, standalone_mode: bool = True, **settings: Any) -> Any:
        """Run a command line, and tell what is wrong with it in one line."""
        try:
            settings["standalone_mode"] = False
            code = super().main(*arguments, **settings)
        except Exception as error:  # that of click, of which typer may have a copy of its own
            if not standalone_mode or not hasattr(error, "format_message"):
                raise
            _print_usage_error(error)
            sys.exit(BAD_INPUT)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _print_usage_error(error: Any) -> None:
    """Print what is wrong with the words of a command line, or its help where there are none."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    path = "advcore" if context is None else context.command_path
    print_note(f"error: {error.format_message().rstrip('. ')}; see {path} --help")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"advcore {advcore.__version__}")
        raise typer.Exit


@app.callback()
def advcore_command(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="show it and exit"),
    ] = False,
) -> None:
    """Minimum-distortion adversarial examples."""


@app.command()
def info(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="facts of each GPU, and the test of the solver there")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="print one JSON object in the place of the text")
    ] = False,
) -> None:
    """Version, instruction set and CUDA of this installation."""
    with one_line_errors(False):
        isa = _core.isa()
        if json and gpu:
            raise ValueError("--json and --gpu exclude each other")
    facts = {"advcore": advcore.__version__, "instruction set": ISA_NAMES.get(isa, isa)}
    facts["CUDA"] = _cuda_text(*_core.cuda_status())
    for name in ("numpy", "torch"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "not installed"
    if json:
        print_json(facts)
        return
    print(f"advcore {facts.pop('advcore')}")
    for name, value in facts.items():
        print(f"{name}: {value}")
    if gpu:
        from .gpu_info import print_gpus

        with one_line_errors(False):
            try:
                print_gpus()
            except advcore.DeviceError as error:
                print_note(f"error: {error}")
                raise typer.Exit(RAISED) from None


def _cuda_text(built: bool, devices: int, reason: str) -> str:
    """Return what the build and the machine have of CUDA."""
    if devices:
        return f"{devices} GPU{'s' * (devices > 1)}"
    if built:
        return f"built with CUDA, no usable GPU or driver ({reason})"
    return f"no ({reason})"


@dataclass
class Stage:
    """The stage that a command has reached, as a text that follows "interrupted".

    ``warnings`` has the texts of those that were shown.
    """

    name: str = "before the run began"
    warnings: list[str] = field(default_factory=list)


_is_quiet: ContextVar[bool] = ContextVar("_is_quiet", default=False)
"""Whether the command has --quiet."""


def print_remark(text: str) -> None:
    """Print a line on stderr that is no error, unless the command has --quiet."""
    if not _is_quiet.get():
        print_note(text)


def print_note(text: str) -> None:
    """Print a line on stderr. A stderr that is closed or full is no reason to stop."""
    with suppress(OSError, ValueError):
        print(" ".join(text.split()), file=sys.stderr, flush=True)


def with_dashes(text: str) -> str:
    """Return a text about keywords of the call with them as options of the command.

    These are the keywords that remedies name, such as bounds=(0, 255) and batch_size=1, and the
    one that an error begins with.
    """
    text = re.sub(r"^(targets|names): ", r"--\1: ", text).replace("(names=...)", "(--names)")
    text = re.sub(r"\bbounds=\((\S+), (\S+)\)", r"--bounds \1 \2", text)
    return re.sub(
        r"\b(batch_size|threads)=(\d+)",
        lambda match: f"--{match[1].replace('_', '-')} {match[2]}",
        text,
    )


class OutputFailed(Exception):
    """Raised where a result was computed and cannot be printed. The cause is an OSError."""


@contextmanager
def printing() -> Iterator[None]:
    """Print on stdout, after all that is computed was written to files.

    Names of files that are not UTF-8 are printed with escapes.

    Raises
    ------
    OutputFailed : stdout is closed or full. Nothing more is printed there.
    """
    with suppress(AttributeError):  # stdout is None or no text file.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # Python flushes it again at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        raise OutputFailed(error.strerror or str(error)) from error


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off until the block has ended. A second one is not put off."""
    former = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {each: signal.getsignal(each) for each in SIGNALS}
        # A parent such as nohup may have Ctrl-C ignored.
        former = {each: handler for each, handler in handlers.items() if callable(handler)}
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    for each in former:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)
    if interrupts:
        raise KeyboardInterrupt


@contextmanager
def one_line_errors(debug: bool, quiet: bool = False) -> Iterator[Stage]:
    """Turn Ctrl-C and errors about the user's input into one line on stderr and an exit code.

    SIGTERM counts as Ctrl-C. With `debug` errors keep their tracebacks. With `quiet` notes and
    warnings are not shown.
    """
    stage = Stage()
    former = _is_quiet.set(quiet)

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        stage.warnings.append(" ".join(with_dashes(str(message)).split()))
        print_remark(f"warning: {stage.warnings[-1]}")

    try:
        with sigterm_as_ctrl_c(), warnings.catch_warnings():
            if not debug:
                warnings.showwarning = show_warning
            yield stage
    except OutputFailed as error:
        if not isinstance(
            error.__cause__, BrokenPipeError
        ):  # A reader that has enough is no error.
            print_note(f"error: standard output cannot be written ({error})")
        raise typer.Exit(RAISED) from None
    except (ValueError, TypeError, OSError, ImportError) as error:
        if debug:
            raise
        # A job file has a line for each of its mistakes.
        for text in error.errors if isinstance(error, JobFileError) else [str(error)]:
            print_note(f"error: {with_dashes(text)}")
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        print_note(f"error: interrupted {stage.name}")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        _is_quiet.reset(former)


def print_json(content: dict[str, Any]) -> None:
    """Print an object as JSON, with null for NaN and infinity."""
    print(json.dumps(without_nan(content), indent=1, allow_nan=False))
