"""Directions of activation space, the images furthest along them, and how alike these are."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def purity(labels: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return (M,) shares of the most frequent label in each row of the labels (M, k)."""
    counts = [(labels == label).sum(axis=1) for label in np.unique(labels)]
    return np.asarray(np.max(counts, axis=0) / labels.shape[1], np.float64)


def chance_purity(
    labels: NDArray[np.integer[Any]], k: int, *, draws: int = 20_000, seed: int = 0
) -> float:
    """Estimate the expected purity of k images drawn without replacement, by simulation."""
    counts = np.unique(labels, return_counts=True)[1]
    samples = np.random.default_rng(seed).multivariate_hypergeometric(counts, k, size=draws)
    return float(samples.max(axis=1).mean() / k)


def top_images(
    activations: NDArray[np.floating[Any]], directions: NDArray[np.floating[Any]], k: int
) -> NDArray[np.int64]:
    """Return (M, k) rows of `activations` (N, D) of largest product with `directions` (M, D)."""
    import torch

    scores = torch.as_tensor(directions @ activations.T)
    rows: NDArray[np.int64] = scores.topk(min(k, scores.shape[1]), dim=1).indices.numpy()
    return rows


def live_units(activations: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Return the units that at least k images excite above the unit's least activation.

    For other units the k most exciting images are not defined.
    """
    excited = activations > activations.min(axis=0)
    return np.flatnonzero(excited.sum(axis=0) >= k)


def sphere(count: int, dimension: int, seed: int | tuple[int, ...]) -> NDArray[np.float64]:
    """Draw directions (count, dimension), uniform on the unit sphere."""
    v = np.random.default_rng(seed).standard_normal((count, dimension))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return v


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's 95% confidence interval of the mean of independent values."""
    t = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    freedom = len(values) - 1
    factor = t[freedom - 1] if freedom <= len(t) else 1.96 + 2.5 / freedom
    half = factor * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def superiority(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the probability that a value of `a` exceeds one of `b`, with ties counted half."""
    b = np.sort(b)
    count_below, count_not_above = np.searchsorted(b, a, "left"), np.searchsorted(b, a, "right")
    return float((count_below + count_not_above).mean() / (2 * len(b)))


def difference_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the normal 95% interval of the difference of two independent samples' means."""
    gap = a.mean() - b.mean()
    half = 1.96 * math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return float(gap - half), float(gap + half)


def activations(
    model: torch.nn.Module, depth: int, images: NDArray[np.float32]
) -> NDArray[np.floating[Any]]:
    """Return the output (N, D) of the first `depth` modules.

    It is in float64 after sigmoids. In float32 these reach 1, and the order of images is lost.
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
