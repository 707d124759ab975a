"""Entry point of the command `advcore`. Each command has a module of this package."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line.

    The exit code is 0 at the end of a run, 1 if the model or an experiment raised, 2 for bad input,
    and 130 after Ctrl-C or SIGTERM. A job ends with 1 on a full disk too, with 3 if some images
    have no result, and with 4 if its time limit has passed.
    """
    try:
        from . import attack, job, report, reproduce  # noqa: F401 (The imports add the commands to the app.)
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f'the command advcore needs {error.name}: pip install "advcore[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
    app()
