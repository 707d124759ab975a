"""Widths of the smoothing: how far the pre-activations of a layer spread, row by row.

The spread of z (N) is its standard deviation around its mean, at least 1e-3 of its root mean
square. A layer is worked on in tiles of columns: each writes its mean and the sum of squared
deviations from it, and these are merged in the order of the tiles, so that a row's widths depend on
nothing but the row.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def write_moments(z, moments, live, first, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Mean and squared deviations of the columns ``first + [0, BN)`` below WIDTH.

    z (BM, BN); moments (BM): pointers to the two floats of each row and this tile; live (BM).
    """
    inside = (first + tl.arange(0, BN) < WIDTH)[None, :]
    count = tl.minimum(WIDTH - first, BN).to(tl.float32)
    mean = tl.sum(tl.where(inside, z, 0.0), 1) / count
    off = tl.where(inside, z - mean[:, None], 0.0)
    tl.store(moments, mean, mask=live)
    tl.store(moments + 1, tl.sum(off * off, 1), mask=live)


@triton.jit
def write_spread(moments, width, live, WIDTH: tl.constexpr, BN: tl.constexpr):
    """Merge the tiles of a layer: moments (BM) pointers to the first, width (BM) to the result."""
    mean = tl.load(moments)
    squares = tl.load(moments + 1)
    count = min(WIDTH, BN) * 1.0
    for tile in range(1, (WIDTH + BN - 1) // BN):
        more = tl.minimum(WIDTH - tile * BN, BN).to(tl.float32)
        step = tl.load(moments + 2 * tile) - mean
        both = count + more
        squares += tl.load(moments + 2 * tile + 1) + step * step * (count * more / both)
        mean += step * (more / both)
        count = both
    variance = squares / WIDTH
    floor = 1e-3 * tl.sqrt(mean * mean + variance)
    tl.store(width, tl.maximum(tl.maximum(tl.sqrt(variance), floor), 1e-30), mask=live)


def spread_reference(z: Tensor) -> Tensor:
    """Spread (B) of z (B, N), in float64."""
    z = z.double()
    mean = z.mean(dim=1, keepdim=True)
    deviation = (z - mean).square().mean(dim=1).sqrt()
    return torch.maximum(deviation, 1e-3 * z.square().mean(dim=1).sqrt()).clamp_min(1e-30)
