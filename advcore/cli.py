"""Entry point of the command `advcore`; the commands themselves are in advcore.commands."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; exit codes: 0 done, 1 the model raised, 2 bad input, 130 Ctrl-C."""
    try:
        from .commands import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f'the command advcore needs {error.name}: pip install "advcore[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
