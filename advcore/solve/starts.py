"""Starting images for further searches: given for each image, or the nearest of a pool."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..validate import array
from .backends import Results
from .job import Job
from .levels import Grid
from .verify import Judge, sizes

Floats = NDArray[np.float32]
REPLACED_STATUSES = (
    _core.Status.not_found,
    _core.Status.non_finite,
    _core.Status.no_gradient,
)
"""Statuses of a search that do not hold for a start in the place of its result."""
NEAREST = 3
"""Starts that an image gets of a pool."""


def nearest_starts(
    starts: Any,
    shape: tuple[int, ...],
    images: Floats,
    judge: Judge,
    bounds: tuple[Floats, Floats],
) -> Floats | None:
    """Starts (N, S, n) inside the bounds, from what the caller passed; None of None.

    ``starts`` is (N, ...) or (N, S, ...) of the images' shape, or a pair (pool (M, ...), its
    classes (M,)). Where a pool holds no image of the class, the clean image stands in: the engine
    finds that it is not adversarial and goes on.
    """
    if starts is None:
        return None
    if isinstance(starts, tuple):
        if len(starts) != 2:
            raise ValueError(
                f"starts must be an array or (images, classes), got {len(starts)} parts"
            )
        pool, kinds = array(starts[0], "starts images"), array(starts[1], "starts classes")
        if kinds.shape == (len(pool), 1):
            kinds = kinds[:, 0]
        if pool.shape[1:] != shape[1:] or kinds.shape != pool.shape[:1] or kinds.dtype.kind == "f":
            raise ValueError(
                f"starts must be images of shape (M, {', '.join(map(str, shape[1:]))}) and (M,) "
                f"integer classes, got {pool.shape} and {kinds.shape} {kinds.dtype}"
            )
        _check_finite(pool)
        flat = pool.reshape(len(pool), math.prod(shape[1:]))
        flat_starts = _choose(flat, kinds, images, judge.labels, judge.targeted)
    else:
        values = array(starts, "starts")
        several = values.ndim == len(shape) + 1
        if values.shape[:1] + values.shape[1 + several :] != shape:
            raise ValueError(f"starts must have the images' shape {shape}, got {values.shape}")
        _check_finite(values)
        flat_starts = values.reshape(
            shape[0], values.shape[1] if several else 1, math.prod(shape[1:])
        )
    low, high = (bound if bound.ndim == 1 else bound[:, None] for bound in bounds)
    return np.clip(np.ascontiguousarray(flat_starts, dtype=np.float32), low, high)


def prefer_starts(
    judge: Judge,
    job: Job,
    results: Results,
    grid: Grid | None = None,
    needed: NDArray[np.float64] | None = None,
) -> None:
    """Put a start in the place of a result that is no better, where the model confirms it.

    The engine asks for a little more than the confidence, because of rounding between batches, so
    that it does not accept a start just above the confidence. Only starts nearer than the result
    are evaluated, and with a grid only those on it. ``needed`` (N,) are the margins of a success,
    by default the least. ``results`` is changed in place.
    """
    assert job.starts is not None
    adversarial, success, status = (results[key] for key in ("adversarial", "success", "status"))
    distance = np.empty(job.starts.shape[:2])
    nearer = np.empty(job.starts.shape[:2], bool)
    for part in np.array_split(np.arange(len(job.images)), -(-len(job.images) // 256) or 1):
        clean = job.images[part].astype(np.float64)
        distortion = sizes(adversarial[part] - clean, job.params.norm)
        distance[part] = sizes(job.starts[part] - clean[:, None], job.params.norm)
        limit = np.where(success[part], distortion, np.inf)
        nearer[part] = distance[part] < limit[:, None]
    nearer &= distance > 0  # the clean image stands in for no start
    every_row = np.arange(len(nearer))
    most = nearer.sum(axis=1) + judge.kept_for_verification
    nearer &= judge.queries.affordable(every_row, most)[:, None]
    rows, which = np.nonzero(nearer)
    if grid is not None:
        on_grid = grid.contains(job.starts[rows, which])
        rows, which = rows[on_grid], which[on_grid]
    if not len(rows):
        return
    margin, prediction = judge.margins(job.starts[rows, which], rows)
    margins_needed = None if needed is None else needed[rows]
    accepted = judge.accepts(margin, prediction, rows, margins_needed)
    order = np.argsort(-distance[rows, which], kind="stable")  # the nearest is written last
    for i in order[accepted[order]]:
        row = rows[i]
        adversarial[row] = job.starts[row, which[i]]
        if status[row] in REPLACED_STATUSES:
            status[row] = _core.Status.stalled
        success[row] = True


def _check_finite(values: NDArray[Any]) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False)).all()
    if not finite:
        raise ValueError("starts must be finite in float32, got NaN, infinity or larger values")


def _choose(
    pool: NDArray[Any],
    kinds: NDArray[Any],
    images: Floats,
    labels: NDArray[np.int32],
    targeted: bool,
) -> Floats:
    pool = pool.astype(np.float32)
    exact = pool.astype(np.float64)  # a rank must not depend on which rows share a product
    out = np.repeat(images[:, None], NEAREST, axis=1)
    size = np.einsum("mn,mn->m", exact, exact)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        members = np.flatnonzero((kinds == label) if targeted else (kinds != label))
        if not len(members):
            continue
        for part in np.array_split(rows, -(-len(rows) // 256)):
            distance = size[members] - 2 * images[part].astype(np.float64) @ exact[members].T
            order = np.argsort(distance, axis=1, kind="stable")[:, :NEAREST]
            out[part, : order.shape[1]] = pool[members[order]]
    return out
