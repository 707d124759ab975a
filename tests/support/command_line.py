"""The command line, run in this process."""

from __future__ import annotations

import pytest

pytest.importorskip("typer")
from typer.testing import CliRunner, Result

from advcore.cli import attack, doctor, job, report, reproduce  # noqa: F401 (They add the commands.)


def run(*arguments: object) -> Result:
    """The command with these arguments: exit code and output."""
    return CliRunner().invoke(attack.app, [str(argument) for argument in arguments])
