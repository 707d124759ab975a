"""Distances to the decision boundary by forwards alone, without any gradient.

The way along the boundary is that of HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv
1904.02144), with few queries: it finds distances some times the smallest, never below it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

ROUNDS = 16
"""Steps along the boundary."""
DRAWS = 64
"""Random directions of a step."""
HALVINGS = 10
"""Halvings of a step that leads out of the class."""
CUTS, PLACES = 2, 24
"""Cuts of the line to the clean image, each into so many parts."""


def boundary_distances(
    predict: Callable[[Floats], NDArray[np.int64]],
    images: Floats,
    labels: NDArray[np.int64],
    bounds: tuple[Floats, Floats],
    seed: int = 0,
) -> Doubles:
    """Return ``||r||_2`` (N,) of the nearest image of another class that was found, inf for none.

    Parameters
    ----------
    predict : function from images (M, n) to classes (M,).
    images, labels : (N, n) and (N,). Images of another class than their label have distance 0.
    bounds : arrays that broadcast to the images.
    """
    rng = np.random.default_rng(seed)
    lower, upper = (np.broadcast_to(bound, images.shape) for bound in bounds)
    clean = predict(images)
    distances = np.where(clean != labels, 0.0, np.inf)
    for i in np.flatnonzero(clean == labels).tolist():

        def is_other(points: Floats, label: int = int(labels[i])) -> NDArray[np.bool_]:
            return np.asarray(predict(points) != label)

        noise = rng.uniform(lower[i], upper[i], (DRAWS, images.shape[1])).astype(np.float32)
        starts = np.concatenate([images[clean != labels[i]], noise])
        starts = starts[is_other(starts)]
        if len(starts):
            start = starts[np.linalg.norm(starts - images[i], axis=1).argmin()]
            point = _walk(is_other, images[i], start, (lower[i], upper[i]), rng)
            distances[i] = np.linalg.norm(point.astype(np.float64) - images[i])
    return distances


def _walk(
    is_other: Callable[[Floats], NDArray[np.bool_]],
    clean: Floats,
    start: Floats,
    bounds: tuple[Floats, Floats],
    rng: np.random.Generator,
) -> Floats:
    """Return a point near the boundary, walking along it from a point of another class."""
    best = point = _bisect(is_other, clean, start)
    for step in range(1, ROUNDS + 1):
        distance = float(np.linalg.norm(point - clean))
        draws = rng.standard_normal((DRAWS, len(clean))).astype(np.float32)
        draws /= np.linalg.norm(draws, axis=1, keepdims=True)
        inside = np.where(is_other(np.clip(point + 0.1 * distance * draws, *bounds)), 1.0, -1.0)
        weights = inside - inside.mean() if np.ptp(inside) else inside
        way = (weights[:, None] * draws).sum(axis=0)
        way /= max(float(np.linalg.norm(way)), 1e-12)
        lengths = distance / np.sqrt(step) * 0.5 ** np.arange(HALVINGS)
        tried = np.clip(point + lengths[:, None] * way, *bounds).astype(np.float32)
        reached = np.flatnonzero(is_other(tried))
        if len(reached):
            point = _bisect(is_other, clean, tried[reached[0]])
            if np.linalg.norm(point - clean) < np.linalg.norm(best - clean):
                best = point
    return best


def _bisect(
    is_other: Callable[[Floats], NDArray[np.bool_]], clean: Floats, point: Floats
) -> Floats:
    """Return a point of another class between a clean image and one, near a change of class."""
    low, high = 0.0, 1.0
    for _ in range(CUTS):  # many places at once: a forward of one costs hardly less
        places = np.linspace(low, high, PLACES + 1)[1:]
        line = clean + places[:, None].astype(np.float32) * (point - clean)
        first = int(np.flatnonzero([*is_other(line[:-1]), True])[0])
        low, high = (places[first - 1] if first else low), places[first]
    return np.asarray(clean + np.float32(high) * (point - clean), np.float32)
