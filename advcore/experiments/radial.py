"""Random directions around an image: how many leave its class at a given distance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .attacks import CLASSES, adversarial_set
from .directions import sphere

if TYPE_CHECKING:
    import torch

    from .run import Run, Trained

BOUNDS = {"free": (-math.inf, math.inf), "clipped": (0.0, 1.0)}


def measured(
    run: Run,
    network: Trained,
    *,
    count: int,
    directions: int,
    radii: NDArray[np.float64],
    ratios: NDArray[np.float64],
) -> dict[str, NDArray[Any]]:
    """Shares of the directions that fail, for the correctly classified of `count` test images.

    The arrays (images, radii) are named "kind reading grid": kind is "free", or "clipped" to
    [0, 1]; reading "points", "rays", or of the free ones "hyperplanes"; grid "radius", d of
    `radii`, or "ratio", d / d_min of `ratios`. "kind d_min" (images,) is the distortion that the
    untargeted attack finds, without bounds or inside [0, 1].
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
        own = adversarial_set(run, network, targets=target, bounds=BOUNDS["free"], **common)
        moved = np.where(own.success[:, None], own.adversarial - own.images, 0)
        distortions[labels != target, target] = moved

    def make() -> dict[str, NDArray[Any]]:
        made: dict[str, NDArray[Any]] = {}
        for kind, attacked in untargeted.items():
            right = attacked.success & (attacked.rms > 0)
            d_min = attacked.rms[right].astype(np.float64) * root
            made[f"{kind} d_min"] = d_min
            fixed = np.repeat(radii[None], len(d_min), axis=0)
            for grid, own in (("radius", fixed), ("ratio", ratios * d_min[:, None])):
                points, rays = failures(
                    *(network.model, images[right], labels[right], own, directions),
                    clip=kind == "clipped",
                    seed=seed,
                )
                made |= {f"{kind} points {grid}": points, f"{kind} rays {grid}": rays}
                if kind == "free":
                    made[f"free hyperplanes {grid}"] = polyhedron_shares(
                        distortions[right], own, directions, seed=seed
                    )
        return made

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
    """Shares (I, R) of misclassified points x + d u, and of rays with such a point up to d.

    radii : (I, R), rising, of each image; a ray is looked at in these points alone, so that what
        lies between two of them is missed.
    directions : u for each image, the same for all radii and whether clipped or not.
    """
    import torch

    points, rays = np.empty(radii.shape), np.empty(radii.shape)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        u = sphere(directions, images.shape[1], (seed, i)).astype(np.float32)
        moved = image + radii[i, :, None, None].astype(np.float32) * u
        flat = torch.as_tensor(moved.reshape(-1, images.shape[1]))
        with torch.inference_mode():
            parts = (flat.clamp(0, 1) if clip else flat).split(1000)
            wrong = torch.cat([model(part).argmax(1) != label for part in parts]).numpy()
        wrong = wrong.reshape(radii.shape[1], directions)
        points[i] = wrong.mean(axis=1)
        rays[i] = np.logical_or.accumulate(wrong, axis=0).mean(axis=1)
    return points, rays


def cap_share(ratio: float, dimension: int) -> float:
    """Share of the sphere of radius ratio * d beyond a hyperplane at distance d of its centre.

    The integral of cos^(n-2) from arcsin(1 / ratio) to pi / 2 over that from -pi / 2 to pi / 2; the
    normal approximation is P(N(0, 1) > sqrt(n) / ratio).
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
    """Shares (I, R) of the points of `failures` beyond any of the hyperplanes through the ends of
    the distortions (I, K, n) and orthogonal to them; a distortion of zeros has none.
    """
    shares = np.empty(radii.shape)
    square = np.square(distortions).sum(axis=2, keepdims=True)
    normals = distortions / np.where(square > 0, square, 1.0)
    for i, own in enumerate(normals):
        u = sphere(directions, own.shape[1], (seed, i)).astype(np.float32)
        nearest = (u @ own.T).max(axis=1)
        shares[i] = (nearest[None] * radii[i][:, None] > 1).mean(axis=1)
    return shares


def share_interval(shares: NDArray[np.float64], trials: int) -> tuple[float, float]:
    """Wilson's 95% interval of the mean of the images' shares, of `trials` directions each.

    The number of trials is the effective one: all of them, or as many independent ones as give the
    variance that is found between the images (Korn and Graubard 1998).
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
    return low if p > 0 else 0.0, high if p < 1 else 1.0  # exact at the ends, but for rounding


def crossing(
    shares: NDArray[np.float64], grid: NDArray[np.float64], level: float
) -> NDArray[np.float64]:
    """(I,) where each row of shares (I, R) first reaches the level, linear in log of the grid
    between its points; infinite where it does not.
    """
    first = np.argmax(shares >= level, axis=1)
    last = np.maximum(first - 1, 0)
    rows = np.arange(len(shares))
    low, high = shares[rows, last], shares[rows, first]
    part = np.where(first > 0, (level - low) / np.where(high > low, high - low, 1.0), 0.0)
    at = grid[last] * (grid[first] / grid[last]) ** part
    return np.where((shares >= level).any(axis=1), at, np.inf)
