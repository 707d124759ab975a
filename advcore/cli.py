"""Entry point of the command `advcore`; the commands are in advcore.commands and
advcore.reproduce_command.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line.

    Exit codes: 0 done, 1 the model or an experiment raised, 2 bad input, 130 Ctrl-C.
    """
    try:
        from . import commands, reproduce_command  # noqa: F401 (the latter adds its command)
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        print(
            f'the command advcore needs {error.name}: pip install "advcore[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
    commands.app()


if __name__ == "__main__":
    main()
