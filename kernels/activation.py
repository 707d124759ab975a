"""Activations h(z), their derivatives dh and their smoothed forms, as in csrc/cpu/activation.h.

The half-width d says how wide a kink is rounded off, or how far a sigmoid is stretched; with d = 0
the activation is exact. NaN in z gives NaN in h. The kernels take only exp and sqrt from the
hardware. log1p, erf and the centre of tanh are polynomials, as on the CPU.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from advcore.network import ACTIVATIONS, KINKED, SATURATING

IDENTITY = tl.constexpr(ACTIVATIONS.index("identity"))
RELU = tl.constexpr(ACTIVATIONS.index("relu"))
LEAKY_RELU = tl.constexpr(ACTIVATIONS.index("leaky_relu"))
SIGMOID = tl.constexpr(ACTIVATIONS.index("sigmoid"))
TANH = tl.constexpr(ACTIVATIONS.index("tanh"))
SOFTPLUS = tl.constexpr(ACTIVATIONS.index("softplus"))
GELU = tl.constexpr(ACTIVATIONS.index("gelu"))
GELU_TANH = tl.constexpr(ACTIVATIONS.index("gelu_tanh"))

KERNEL_ACTIVATIONS = (
    "identity",
    "relu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "softplus",
    "gelu",
    "gelu_tanh",
)
"""Activations that `activate` has. Networks with others run through torch on a GPU."""

SMOOTHED = tl.constexpr(tuple(name in (*KINKED, *SATURATING) for name in ACTIVATIONS))
"""Whether each activation has a smoothed form."""


@triton.jit
def _leaky_relu(z, d, SLOPE: tl.constexpr):
    step = tl.where(z > 0, 1.0, 0.0)
    smooth = d > 0
    divisor = tl.where(smooth, d, 1.0)
    t = tl.minimum(tl.maximum((z + divisor) * (0.5 / divisor), 0.0), 1.0)
    ramp = tl.where(z >= divisor, z, divisor * t * t)
    h = tl.where(smooth, SLOPE * z + (1 - SLOPE) * ramp, z * (SLOPE + (1 - SLOPE) * step))
    return h, SLOPE + (1 - SLOPE) * tl.where(smooth, t, step)


@triton.jit
def _relu(z, d):
    smooth = d > 0
    divisor = tl.where(smooth, d, 1.0)
    t = tl.minimum(tl.maximum((z + divisor) * (0.5 / divisor), 0.0), 1.0)
    spline = tl.where(smooth, divisor * t * t, 0.0)
    linear = tl.where(smooth, z >= divisor, z > 0)
    h = tl.where(linear, z, tl.where(z == z, spline, z))
    return h, tl.where(smooth, t, tl.where(z > 0, 1.0, 0.0))


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))  # The derivative as sigmoid (1 - sigmoid) would cancel.
    r = 1.0 / (1.0 + e)
    return tl.where(z == z, tl.where(z >= 0, r, e * r), z), e * r * r


@triton.jit
def _tanh(z):
    # Below 0.625 (1 - e) / (1 + e) cancels, and an odd polynomial (Cephes) takes its place.
    e = tl.exp(-2.0 * tl.abs(z))
    r = 1.0 / (1.0 + e)
    q = z * z
    p = -5.70498872745e-3 * q + 2.06390887954e-2
    p = p * q - 5.37397155531e-2
    p = p * q + 1.33314422036e-1
    p = p * q - 3.33332819422e-1
    large = (1.0 - e) * r
    h = tl.where(tl.abs(z) < 0.625, p * q * z + z, tl.where(z < 0, -large, large))
    return tl.where(z == z, h, z), 4.0 * e * r * r


@triton.jit
def _softplus(z):
    e = tl.exp(-tl.abs(z))
    r = 1.0 / (1.0 + e)
    s = e / (2.0 + e)  # log(1 + e) = 2 atanh s; the polynomial is good to 2e-7.
    q = s * s
    p = (2.0 / 13) * q + 2.0 / 11
    p = p * q + 2.0 / 9
    p = p * q + 2.0 / 7
    p = p * q + 2.0 / 5
    p = p * q + 2.0 / 3
    p = p * q + 2.0
    return tl.where(z == z, tl.maximum(z, 0.0) + p * s, z), tl.where(z >= 0, r, e * r)


@triton.jit
def _gelu(z):
    a = tl.abs(z)
    e = tl.exp(-0.5 * a * a)
    t = 1.0 / (1.0 + 0.35 * a)
    p = -2.912586938e-2 * t + 1.438722560e-1  # The tail of the normal density is e t P(t).
    p = p * t - 2.555046088e-1
    p = p * t + 1.589293435e-1
    p = p * t - 2.293717633e-2
    p = p * t + 1.054329535e-1
    p = p * t + 1.198524329e-1
    p = p * t + 1.398590829e-1
    p = p * t + 1.396215698e-1
    tail = e * t * p
    phi = tl.where(z < 0, tail, 1.0 - tail)
    return tl.where(z == z, z * phi, z), phi + z * e * 0.398942280


@triton.jit
def _gelu_tanh(z):
    q = z * z
    s, ds = _sigmoid(1.595769122 * (z + 0.044715 * z * q))
    return z * s, s + z * ds * (1.595769122 + 0.214063932 * q)


@triton.jit
def activate(z, d, KIND: tl.constexpr, SLOPE: tl.constexpr):
    """Return float32 h and dh (rows, columns) of z (rows, columns) and half-widths d (rows, 1)."""
    if KIND == RELU:
        h, dh = _relu(z, d)
    elif KIND == LEAKY_RELU:
        h, dh = _leaky_relu(z, d, SLOPE)
    elif KIND == SIGMOID:
        a = 1.0 / tl.sqrt(1.0 + 0.3926991 * d * d)
        h, dh = _sigmoid(a * z)
        dh = a * dh
    elif KIND == TANH:
        a = 1.0 / tl.sqrt(1.0 + 1.5707963 * d * d)
        h, dh = _tanh(a * z)
        dh = a * dh
    elif KIND == SOFTPLUS:
        h, dh = _softplus(z)
    elif KIND == GELU:
        h, dh = _gelu(z)
    elif KIND == GELU_TANH:
        h, dh = _gelu_tanh(z)
    else:
        h, dh = z, z * 0.0 + 1.0
    return h, dh


@triton.jit
def activation(
    z, d, h, dh, rows, columns,
    KIND: tl.constexpr, SLOPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write h and dh (rows, columns) of z (rows, columns) and half-widths d (rows).

    The grid is (rows / BM, columns / BN).
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    width = tl.load(d + row, mask=row < rows, other=0.0)[:, None]
    value, slope = activate(tl.load(z + offset, mask=inside, other=0.0), width, KIND, SLOPE)
    tl.store(h + offset, value, mask=inside)
    tl.store(dh + offset, slope, mask=inside)


def activation_reference(
    z: Tensor, d: Tensor, kind: str, slope: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return h and dh (B, N), in the dtype of z (B, N), by the formulas; d (B): half-widths."""
    width = d.to(z.dtype)[:, None]
    if kind in KINKED:
        leak = slope if kind == "leaky_relu" else 0.0
        divisor = torch.where(width > 0, width, 1.0)
        t = ((z + divisor) / (2 * divisor)).clamp(0, 1)
        spline = torch.where(z >= divisor, z, divisor * t * t)
        step = (z > 0).to(z.dtype)
        h = torch.where(width > 0, leak * z + (1 - leak) * spline, z * (leak + (1 - leak) * step))
        return h, leak + (1 - leak) * torch.where(width > 0, t, step)
    if kind == "sigmoid":
        a = 1 / (1 + math.pi / 8 * width * width).sqrt()
        h = torch.sigmoid(a * z)
        return h, a * h * torch.sigmoid(-a * z)
    if kind == "tanh":
        a = 1 / (1 + math.pi / 2 * width * width).sqrt()
        return torch.tanh(a * z), a / torch.cosh(a * z) ** 2
    if kind == "softplus":
        return z.clamp_min(0) + torch.log1p(torch.exp(-z.abs())), torch.sigmoid(z)
    if kind == "gelu":
        phi = torch.erfc(-z / math.sqrt(2)) / 2
        return z * phi, phi + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if kind == "gelu_tanh":
        s = math.sqrt(8 / math.pi)
        sigmoid, complement = (torch.sigmoid(sign * s * (z + 0.044715 * z**3)) for sign in (1, -1))
        return z * sigmoid, sigmoid + z * sigmoid * complement * s * (1 + 3 * 0.044715 * z * z)
    if kind == "identity":
        return z.clone(), torch.ones_like(z)
    raise ValueError(f"kind must be one of {KERNEL_ACTIVATIONS}, got {kind!r}")
