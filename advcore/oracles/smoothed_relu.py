"""Smoothed leaky ReLU for any torch module: torch's operators, or on a GPU a kernel each way.

`advcore.oracles.smoothing` has the formula. Importing this file imports torch.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from ..kernels.smoothed_relu_formulas import (
    smoothed_relu_backward_reference,
    smoothed_relu_forward_reference,
)


class _SmoothedReLU(torch.autograd.Function):
    """Smoothed leaky ReLU and its derivative. With d = 0 both are the exact ones, bit for bit."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, d: Tensor, slope: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(h)
        out, u = _forward(h, d, slope, inplace)
        ctx.save_for_backward(u)  # not h, which the in-place form overwrites
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (u,) = ctx.saved_tensors
        return _backward(grads[0], u, ctx.slope), None, None, None


def smoothed_relu(h: Tensor, d: Tensor, slope: float = 0.0, inplace: bool = False) -> Tensor:
    """``slope * h + (1 - slope) * relu_d(h)`` for half-widths ``d >= 0``; ``inplace``: in ``h``.

    ``d`` has the dtype of ``h`` and broadcasts to it. On a GPU it is one kernel each way.
    """
    out: Tensor = _SmoothedReLU.apply(h, d, slope, inplace)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def _forward(h: Tensor, d: Tensor, slope: float, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """`smoothed_relu_forward_reference`, by the kernel on a GPU.

    Parameters
    ----------
    h : Tensor (B, C, ...) or (B, units), floating point
    d : Tensor that broadcasts to ``h``, of its dtype
        Half-widths >= 0. The kernel takes those of rows or channels: (B, C or 1, 1, ...).
    slope : float
    inplace : bool
        Whether the result is written to ``h``.
    """
    kernels = _kernels(h)
    if kernels is not None and kernels.takes(h, d):
        out, u = kernels.forward(h, d, slope, h if inplace else None)
    else:
        out, u = smoothed_relu_forward_reference(h, d, slope)
    return (h.copy_(out) if inplace and out is not h else out), u


def _backward(gradient: Tensor, u: Tensor, slope: float) -> Tensor:
    """`smoothed_relu_backward_reference`, by the kernel on a GPU."""
    kernels = _kernels(u)
    by_kernel = kernels is not None and kernels.takes(u)
    function = kernels.backward if by_kernel else smoothed_relu_backward_reference
    result: Tensor = function(gradient, u, slope)
    return result


def _kernels(tensor: Tensor) -> Any:
    """Return the module of the kernels for a tensor on a GPU; None for another, or without it."""
    return _checked_kernels(tensor.device, tensor.dtype) if tensor.is_cuda else None


@functools.cache
def _checked_kernels(device: torch.device, dtype: torch.dtype) -> Any:
    """Return the module of the kernels, or None where they do not give what the formulas give."""
    try:
        from ..kernels import smoothed_relu as kernels
    except ImportError:
        return None
    try:
        h = torch.linspace(-3, 3, 2 * 3 * 37, device=device, dtype=dtype).view(2, 3, 37)
        d = torch.tensor([0, 0.7, 1.3, 0.2, 2, 0], device=device, dtype=dtype).view(2, 3, 1)
        bound = 8 * torch.finfo(dtype).eps
        for slope in (0.0, 0.1):
            out, u = smoothed_relu_forward_reference(h, d, slope)
            result = kernels.forward(h, d, slope)
            torch.testing.assert_close(result, (out, u), rtol=bound, atol=bound)
            gradient = smoothed_relu_backward_reference(out, u, slope)
            found = kernels.backward(out, u, slope)
            torch.testing.assert_close(found, gradient, rtol=bound, atol=bound)
    except Exception as error:
        warnings.warn(
            f"advcore's kernel of the smoothed ReLU fails on {device} for {dtype} ({error}); "
            "torch's operators take its place, which are slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return kernels
