"""The job and the counts at the border to the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcore import _core

N, IMAGES = 5, 3


def arrays(**changes: Any) -> tuple[Any, ...]:
    """Images, labels, lo, hi and starts of a job, some of them changed."""
    every = {
        "images": np.zeros((IMAGES, N), np.float32),
        "labels": np.zeros(IMAGES, np.int32),
        "lo": np.zeros(N, np.float32),
        "hi": np.ones(N, np.float32),
        "starts": None,
    }
    return tuple((every | changes).values())


def params(starts: int = 0) -> _core.Params:
    out = _core.Params()
    out.n, out.classes, out.starts = N, 4, starts
    return out


def test_shapes_that_agree() -> None:
    _core.Job(params(), *arrays())
    rows = np.zeros((IMAGES, N), np.float32)
    _core.Job(params(), *arrays(lo=rows, hi=rows + 1))
    job = _core.Job(params(2), *arrays(starts=np.zeros((IMAGES, 2, N), np.float32)))
    assert (job.params.n, job.params.starts) == (N, 2)


@pytest.mark.parametrize(
    ("changes", "starts", "named"),
    [
        ({"images": np.zeros((IMAGES, N + 1), np.float32)}, 0, "images"),
        ({"images": np.zeros(N, np.float32)}, 0, "images"),
        ({"labels": np.zeros(IMAGES + 1, np.int32)}, 0, "labels"),
        ({"lo": np.zeros(N + 1, np.float32)}, 0, "lo"),
        ({"hi": np.zeros((IMAGES, N), np.float32)}, 0, "hi"),
        ({"lo": np.zeros((IMAGES + 1, N), np.float32)}, 0, "lo"),
        ({}, 2, "starts"),
        ({"starts": np.zeros((IMAGES, 2, N), np.float32)}, 0, "starts"),
        ({"starts": np.zeros((IMAGES, 3, N), np.float32)}, 2, "starts"),
    ],
)
def test_shapes_that_do_not(changes: dict[str, Any], starts: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        _core.Job(params(starts), *arrays(**changes))


def test_dtypes_are_not_converted() -> None:
    with pytest.raises(TypeError):
        _core.Job(params(), *arrays(images=np.zeros((IMAGES, N))))
    with pytest.raises(TypeError):
        _core.Job(params(), *arrays(labels=np.zeros(IMAGES, np.int64)))


def test_a_session_keeps_the_arrays_of_its_job() -> None:
    session = _core.Session(_core.Job(params(), *arrays()), 2)
    x, *_ = session.refill()
    assert x.shape == (2, N)
    assert session.counts.finished == 0


def test_counts_are_added() -> None:
    a, b = _core.Counts(), _core.Counts()
    a.finished, a.evaluations = 2, 30
    b.finished, b.succeeded = 3, 1
    total = a + b
    assert (total.finished, total.succeeded, total.evaluations) == (5, 1, 30)
    assert (a.finished, b.finished) == (2, 3)
