"""The app of the command `advcore`, its exit codes and its errors. Needs typer."""

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
BAD_INPUT = 2
INTERRUPTED = 130
ISA_NAMES = {"v4": "AVX-512 (v4)", "v3": "AVX2 (v3)", "base": "baseline (base)"}


class SortedCommands(TyperGroup):
    """Commands in the order of their names, not in that of the imports."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted(self.commands)


app = typer.Typer(
    cls=SortedCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(shown: bool) -> None:
    if shown:
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
    """The stage that the command has reached, in words that follow "interrupted"."""

    name: str = "before the run began"


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
