"""Smoothed max-pooling for `advcore.oracles.smoothing`: the logarithm of the sum of exponentials.

    max_T(h) = T log sum_i exp(h_i / T) over each window,  d max_T / d h_i = softmax(h / T)_i

Its excess over the maximum is between 0 and T log(number of values). T is 0.2 d, with the
half-width d of `advcore.oracles.smoothing` for the pooled values of the image's own channel. Where
d is 0 the call itself takes the maximum, bit for bit.

Importing this file imports torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

TEMPERATURE = 0.2
"""Temperature T in units of the half-width d. Between 0.1 and 0.3 nothing changes; 0.5 is worse."""

_POOLED_DIMENSIONS: dict[Any, int] = {
    functional.max_pool1d: 1,
    functional.max_pool2d: 2,
    functional.max_pool3d: 3,
    torch.max_pool1d: 1,
    torch.max_pool2d: 2,
    torch.max_pool3d: 3,
}
"""Number of pooled dimensions of each function that is intercepted."""

_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode",
               "return_indices")  # fmt: skip
"""Names of the parameters of these functions, in order."""


class Windows(NamedTuple):
    """Windows of a pooling, with one entry for each pooled dimension.

    Attributes
    ----------
    kernel, stride, padding : tuple of int
        As torch's, in values.
    counts : tuple of int
        Number of windows.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    counts: tuple[int, ...]

    def pads(self, sizes: Sequence[int]) -> list[int]:
        """Values to add before and after each dimension, the last one first, for whole windows."""
        pads = []
        for size, k, s, p, count in reversed(list(zip(sizes, *self, strict=True))):
            pads += [p, max((count - 1) * s + k - p - size, 0)]
        return pads

    def slices(self) -> Iterator[tuple[Any, ...]]:
        """Yield, for each place in a window, the index of the values there in all windows."""
        for place in itertools.product(*map(range, self.kernel)):
            dims = zip(place, self.stride, self.counts, strict=True)
            yield (..., *(slice(i, i + (count - 1) * s + 1, s) for i, s, count in dims))


class _LogSumExp(torch.autograd.Function):
    """The form of `smoothed_max` for T > 0. It is finite for T = 0, but not the maximum."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, temperature: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, h.shape
        pads = windows.pads(h.shape[2:])
        if any(pads):
            h = functional.pad(h, pads, value=-torch.inf)
        values = torch.stack([h[index] for index in windows.slices()])
        maximum = values.amax(dim=0)
        maximum = torch.where(maximum.isinf(), 0, maximum)  # inf - inf is NaN
        temperature = temperature.clamp_min(torch.finfo(h.dtype).tiny)
        weights = values.sub_(maximum).div_(temperature).exp_()
        weight_sum = weights.sum(dim=0)
        ctx.save_for_backward(weights.div_(weight_sum))
        return weight_sum.log_().mul_(temperature).add_(maximum)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        pads = ctx.windows.pads(ctx.shape[2:])
        starts, ends = pads[::2][::-1], pads[1::2][::-1]
        padded_sizes = [sum(parts) for parts in zip(starts, ctx.shape[2:], ends, strict=True)]
        gradient = weights.new_zeros(*ctx.shape[:2], *padded_sizes)
        for index, weight in zip(ctx.windows.slices(), weights, strict=True):
            gradient[index].addcmul_(grads[0], weight)
        for dim, (start, size) in enumerate(zip(starts, ctx.shape[2:], strict=True), 2):
            gradient = gradient.narrow(dim, start, size)
        return gradient, None, None


def smoothed_max(
    h: Tensor, d: Tensor, exact_call: Callable[[], Tensor], windows: Windows
) -> Tensor:
    """``T log sum exp(h / T)`` over windows of ``h``, with T = 0.2 ``d``.

    Parameters
    ----------
    h : Tensor (B, C, ...)
    d : Tensor (B, C or 1, 1, ...)
        Half-widths >= 0 in the dtype of ``h``.
    exact_call : callable
        The pooling itself; its result stands where ``d`` is 0.
    windows : Windows
    """
    temperature = TEMPERATURE * d
    smoothed: Tensor = _LogSumExp.apply(h, temperature, windows)  # type: ignore[no-untyped-call, unused-ignore]
    mask = temperature > 0
    if mask.device.type == "cpu" and bool(mask.all()):
        return smoothed
    return torch.where(mask, smoothed, exact_call())


def find_windows(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Windows] | None:
    """Input and windows of a call that is a max-pooling, in any spelling; None for other calls.

    The result is None as well for dilated windows, for a pooling that returns its indices, and for
    input without a batch.
    """
    dims = _POOLED_DIMENSIONS.get(func)
    if dims is None:
        return None
    arguments = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
    h = arguments.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point() or h.dim() != dims + 2:
        return None
    if (
        arguments.get("return_indices")
        or _values(arguments.get("dilation", 1), dims) != (1,) * dims
    ):
        return None
    kernel = _values(arguments["kernel_size"], dims)
    stride = _values(arguments.get("stride") or kernel, dims)
    padding = _values(arguments.get("padding", 0), dims)
    ceil = bool(arguments.get("ceil_mode", False))
    extents = zip(h.shape[2:], kernel, stride, padding, strict=True)
    counts = tuple(_window_count(*extent, ceil) for extent in extents)
    return h, Windows(kernel, stride, padding, counts)


def _values(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One value for each dimension, from a number or a sequence, which may hold one number."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _window_count(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Number of windows along a dimension, as torch counts them.

    With ``ceil`` a last window may be incomplete, but it begins before the padding at the end.
    """
    span = size + 2 * padding - kernel
    count = (span + stride - 1 if ceil else span) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count
