"""Smoothed leaky ReLU and its derivative by torch's operators; `smoothed_relu` has the kernels.

Importing this file imports torch, but not triton.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed_relu_forward_reference(h: Tensor, d: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """Return ``slope * h + (1 - slope) * relu_d(h)`` and ``u = relu_d'(h)``, both like ``h``.

    With d = 0 both are those of the exact function, bit for bit.
    """
    u = (h + d).div_((2 * d).clamp_min(torch.finfo(h.dtype).tiny)).clamp_(0, 1)
    spline = u * u * d
    if slope != 0:
        spline = slope * h + (1 - slope) * spline
    return torch.where(h >= d, h, spline), u


def smoothed_relu_backward_reference(gradient: Tensor, u: Tensor, slope: float) -> Tensor:
    """Return the gradient of h, from that of the result and the ``u`` of the forward."""
    if slope != 0:  # lerp gives exactly 1 for u = 1
        u = torch.lerp(torch.full_like(u, slope), torch.ones_like(u), u)
    return gradient * u
