"""The app of the command `advcore`, its exit codes and its errors. The module needs typer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import advcore

from .. import _core

RAISED = 1
"""Exit code if the model or an experiment raised."""
BAD_INPUT = 2
"""Exit code if an argument or a file is wrong."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell gives it: 128 and the number of SIGINT."""
ISA_NAMES = {"v4": "AVX-512 (v4)", "v3": "AVX2 (v3)", "base": "baseline (base)"}


class SortedCommands(TyperGroup):
    """Lists the commands in the order of their names, not in that of the imports."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted(self.commands)


app = typer.Typer(
    cls=SortedCommands,
    no_args_is_help=True,
    add_completion=False,
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
def info() -> None:
    """Version, instruction set and CUDA of this installation."""
    print(f"advcore {advcore.__version__}")
    with one_line_errors(False):
        isa = _core.isa()
    print(f"instruction set: {ISA_NAMES.get(isa, isa)}")
    _, devices, reason = _core.cuda_status()
    print(f"CUDA: {devices} GPU{'s' * (devices > 1)}" if devices else f"CUDA: no ({reason})")
    for name in ("numpy", "torch"):
        try:
            print(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            print(f"{name}: not installed")


@dataclass
class Stage:
    """The stage that a command has reached, as a text that follows "interrupted"."""

    name: str = "before the run began"


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


@contextmanager
def one_line_errors(debug: bool) -> Iterator[Stage]:
    """Turn Ctrl-C and errors about the user's input into one line on stderr and an exit code.

    With `debug` errors keep their tracebacks.
    """
    stage = Stage()
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _print_warning
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
