"""Directions of activation space, the images that follow them furthest, and how alike these are."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def purity(labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """(M,) share of the most frequent of the labels (M, k) of each row."""
    counts = [(labels == label).sum(axis=1) for label in np.unique(labels)]
    return np.asarray(np.max(counts, axis=0) / labels.shape[1], np.float64)


def chance_purity(
    labels: NDArray[np.integer[Any]], k: int, *, draws: int = 20_000, seed: int = 0
) -> float:
    """Expected purity of k of the images drawn without replacement (simulated)."""
    counts = np.unique(labels, return_counts=True)[1]
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts, k, size=draws)
    return float(drawn.max(axis=1).mean() / k)


def top_images(
    activations: NDArray[np.floating[Any]], directions: NDArray[np.floating[Any]], k: int
) -> NDArray[np.int64]:
    """(M, k) rows of `activations` (N, D) of largest product with `directions` (M, D), in order."""
    import torch

    scores = torch.as_tensor(directions @ activations.T)
    rows: NDArray[np.int64] = scores.topk(min(k, scores.shape[1]), dim=1).indices.numpy()
    return rows


def live_units(activations: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Units that at least k images excite above the unit's least activation: the others have no
    k most exciting images.
    """
    above = activations > activations.min(axis=0)
    return np.flatnonzero(above.sum(axis=0) >= k)


def sphere(count: int, dimension: int, seed: int | tuple[int, ...]) -> NDArray[np.float64]:
    """(count, dimension) directions, uniform on the unit sphere."""
    v = np.random.default_rng(seed).standard_normal((count, dimension))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return v


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% confidence interval of the mean of independent values, by Student's t."""
    t = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    freedom = len(values) - 1
    factor = t[freedom - 1] if freedom <= len(t) else 1.96 + 2.5 / freedom
    half = factor * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def superiority(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Probability that a value of `a` exceeds one of `b`, ties counted half."""
    b = np.sort(b)
    below, not_above = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
    return float((below + not_above).mean() / (2 * len(b)))


def difference_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Normal 95% interval of the difference of the means of two independent samples."""
    gap = a.mean() - b.mean()
    half = 1.96 * math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return float(gap - half), float(gap + half)


def activations(
    model: torch.nn.Module, depth: int, images: NDArray[np.float32]
) -> NDArray[np.floating[Any]]:
    """(N, D) output of the first `depth` modules; in float64 after sigmoids, which reach 1 in
    float32 and would leave images in no order.
    """
    import torch

    layers = list(model.children())[:depth]
    double = any(isinstance(layer, torch.nn.Sigmoid) for layer in layers)
    head = torch.nn.Sequential(*layers)
    if double:
        head = copy.deepcopy(head).double()
    with torch.inference_mode():
        parts = torch.as_tensor(images, dtype=torch.float64 if double else None).split(500)
        out: NDArray[np.floating[Any]] = torch.cat([head(part) for part in parts]).numpy()
    return out
