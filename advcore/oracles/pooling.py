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

_ADAPTIVE: dict[Any, int] = {
    functional.adaptive_max_pool1d: 1,
    functional.adaptive_max_pool2d: 2,
    functional.adaptive_max_pool3d: 3,
}
"""The same of pooling to a number of windows; it is taken where they divide the values evenly."""

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


class _SmoothedMax(torch.autograd.Function):
    """`smoothed_max`. With ``exact`` T may be 0: there the result is that of the pooling itself.

    The pooling runs once, as its result is also the maximum that the log-sum-exp needs. ``rows``
    are the smoothed ones; None: any may be.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        temperature: Tensor,
        windows: Windows,
        pool: Callable[[Tensor], Tensor],
        rows: Tensor | None,
        exact: bool,
    ) -> Tensor:
        ctx.windows, ctx.rows, ctx.exact = windows, rows, None
        ctx.shape, ctx.channels_last = h.shape, _is_channels_last(h)
        if not exact:
            out, weights = _log_sum_exp(h, temperature, windows)
            ctx.save_for_backward(weights)
            return out
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            pooled = pool(leaf)
        maximum = pooled.detach()
        parts = [h, temperature, maximum]
        if rows is not None:
            parts = [part[rows] for part in parts]
        smoothed, weights = _log_sum_exp(parts[0], parts[1], windows, parts[2])
        mask = parts[1] > 0
        out = torch.where(mask, smoothed, parts[2])
        ctx.exact = leaf, pooled
        ctx.save_for_backward(weights, mask)
        return out if rows is None else maximum.clone().index_copy_(0, rows, out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *masks = ctx.saved_tensors
        if ctx.exact is None:
            rows, channels, *sizes = ctx.shape
            start = weights.new_zeros(rows, channels, *sizes)
            if ctx.channels_last:
                start = weights.new_zeros(rows, *sizes, channels).movedim(-1, 1)
            result = _add_log_sum_exp_gradient(start, grads[0], weights, ctx.windows)
            return result, None, None, None, None, None
        leaf, pooled = ctx.exact
        of_rows = grads[0] if ctx.rows is None else grads[0][ctx.rows]
        of_maximum = torch.where(masks[0], 0, of_rows)
        if ctx.rows is not None:
            of_maximum = grads[0].clone().index_copy_(0, ctx.rows, of_maximum)
        (gradient,) = torch.autograd.grad(pooled, leaf, of_maximum)
        of_rows = torch.where(masks[0], of_rows, 0)
        start = gradient if ctx.rows is None else gradient[ctx.rows]
        result = _add_log_sum_exp_gradient(start, of_rows, weights, ctx.windows)
        if ctx.rows is not None:
            result = gradient.index_copy_(0, ctx.rows, result)
        return result, None, None, None, None, None


def _is_channels_last(h: Tensor) -> bool:
    """Whether the channels of a position follow each other in memory, and positions do not."""
    return h.stride(1) == 1 and h.shape[1] > 1 and h.stride(-1) != 1


def _log_sum_exp(
    h: Tensor, temperature: Tensor, windows: Windows, maximum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each window and its derivatives (places, B, C, ...), finite where T is 0."""
    channels = -1 if _is_channels_last(h) else 1  # their dimension here: sums are contiguous
    pads = windows.pads(h.shape[2:])
    if any(pads):
        h = functional.pad(h, pads, value=-torch.inf)
    temperature = temperature.movedim(1, channels)
    values = torch.stack([h[index].movedim(1, channels) for index in windows.slices()])
    maximum = values.amax(dim=0) if maximum is None else maximum.movedim(1, channels)
    maximum = torch.where(maximum.isinf(), 0, maximum)  # inf - inf is NaN
    temperature = temperature.clamp_min(torch.finfo(h.dtype).tiny)
    weights = values.sub_(maximum).div_(temperature).exp_()
    weight_sum = weights.sum(dim=0)
    weights.div_(weight_sum)
    out = weight_sum.log_().mul_(temperature).add_(maximum)
    return out.movedim(channels, 1), weights.movedim(2 if channels == 1 else -1, 2)


def _add_log_sum_exp_gradient(
    start: Tensor, grads: Tensor, weights: Tensor, windows: Windows
) -> Tensor:
    """Add the gradient of `_log_sum_exp` for ``grads`` to ``start``, of the shape of its input."""
    sizes = start.shape[2:]
    pads = windows.pads(sizes)
    gradient = functional.pad(start, pads) if any(pads) else start
    for index, weight in zip(windows.slices(), weights, strict=True):
        gradient[index].addcmul_(grads, weight)
    for dim, (begin, size) in enumerate(zip(pads[::2][::-1], sizes, strict=True), 2):
        gradient = gradient.narrow(dim, begin, size)
    return gradient


def smoothed_max(
    h: Tensor, d: Tensor, pool: Callable[[Tensor], Tensor], windows: Windows
) -> Tensor:
    """``T log sum exp(h / T)`` over windows of ``h``, with T = 0.2 ``d``.

    Parameters
    ----------
    h : Tensor (B, C, ...)
    d : Tensor (B, C or 1, 1, ...)
        Half-widths >= 0 in the dtype of ``h``. On the CPU rows without one take no part in the
        log-sum-exp. A GPU would have to be waited for to know them.
    pool : callable
        The pooling itself; its result stands where ``d`` is 0.
    windows : Windows
    """
    temperature = TEMPERATURE * d
    rows, exact = None, True
    if h.device.type == "cpu":
        smoothed = (temperature > 0).flatten(1)
        exact = not bool(smoothed.all())
        rows = smoothed.any(dim=1).nonzero()[:, 0] if exact else None
        if rows is not None and not len(rows):
            return pool(h)
    out: Tensor = _SmoothedMax.apply(h, temperature, windows, pool, rows, exact)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def find_windows(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Windows] | None:
    """Input and windows of a call that is a max-pooling, in any spelling; None for other calls.

    The result is None as well for dilated windows, for a pooling that returns its indices, and for
    input without a batch.
    """
    if func in _ADAPTIVE:
        return _find_adaptive(_ADAPTIVE[func], args, kwargs)
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


def _find_adaptive(
    dims: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Windows] | None:
    """`find_windows` of an adaptive pooling: windows of equal sizes, without gaps."""
    arguments = dict(zip(("input", "output_size", "return_indices"), args, strict=False)) | kwargs
    h, counts = arguments["input"], _values(arguments["output_size"], dims)
    if not h.is_floating_point() or h.dim() != dims + 2 or arguments.get("return_indices"):
        return None
    counts = tuple(
        size if count is None else count for size, count in zip(h.shape[2:], counts, strict=True)
    )
    if any(size % count for size, count in zip(h.shape[2:], counts, strict=True)):
        return None
    kernel = tuple(size // count for size, count in zip(h.shape[2:], counts, strict=True))
    return h, Windows(kernel, kernel, (0,) * dims, counts)


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
