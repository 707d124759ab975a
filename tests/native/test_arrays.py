"""Passes over all images of a call, against Python's own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from advcore import _core, validate
from advcore.solve.verify import distances, taken


def exact_distance(x: np.ndarray, clean: np.ndarray) -> float:
    """Distance of two rows whose differences are rounded to float32, by exact sums."""
    return math.sqrt(math.fsum(float(r) ** 2 for r in x - clean))


@pytest.mark.parametrize("n", [1, 3, 15, 16, 17, 784, 1001])
def test_distances(n: int) -> None:
    rng = np.random.default_rng(n)
    x, clean = (rng.normal(0, 3, (41, n)).astype(np.float32) for _ in range(2))
    clean[3] = x[3]
    found = distances(x, clean)
    expected = [exact_distance(*rows) for rows in zip(x, clean, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found.dtype == np.float64
    assert found[3] == 0
    for part in (slice(7, 8), slice(1, 40)):  # whatever the other rows and the threads are
        assert np.array_equal(distances(x[part], clean[part]), found[part])


def test_distances_by_several_threads_have_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    x, clean = (rng.random((3000, 784), dtype=np.float32) for _ in range(2))
    one = distances(x, clean)
    assert np.array_equal(distances(x, clean, 4), one)
    assert np.array_equal(distances(x, clean, 500), one)
    assert distances(x[:0], clean[:0]).shape == (0,)


def test_distances_beyond_float32() -> None:
    x = np.array([[3e38, 0.0], [-2e38, 1.0], [1e-40, 0.0], [np.nan, 0.0]], np.float32)
    clean = np.array([[-3e38, 0.0], [2e38, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)
    found = distances(x, clean)
    assert found[:2] == pytest.approx([6e38, 4e38], rel=1e-6)
    assert found[2] == pytest.approx(1e-40, rel=1e-4)
    assert np.isnan(found[3])
    with pytest.raises(ValueError, match="one shape"):
        _core.distances(x, clean[:2])


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 100, 700_000])
def test_value_range(count: int) -> None:
    values = np.random.default_rng(count).normal(0, 1, count).astype(np.float32)
    expected = (float(values.min()), float(values.max()), True)
    assert validate.value_range(values) == expected
    assert _core.value_range(values, 3) == expected
    assert validate.value_range(values.astype(np.float64)) == expected
    for place in {0, count // 2, count - 1}:
        for value in (np.nan, np.inf, -np.inf):
            spoilt = values.copy()
            spoilt[place] = value
            assert validate.value_range(spoilt)[2] is False
            assert _core.value_range(spoilt, 3)[2] is False


def test_range_of_no_values() -> None:
    assert validate.value_range(np.empty((0, 5), np.float32)) == (0, 0, True)


def test_rows_that_follow_one_another_are_not_copied() -> None:
    values = np.arange(20, dtype=np.float32).reshape(10, 2)
    for rows in ([2, 3, 4], [0], [9], list(range(10)), [], [1, 3, 2], [1, 2, 2, 4], [4, 3, 2]):
        index = np.array(rows, np.intp)
        part = taken(values, index)
        assert np.array_equal(part, values[index])
        follows = bool(rows) and rows == list(range(rows[0], rows[0] + len(rows)))
        assert np.shares_memory(part, values) == follows
