"""Entry point of the command `advcore`. Each command has a module of this package."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line.

    Exit codes (``docs/command.md``): 0 at the end of a run, 1 if the model or an experiment raised
    or the disk is full, 2 for bad input, 3 if some images of a job have no result, 4 if its time
    limit has passed, and 130 after Ctrl-C or SIGTERM.
    """
    try:
        from . import attack, doctor, job, report, reproduce  # noqa: F401 (The imports add the commands to the app.)
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f'the command advcore needs {error.name}: pip install "advcore[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
    app()
