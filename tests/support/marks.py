"""Conditions on which a test is skipped, visibly."""

from __future__ import annotations

import os

import pytest

needs_data = pytest.mark.skipif(
    not os.environ.get("ADVCORE_DATA"), reason="ADVCORE_DATA is not set"
)
