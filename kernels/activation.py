"""Activations h(z) with their derivatives dh and their smoothed forms: csrc/cpu/activation.h.

NaN in z gives NaN in h. Only exp and sqrt of the hardware are used: log1p, erf and the centre of
tanh are polynomials, as on the CPU.
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

SMOOTHED = tl.constexpr(tuple(name in (*KINKED, *SATURATING) for name in ACTIVATIONS))
"""Whether each has a smoothed form."""


@triton.jit
def _leaky_relu(z, d, SLOPE: tl.constexpr):
    on = tl.where(z > 0, 1.0, 0.0)
    smooth = d > 0
    half = tl.where(smooth, d, 1.0)
    t = tl.minimum(tl.maximum((z + half) * (0.5 / half), 0.0), 1.0)
    ramp = tl.where(z >= half, z, half * t * t)
    h = tl.where(smooth, SLOPE * z + (1 - SLOPE) * ramp, z * (SLOPE + (1 - SLOPE) * on))
    return h, SLOPE + (1 - SLOPE) * tl.where(smooth, t, on)


@triton.jit
def _relu(z, d):
    smooth = d > 0
    half = tl.where(smooth, d, 1.0)
    t = tl.minimum(tl.maximum((z + half) * (0.5 / half), 0.0), 1.0)
    low = tl.where(smooth, half * t * t, 0.0)
    above = tl.where(smooth, z >= half, z > 0)
    h = tl.where(above, z, tl.where(z == z, low, z))
    return h, tl.where(smooth, t, tl.where(z > 0, 1.0, 0.0))


@triton.jit
def _sigmoid(z):
    e = tl.exp(-tl.abs(z))  # 1 - sigmoid would cancel
    r = 1.0 / (1.0 + e)
    return tl.where(z == z, tl.where(z >= 0, r, e * r), z), e * r * r


@triton.jit
def _tanh(z):
    e = tl.exp(
        -2.0 * tl.abs(z)
    )  # (1 - e) / (1 + e) cancels below 0.625: an odd polynomial (Cephes)
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
    s = e / (2.0 + e)  # log(1 + e) = 2 atanh s, to 2e-7
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
    p = -2.912586938e-2 * t + 1.438722560e-1  # the normal tail: e t P(t)
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
    """z (rows, columns), half-widths d (rows, 1), 0: exact -> (h, dh), like z, float32."""
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
    """z (rows, columns), d (rows) -> h, dh (rows, columns); grid (rows / BM, columns / BN)."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    column = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    width = tl.load(d + row, mask=row < rows, other=0.0)
    value, slope = activate(tl.load(z + at, mask=inside, other=0.0), width[:, None], KIND, SLOPE)
    tl.store(h + at, value, mask=inside)
    tl.store(dh + at, slope, mask=inside)


def activation_reference(
    z: Tensor, d: Tensor, kind: str, slope: float = 0.01
) -> tuple[Tensor, Tensor]:
    """The same from the formulas: z (B, N), d (B) -> h, dh (B, N), of z's dtype."""
    half = d.to(z.dtype)[:, None]
    if kind in KINKED:
        low = slope if kind == "leaky_relu" else 0.0
        width = torch.where(half > 0, half, 1.0)
        t = ((z + width) / (2 * width)).clamp(0, 1)
        spline = torch.where(z >= width, z, width * t * t)
        on = (z > 0).to(z.dtype)
        h = torch.where(half > 0, low * z + (1 - low) * spline, z * (low + (1 - low) * on))
        return h, low + (1 - low) * torch.where(half > 0, t, on)
    if kind == "sigmoid":
        a = 1 / (1 + math.pi / 8 * half * half).sqrt()
        h = torch.sigmoid(a * z)
        return h, a * h * torch.sigmoid(-a * z)
    if kind == "tanh":
        a = 1 / (1 + math.pi / 2 * half * half).sqrt()
        return torch.tanh(a * z), a / torch.cosh(a * z) ** 2
    if kind == "softplus":
        return z.clamp_min(0) + torch.log1p(torch.exp(-z.abs())), torch.sigmoid(z)
    if kind == "gelu":
        phi = torch.erfc(-z / math.sqrt(2)) / 2
        return z * phi, phi + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    if kind == "gelu_tanh":
        s = math.sqrt(8 / math.pi)
        sigmoid, other = (torch.sigmoid(sign * s * (z + 0.044715 * z**3)) for sign in (1, -1))
        return z * sigmoid, sigmoid + z * sigmoid * other * s * (1 + 3 * 0.044715 * z * z)
    if kind == "identity":
        return z.clone(), torch.ones_like(z)
    raise ValueError(f"kind must be one of {ACTIVATIONS}, got {kind!r}")
