"""Fixtures of the tests of the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def run(experiments_folder: Path) -> Any:
    """A run at the tiny size, whose networks all tests share."""
    from support.small_experiments import new_run

    return new_run(experiments_folder)
