"""Random directions around an image, and the share that leaves its class at a given distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attacks import adversarial_set
from .digits import CLASSES
from .directions import sphere

if TYPE_CHECKING:
    import torch

    from .run import Run, Trained

BOUNDS = {"free": (-math.inf, math.inf), "clipped": (0.0, 1.0)}


def direction_shares(
    run: Run,
    network: Trained,
    *,
    count: int,
    directions: int,
    radii: NDArray[np.float64],
    ratios: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Measure shares of the directions that fail, for correctly classified test images.

    Returns
    -------
    The arrays (images, radii) by name. A name has three words, "kind reading grid". The kind is
    "free", or "clipped" to [0, 1]. The reading is "points" or "rays", and for "free" also
    "hyperplanes". The grid is "radius", the distances d of `radii`, or "ratio", the d / d_min of
    `ratios`. "kind d_min" (images,) is the distortion that the untargeted attack finds, without
    bounds or inside [0, 1].
    """
    images, labels = run.digits.sample("test", count)
    root, seed = math.sqrt(images.shape[1]), network.recipe.seed
    common: dict[str, Any] = {"split": "test", "count": count}
    untargeted = {
        kind: adversarial_set(run, network, targets="untargeted", bounds=bounds, **common)
        for kind, bounds in BOUNDS.items()
    }
    distortions = np.zeros((len(images), CLASSES, images.shape[1]), np.float32)
    for target in range(CLASSES):
        attacked = adversarial_set(run, network, targets=target, bounds=BOUNDS["free"], **common)
        changes = np.where(attacked.success[:, None], attacked.adversarial - attacked.images, 0)
        distortions[labels != target, target] = changes

    def make() -> dict[str, NDArray[Any]]:
        shares: dict[str, NDArray[Any]] = {}
        for kind, attacked in untargeted.items():
            correct = attacked.success & (attacked.rms > 0)
            d_min = attacked.rms[correct].astype(np.float64) * root
            shares[f"{kind} d_min"] = d_min
            radius_rows = np.repeat(radii[None], len(d_min), axis=0)
            for grid, distances in (("radius", radius_rows), ("ratio", ratios * d_min[:, None])):
                points, rays = failures(
                    network.model,
                    images[correct],
                    labels[correct],
                    distances,
                    directions,
                    clip=kind == "clipped",
                    seed=seed,
                )
                shares |= {f"{kind} points {grid}": points, f"{kind} rays {grid}": rays}
                if kind == "free":
                    shares[f"free hyperplanes {grid}"] = polyhedron_shares(
                        distortions[correct], distances, directions, seed=seed
                    )
        return shares

    depends = {"network": network.key, "count": count, "directions": directions}
    return run.step("frequency", {**depends, "radii": list(radii), "ratios": list(ratios)}, make)


def failures(
    model: torch.nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    radii: NDArray[np.float64],
    directions: int,
    *,
    clip: bool,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the shares (I, R) of misclassified points x + d u, and of rays with one up to d.

    radii : (I, R), the rising distances for each image. A ray is evaluated at these points alone,
        so that failures between two of them are missed.
    directions : number of u for each image. They are the same for all radii and for both values of
        `clip`.
    """
    import torch

    points, rays = np.empty(radii.shape), np.empty(radii.shape)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        u = sphere(directions, images.shape[1], (seed, i)).astype(np.float32)
        points_moved = image + radii[i, :, None, None].astype(np.float32) * u
        flat = torch.as_tensor(points_moved.reshape(-1, images.shape[1]))
        with torch.inference_mode():
            parts = (flat.clamp(0, 1) if clip else flat).split(1000)
            failed = torch.cat([model(part).argmax(1) != label for part in parts]).numpy()
        failed = failed.reshape(radii.shape[1], directions)
        points[i] = failed.mean(axis=1)
        rays[i] = np.logical_or.accumulate(failed, axis=0).mean(axis=1)
    return points, rays


def cap_share(ratio: float, dimension: int) -> float:
    """Return the share of a sphere of radius ratio * d beyond a hyperplane at distance d.

    The distance is that from the centre. The share is the integral of cos^(n-2) from
    arcsin(1 / ratio) to pi / 2 over that from -pi / 2 to pi / 2. The normal approximation is
    P(N(0, 1) > sqrt(n) / ratio).
    """
    if ratio <= 1:
        return 0.0
    angles = np.linspace(math.asin(1 / ratio), math.pi / 2, 20_001)
    values = np.cos(angles) ** (dimension - 2)
    integral = (values.sum() - values[[0, -1]].sum() / 2) * (angles[1] - angles[0])
    log_scale = math.lgamma(dimension / 2) - math.lgamma((dimension - 1) / 2)
    return float(integral * math.exp(log_scale) / math.sqrt(math.pi))


def polyhedron_shares(
    distortions: NDArray[np.float32], radii: NDArray[np.float64], directions: int, *, seed: int
) -> NDArray[np.float64]:
    """Return the shares (I, R) of the points of `failures` that lie beyond any hyperplane.

    The hyperplanes go through the ends of the distortions (I, K, n) and are orthogonal to them. A
    distortion of zeros has none.
    """
    shares = np.empty(radii.shape)
    square = np.square(distortions).sum(axis=2, keepdims=True)
    normals = distortions / np.where(square > 0, square, 1.0)
    for i, image_normals in enumerate(normals):
        u = sphere(directions, image_normals.shape[1], (seed, i)).astype(np.float32)
        nearest = (u @ image_normals.T).max(axis=1)
        shares[i] = (nearest[None] * radii[i][:, None] > 1).mean(axis=1)
    return shares


def share_interval(shares: NDArray[np.float64], trials: int) -> tuple[float, float]:
    """Return Wilson's 95% interval of the mean of the images' shares.

    The interval uses the effective number of trials (Korn and Graubard 1998). That is the number of
    independent trials with the variance that is measured between the images, at most all trials.

    trials : number of directions of each image.
    """
    p, total = float(shares.mean()), float(len(shares) * trials)
    variance = float(shares.var(ddof=1)) / len(shares) if len(shares) > 1 else 0.0
    if variance > 0:
        total = min(total, p * (1 - p) / variance)
    z = 1.96
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low, high = (middle - half) / scale, (middle + half) / scale
    return low if p > 0 else 0.0, high if p < 1 else 1.0  # the ends are exact but for rounding


def crossing(
    shares: NDArray[np.float64], grid: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """Return (I,) positions on the grid where each row of shares (I, R) first reaches the level.

    Between two points the share is linear in the logarithm of the grid. A position is infinite
    where the level is not reached.
    """
    first_above = np.argmax(shares >= level, axis=1)
    last_below = np.maximum(first_above - 1, 0)
    rows = np.arange(len(shares))
    low, high = shares[rows, last_below], shares[rows, first_above]
    part = np.where(first_above > 0, (level - low) / np.where(high > low, high - low, 1.0), 0.0)
    position = grid[last_below] * (grid[first_above] / grid[last_below]) ** part
    return np.where((shares >= level).any(axis=1), position, np.inf)
