"""Results with known figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcore.result import Result, status_code


def make(**changes: Any) -> Result:
    """Five images: already adversarial, three attacked, one not found."""
    distortion = np.array([0.0, 1.0, 2.0, 4.0, np.inf], np.float32)
    names = ["already_adversarial", "converged", "converged", "budget", "not_found"]
    values: dict[str, Any] = {
        "engine": {"path": "native", "device": "cpu", "threads": 2},
        "adversarial": np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3) / 30,
        "success": np.array([True, True, True, True, False]),
        "distortion": distortion,
        "rms_distortion": (distortion / np.sqrt(6)).astype(np.float32),
        "margin": np.array([0.5, 1e-4, 2e-4, 3e-4, -0.25], np.float32),
        "prediction": np.array([3, 1, 2, 0, 7]),
        "target": np.array([3, 1, 2, 0, 8]),
        "c": np.array([np.nan, 0.1, 0.2, 0.3, np.nan]),
        "status": np.array([status_code(name) for name in names], np.int8),
        "evaluations": np.array([1, 10, 20, 40, 100], np.int32),
        "forwards": np.array([0, 5, 5, 5, 10], np.int32),
        "iterations": np.array([0, 8, 18, 30, 70], np.int32),
        "rescues": np.array([0, 0, 0, 1, 2], np.int32),
        "seconds": 0.5,
        "penalty": "l2",
        "loss": "margin",
    }
    return Result(**{**values, **changes})


RECORD = {
    "options": {"effort": "fast", "norm": "l2", "seed": 0, "levels": None},
    "model": {"name": "net", "hash": "0123456789abcdef"},
    "input": {"count": 5, "labels": "given"},
}


def labelled(**changes: Any) -> Result:
    """An untargeted run of `make` against labels."""
    values = {"target": np.full(5, -1), "label": np.array([0, 0, 1, 1, 1]), "record": RECORD}
    return make(**{**values, **changes})


def same(result: Result, other: Result) -> None:
    """Whether all fields are equal, with their types."""
    for name, value in vars(result).items():
        expected = getattr(other, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, expected)
            assert value.dtype == expected.dtype
        elif name == "seconds":
            assert value == pytest.approx(expected)
        else:
            assert value == expected
