"""Products of float32 matrices, also on tensor cores, which take shorter numbers.

ieee
    Plain float32 multiplications and additions, without tensor cores.
tf32x3
    Each operand is split into a high and a low part of 11 bits each. The product is the sum of
    three products of parts, all but that of the two low ones, and is good to 22 bits. The weights
    are split once, on the host.

Sums are float32 in both. The references emulate the operands, but not how tensor cores round their
sums, so that errors on a GPU are measured on a GPU.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISIONS = ("ieee", "tf32x3")
SPLIT = ("tf32x3",)
"""Precisions whose weights are stored in two parts."""


@triton.jit
def _nearest_tf32(a):
    # Half a unit of the 11th bit is added, and the bits below it are cleared. A NaN may become a
    # number here, but then the low part a - high is NaN.
    return ((a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def multiply(acc, a, b, LOW_OFFSET: tl.constexpr, PRECISION: tl.constexpr):
    """Return acc (M, N) + a (M, K) @ b (K, N).

    b : pointers (K, N); the low parts lie LOW_OFFSET floats behind the high ones.
    """
    high = tl.load(b)
    if PRECISION == "tf32x3":
        low = tl.load(b + LOW_OFFSET)
        a_high = _nearest_tf32(a)
        acc = tl.dot(a - a_high, high, acc, input_precision="tf32")
        acc = tl.dot(a_high, low, acc, input_precision="tf32")
        acc = tl.dot(a_high, high, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, high, acc, input_precision="ieee")
    return acc


def truncated(a: Tensor) -> Tensor:
    """Return a (float32) with the 13 low bits cleared."""
    return (a.view(torch.int32) & -0x2000).view(torch.float32)


def split(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest number of 11 bits to a (float32), and the rest."""
    high = ((a.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, a - high


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """Return a (M, K) @ b (K, N) as the kernels compute it. float64 operands are not split."""
    if a.dtype == torch.float64 or precision == "ieee":
        return a @ b
    if precision != "tf32x3":
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    correction = truncated(a_low) @ b_high + a_high @ truncated(b_low)
    return correction + a_high @ b_high
