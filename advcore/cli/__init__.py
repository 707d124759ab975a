"""Entry point of the command `advcore`. Each command has a module of this package."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 the model or an experiment raised, 2 bad input, 130 Ctrl-C.
    """
    try:
        from . import attack, reproduce  # noqa: F401 (they add their commands to the app)
        from .app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f'the command advcore needs {error.name}: pip install "advcore[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
    app()
