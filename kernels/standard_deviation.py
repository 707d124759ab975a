"""Scales of the smoothing: the standard deviation of a layer's pre-activations, row by row.

It is at least 1e-3 of their root mean square. Each tile of columns writes its mean and the sum of
squared deviations from it. These moments are merged in the order of the tiles, so that the scales
of a row depend on that row alone.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def write_moments(z, moments, mask, first_column, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Write mean and squared deviations of the columns ``first_column + [0, BN)`` below WIDTH.

    z : (BM, BN)
    moments : pointers (BM) to the two floats of each row and this tile.
    mask : (BM), the rows to write.
    """
    inside = (first_column + tl.arange(0, BN) < WIDTH)[None, :]
    count = tl.minimum(WIDTH - first_column, BN).to(tl.float32)
    mean = tl.sum(tl.where(inside, z, 0.0), 1) / count
    deviation = tl.where(inside, z - mean[:, None], 0.0)
    tl.store(moments, mean, mask=mask)
    tl.store(moments + 1, tl.sum(deviation * deviation, 1), mask=mask)


@triton.jit
def write_standard_deviation(moments, scale, mask, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Merge the moments of a layer's tiles.

    moments : pointers (BM) to those of the first tile.
    scale : pointers (BM) to the result.
    """
    mean = tl.load(moments)
    squares = tl.load(moments + 1)
    count = min(WIDTH, BN) * 1.0
    for tile in range(1, (WIDTH + BN - 1) // BN):
        tile_count = tl.minimum(WIDTH - tile * BN, BN).to(tl.float32)
        step = tl.load(moments + 2 * tile) - mean
        total = count + tile_count
        squares += tl.load(moments + 2 * tile + 1) + step * step * (count * tile_count / total)
        mean += step * (tile_count / total)
        count = total
    variance = squares / WIDTH
    floor = 1e-3 * tl.sqrt(mean * mean + variance)
    tl.store(scale, tl.maximum(tl.maximum(tl.sqrt(variance), floor), 1e-30), mask=mask)


def standard_deviation_reference(z: Tensor) -> Tensor:
    """Return the standard deviation (B), float64, of z (B, N)."""
    z = z.double()
    mean = z.mean(dim=1, keepdim=True)
    deviation = (z - mean).square().mean(dim=1).sqrt()
    return torch.maximum(deviation, 1e-3 * z.square().mean(dim=1).sqrt()).clamp_min(1e-30)
