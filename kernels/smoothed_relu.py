"""Smoothed leaky ReLU of a tensor of any shape: one pass over it each way.

A program takes a block of one row's numbers in the order of memory, so that a channel follows from
the place in the row: contiguous rows have a channel's numbers one after the other, rows of
``torch.channels_last`` have the channels of a position so. Products and sums are not fused, and
divisions round to nearest: float32 and float64 give the bits of torch's operators where the slope
is 0. Types of 16 bits are computed in float32.
"""
# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import LoadedKernel
from .machine_code import MachineCode, compile_kernel, make_launch
from .smoothed_relu_formulas import (
    smoothed_relu_backward_reference,
    smoothed_relu_forward_reference,
)

__all__ = [
    "smoothed_relu_backward",
    "smoothed_relu_backward_reference",
    "smoothed_relu_forward",
    "smoothed_relu_forward_reference",
]

TYPES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
"""Triton's name of each type that the kernels take."""
LARGEST_BLOCK = 1024
"""Numbers of a program. Rows with fewer take a smaller block."""
NUMBERS = ("row_size", "inner", "channels", "d_step")
"""Parameters that are no tensors."""
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _block(row_size, BLOCK: tl.constexpr):
    """Row of this program, places in the row, and which of these there are."""
    blocks = (row_size + BLOCK - 1) // BLOCK
    place = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    return (tl.program_id(0) // blocks).to(tl.int64), place, place < row_size


@triton.jit
def smoothed_relu_forward(
    h, d, out, u, row_size, inner, channels, d_step,
    SLOPE: tl.constexpr, TINY: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write out and u, in the order of h, for half-widths d (rows, channels).

    row_size : numbers of a row.
    inner : numbers of a channel that follow each other.
    channels : half-widths of a row.
    d_step : from those of a row to the next one's.
    TINY : least divisor.
    WIDE : whether numbers are float64.
    """
    row, place, inside = _block(row_size, BLOCK)
    kind = tl.float64 if WIDE else tl.float32
    at = row * row_size + place
    value = tl.load(h + at, mask=inside, other=0.0).to(kind)
    width_at = row * d_step + (place // inner) % channels
    width = tl.load(d + width_at, mask=inside, other=0.0).to(kind)
    divisor = tl.maximum(2 * width, TINY, propagate_nan=tl.PropagateNan.ALL)
    t = (value + width) / divisor if WIDE else tl.div_rn(value + width, divisor)
    t = tl.minimum(tl.maximum(t, 0.0, tl.PropagateNan.ALL), 1.0, tl.PropagateNan.ALL)
    spline = t * t * width
    if SLOPE != 0:
        spline = SLOPE * value + (1 - SLOPE) * spline
    tl.store(out + at, tl.where(value >= width, value, spline), mask=inside)
    tl.store(u + at, t, mask=inside)


@triton.jit
def smoothed_relu_backward(
    gradient, u, dh, row_size, SLOPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the gradient dh of h, all in one order of memory."""
    row, place, inside = _block(row_size, BLOCK)
    kind = tl.float64 if WIDE else tl.float32
    at = row * row_size + place
    factor = tl.load(u + at, mask=inside, other=0.0).to(kind)
    if SLOPE != 0:
        above = 1 - (1 - SLOPE) * (1 - factor)  # exactly 1 for u = 1
        factor = tl.where(factor < 0.5, SLOPE + factor * (1 - SLOPE), above)
    value = tl.load(gradient + at, mask=inside, other=0.0).to(kind)
    tl.store(dh + at, value * factor, mask=inside)


def takes(h: Tensor, d: Tensor | None = None) -> bool:
    """Return whether the kernels know the type, and half-widths of the rows or their channels."""
    if h.dtype not in TYPES or h.dim() < 2 or h.numel() == 0:
        return False
    widths = (tuple(h.shape[:channels]) + (1,) * (h.dim() - channels) for channels in (1, 2))
    return d is None or (d.dtype == h.dtype and tuple(d.shape) in widths)


def forward(h: Tensor, d: Tensor, slope: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return out and u for ``h`` (B, C, ...) and ``d`` (B, C or 1, 1, ...), as `takes` allows.

    They are in memory as h is, or contiguous where h has gaps or another order. ``out`` may be h.
    """
    order = _order(h)
    if order is None:
        h, out, order = h.contiguous(), None, torch.contiguous_format
    channels = d.shape[1]
    if channels > 1 and d.stride(1) != 1:
        d = d.contiguous()
    inner = 1 if order != torch.contiguous_format else math.prod(h.shape[2:])
    out, u = torch.empty_like(h) if out is None else out, torch.empty_like(h)
    constants = {"TINY": torch.finfo(h.dtype).tiny}
    numbers = (inner, channels, d.stride(0))
    _run(smoothed_relu_forward, (h, d, out, u), numbers, slope, constants)
    return out, u


def backward(gradient: Tensor, u: Tensor, slope: float) -> Tensor:
    """Return the gradient of h for a ``u`` of `forward`."""
    if gradient.stride() != u.stride():
        gradient = torch.empty_like(u).copy_(gradient)
    dh = torch.empty_like(u)
    _run(smoothed_relu_backward, (gradient, u, dh), (), slope, {})
    return dh


def _order(h: Tensor) -> torch.memory_format | None:
    """Return the order in which h is without gaps in memory, if it is one that the kernels know."""
    orders: list[torch.memory_format] = [torch.contiguous_format]
    if h.dim() in (4, 5):
        orders.append(torch.channels_last if h.dim() == 4 else torch.channels_last_3d)
    return next((order for order in orders if h.is_contiguous(memory_format=order)), None)


def _run(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
    slope: float,
    constants: dict[str, Any],
) -> None:
    """Queue a kernel on torch's current stream, or run it in Triton's interpreter on the CPU."""
    first = tensors[0]
    row_size = first[0].numel()
    block = min(LARGEST_BLOCK, triton.next_power_of_2(row_size))
    grid = len(first) * triton.cdiv(row_size, block)
    constants = constants | {"SLOPE": slope, "WIDE": first.dtype == torch.float64, "BLOCK": block}
    numbers = (row_size, *numbers)
    if not first.is_cuda:
        kernel[(grid,)](*tensors, *numbers, **constants)
        return
    values = (*(tensor.data_ptr() for tensor in tensors), *numbers)
    aligned = tuple(value % 16 == 0 for value in values[: len(tensors) + 1])
    with torch.cuda.device(first.device):
        loaded, code = _loaded(
            kernel, TYPES[first.dtype], aligned, tuple(constants.items()), first.device.index
        )
        loaded.launch(make_launch(code, grid, values))


@functools.cache
def _loaded(
    kernel: Any, kind: str, aligned: tuple[bool, ...], constants: tuple[Any, ...], device: int
) -> tuple[LoadedKernel, MachineCode]:
    """Return a kernel on torch's current device, whose number is ``device``."""
    torch.cuda.synchronize()  # torch's context becomes current in this thread
    major, minor = torch.cuda.get_device_capability(device)
    code = compiled(kernel, kind, aligned, dict(constants), 10 * major + minor)
    return LoadedKernel(code), code


def compiled(
    kernel: Any, kind: str, aligned: tuple[bool, ...], constants: dict[str, Any], arch: int
) -> MachineCode:
    """Return the machine code of a kernel for an architecture (90: sm_90).

    Parameters
    ----------
    kind : one of the names of `TYPES`
    aligned : whether each tensor's address, and then the size of a row, is a multiple of 16.
    """
    names = [name for name in kernel.arg_names if name not in constants]
    parameters = {name: "i32" if name in NUMBERS else f"*{kind}" for name in names}
    multiples = [name for name, multiple in zip(names, aligned, strict=False) if multiple]
    return compile_kernel(kernel, parameters, multiples, constants, OPTIONS, arch)
