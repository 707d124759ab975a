"""Smoothed max-pooling for `advcore.smoothing`: the logarithm of the sum of exponentials.

    max_T(h) = T log sum_i exp(h_i / T) over each window,  d max_T / d h_i = softmax(h / T)_i

Its excess over the maximum is between 0 and T log(number of values). T = 0.2 d for the half-width
d of `smoothing`, which comes from the pooled values of the image's own channel: where d is 0 the
maximum is taken by the call itself, bit for bit.

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
"""T as a part of the half-width d. Between 0.1 and 0.3 nothing changes; 0.5 is worse."""

# function: number of pooled dimensions
_FUNCTIONS: dict[Any, int] = {
    functional.max_pool1d: 1,
    functional.max_pool2d: 2,
    functional.max_pool3d: 3,
    torch.max_pool1d: 1,
    torch.max_pool2d: 2,
    torch.max_pool3d: 3,
}
_PARAMETERS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode",
               "return_indices")  # fmt: skip


class Windows(NamedTuple):
    """Windows of a pooling, one entry a pooled dimension; ``counts`` of them."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    counts: tuple[int, ...]

    def margins(self, sizes: Sequence[int]) -> list[int]:
        """What to add before and after each dimension, the last one first, for whole windows."""
        out = []
        for size, k, s, p, count in reversed(list(zip(sizes, *self, strict=True))):
            out += [p, max((count - 1) * s + k - p - size, 0)]
        return out

    def slices(self) -> Iterator[tuple[Any, ...]]:
        """Index of the values at each place of all windows at once."""
        for place in itertools.product(*map(range, self.kernel)):
            ends = zip(place, self.stride, self.counts, strict=True)
            yield (..., *(slice(i, i + (count - 1) * s + 1, s) for i, s, count in ends))


class _LogSumExp(torch.autograd.Function):
    """`smoothed_max` of rows with T > 0; finite for T = 0."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, temperature: Tensor, windows: Windows) -> Tensor:
        ctx.windows, ctx.shape = windows, h.shape
        margins = windows.margins(h.shape[2:])
        if any(margins):
            h = functional.pad(h, margins, value=-torch.inf)
        values = torch.stack([h[index] for index in windows.slices()])
        largest = values.amax(dim=0)
        largest = torch.where(largest.isinf(), 0, largest)  # inf - inf is NaN
        temperature = temperature.clamp_min(torch.finfo(h.dtype).tiny)
        weights = values.sub_(largest).div_(temperature).exp_()
        total = weights.sum(dim=0)
        ctx.save_for_backward(weights.div_(total))
        return total.log_().mul_(temperature).add_(largest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        margins = ctx.windows.margins(ctx.shape[2:])
        before, after = margins[::2][::-1], margins[1::2][::-1]
        sizes = [sum(one) for one in zip(before, ctx.shape[2:], after, strict=True)]
        out = weights.new_zeros(*ctx.shape[:2], *sizes)
        for index, weight in zip(ctx.windows.slices(), weights, strict=True):
            out[index].addcmul_(grads[0], weight)
        for dim, (start, size) in enumerate(zip(before, ctx.shape[2:], strict=True), 2):
            out = out.narrow(dim, start, size)
        return out, None, None


def smoothed_max(h: Tensor, d: Tensor, exact: Callable[[], Tensor], windows: Windows) -> Tensor:
    """``T log sum exp(h / T)`` over windows of ``h`` (B, C, ...), T = 0.2 ``d``.

    ``d >= 0`` has the dtype of ``h`` and the shape (B, C or 1, 1, ...); where it is 0 the result
    is that of ``exact``, the call itself.
    """
    temperature = TEMPERATURE * d
    smooth: Tensor = _LogSumExp.apply(h, temperature, windows)  # type: ignore[no-untyped-call, unused-ignore]
    positive = temperature > 0
    if positive.device.type == "cpu" and bool(positive.all()):
        return smooth
    return torch.where(positive, smooth, exact())


def find_windows(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Windows] | None:
    """Input and windows of a max-pooling in any spelling; None for every other call.

    Dilated windows, those whose indices are asked for, and input without a batch are others.
    """
    dims = _FUNCTIONS.get(func)
    if dims is None:
        return None
    given = dict(zip(_PARAMETERS, args, strict=False)) | kwargs
    h = given.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point() or h.dim() != dims + 2:
        return None
    if given.get("return_indices") or _each(given.get("dilation", 1), dims) != (1,) * dims:
        return None
    kernel = _each(given["kernel_size"], dims)
    stride = _each(given.get("stride") or kernel, dims)
    padding = _each(given.get("padding", 0), dims)
    ceil = bool(given.get("ceil_mode", False))
    shape = zip(h.shape[2:], kernel, stride, padding, strict=True)
    counts = tuple(_count(*one, ceil) for one in shape)
    return h, Windows(kernel, stride, padding, counts)


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """The value of each dimension: torch takes a number or a sequence, also of one number."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def _count(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """Windows along a dimension; with ``ceil`` the last one must begin before the padding after."""
    rest = size + 2 * padding - kernel
    count = (rest + stride - 1 if ceil else rest) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count
