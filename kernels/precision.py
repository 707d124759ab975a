"""Products of float32 matrices on units that take shorter numbers.

ieee
    Plain float32 multiplications and additions, no tensor cores.
tf32x3
    Each operand is the sum of two of 11 bits, and all but the product of the two small parts is
    added up: 22 bits. The weights are split once, on the host.

Sums are float32 in both. The references emulate the operands, not how tensor cores round
their sums; so errors on a GPU are measured on a GPU.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PRECISIONS = ("ieee", "tf32x3")
SPLIT = ("tf32x3",)
"""Those whose weights are stored in two parts."""


@triton.jit
def _nearest_tf32(a):
    # Half a unit of the 11th bit is added, the bits below it are cleared. NaN may lose its mark,
    # but then the rest a - high is NaN.
    return ((a.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def multiply(acc, a, b, LOW: tl.constexpr, PRECISION: tl.constexpr):
    """acc (M, N) + a (M, K) @ b (K, N); b: pointers, with the small parts LOW floats further."""
    high = tl.load(b)
    if PRECISION == "tf32x3":
        low = tl.load(b + LOW)
        a_high = _nearest_tf32(a)
        acc = tl.dot(a - a_high, high, acc, input_precision="tf32")
        acc = tl.dot(a_high, low, acc, input_precision="tf32")
        acc = tl.dot(a_high, high, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, high, acc, input_precision="ieee")
    return acc


def truncated(a: Tensor) -> Tensor:
    """a (float32) with the 13 low bits cleared."""
    return (a.view(torch.int32) & -0x2000).view(torch.float32)


def split(a: Tensor) -> tuple[Tensor, Tensor]:
    """a (float32) as the nearest number of 11 bits and the rest."""
    high = ((a.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, a - high


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a (M, K) @ b (K, N) as the kernels form it; float64 operands are multiplied as they are."""
    if a.dtype == torch.float64 or precision == "ieee":
        return a @ b
    if precision != "tf32x3":
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    small = truncated(a_low) @ b_high + a_high @ truncated(b_low)
    return small + a_high @ b_high
