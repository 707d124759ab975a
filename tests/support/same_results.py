"""Results compared bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

FIELDS = (
    "adversarial", "success", "distortion", "rms_distortion", "margin", "prediction", "target",
    "c", "status", "evaluations", "forwards", "iterations", "rescues",
)  # fmt: skip


def same(a: Any, b: Any, rows_a: Any = slice(None), rows_b: Any = slice(None)) -> None:
    """Compare every array of two results bit for bit."""
    for name in FIELDS:
        ours, theirs = getattr(a, name)[rows_a], getattr(b, name)[rows_b]
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
