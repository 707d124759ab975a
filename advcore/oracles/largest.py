"""Smoothed maxima and minima of values for `advcore.oracles.smoothing`: amax, max, maximum, topk.

A maximum over values h_i of a row has the form of `advcore.oracles.pooling`, ::

    max_T(h) = T log sum_i exp(h_i / T),  d max_T / d h_i = softmax(h / T)_i

It is the maximum of ``sum_i p_i h_i + T H(p)`` over probabilities p with their entropy H, so that
it exceeds the maximum by 0 to T log(number of values), and its derivative is the p of that maximum
(Boyd and Vandenberghe, Convex Optimization, 3.1.5 and exercise 3.50). T is 0.5 d, with the mean
half-width d of the values that are compared. A minimum is ``-max_T(-h)``. The maximum of two
tensors is that over their stack. The values of ``sort`` and ``topk`` are smoothed at the ends,
where they are a maximum or a minimum; those between stay as they are. Where d is 0 the result is
that of the call itself, bit for bit.

Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

TEMPERATURE = 0.5
"""Temperature T in units of the half-width d (docs/decisions.md)."""

Smoothed = Callable[[Tensor, Tensor], Any]

_REDUCTIONS: dict[Any, tuple[tuple[str, ...], int]] = {
    function: (parameters, sign)
    for functions, parameters, sign in (
        ((torch.amax, Tensor.amax), ("input", "dim", "keepdim"), 1),
        ((torch.amin, Tensor.amin), ("input", "dim", "keepdim"), -1),
        ((torch.max, Tensor.max), ("input", "dim", "keepdim"), 1),
        ((torch.min, Tensor.min), ("input", "dim", "keepdim"), -1),
        ((torch.maximum, Tensor.maximum), ("input", "other"), 1),
        ((torch.minimum, Tensor.minimum), ("input", "other"), -1),
        ((torch.topk, Tensor.topk), ("input", "k", "dim", "largest", "sorted"), 1),
        ((torch.sort, Tensor.sort), ("input", "dim", "descending"), 1),
    )
    for function in functions
}
"""Parameters of each function, and -1 for a minimum."""
_PAIRS = (torch.maximum, Tensor.maximum, torch.minimum, Tensor.minimum)
_WITH_INDICES = (torch.max, Tensor.max, torch.min, Tensor.min)
_TOPK, _SORT = (torch.topk, Tensor.topk), (torch.sort, Tensor.sort)


def smoothed_largest(h: Tensor, d: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``T log sum exp(h / T)`` over dimensions ``dims`` of ``h``, which stay with size 1.

    Parameters
    ----------
    h : Tensor (B, ...), floating point
    d : Tensor that broadcasts to ``h``, of its dtype and number of dimensions
        Half-widths >= 0. Where all that count are 0 the result is not to be used; it takes no
        gradient there.
    dims : tuple of int
    """
    temperature = TEMPERATURE * d.mean(dim=dims, keepdim=True)
    smoothed = temperature > 0
    temperature = torch.where(smoothed, temperature, 1)
    h = torch.where(smoothed, h, 0)  # an infinite value would give a gradient of 0 * NaN
    maximum = h.detach().amax(dim=dims, keepdim=True)
    maximum = torch.where(maximum.isinf(), 0, maximum)  # inf - inf is NaN
    exponents = (h - maximum) / temperature
    return torch.logsumexp(exponents, dim=dims, keepdim=True) * temperature + maximum


def find_largest(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Smoothed] | None:
    """Input and smoothed form of a call that takes a maximum or minimum; None for other calls.

    The form is a function of the input and half-widths d. The input of ``maximum`` and ``minimum``
    is the stack of both, (B, 2, ...). A call is None if it compares rows of a batch.
    """
    if func not in _REDUCTIONS or "out" in kwargs:
        return None
    parameters, sign = _REDUCTIONS[func]
    arguments = dict(zip(parameters, args, strict=False)) | kwargs
    h = arguments.pop("input", None)
    if not isinstance(h, Tensor) or not h.is_floating_point() or h.dim() == 0:
        return None
    if func in _PAIRS:
        other = arguments["other"]
        if not isinstance(other, Tensor) or other.shape != h.shape or other.dtype != h.dtype:
            return None
        # The call itself gives the exact rows: a maximum shares the gradient of a tie otherwise.
        pair = partial(_pair, exact=partial(func, *args, **kwargs), sign=sign)
        return torch.stack([h, other], dim=1), pair
    dim = arguments.get("dim", -1 if func in _TOPK + _SORT else None)
    if dim is None or isinstance(dim, Tensor):
        return None
    dims = tuple(sorted(d % h.dim() for d in ((dim,) if isinstance(dim, int) else dim)))
    if not dims or 0 in dims:
        return None

    def exact(values: Tensor) -> Any:
        return func(values, *args[1:], **kwargs) if args else func(**kwargs | {"input": values})

    if func in _TOPK:
        if arguments["k"] > 1 and not arguments.get("sorted", True):
            return None
        sign = 1 if arguments.get("largest", True) else -1
        return h, partial(_ends, exact=exact, dim=dims[0], signs=(sign, 0))
    if func in _SORT:
        sign = 1 if arguments.get("descending", False) else -1
        return h, partial(_ends, exact=exact, dim=dims[0], signs=(sign, -sign))
    keepdim = bool(arguments.get("keepdim", False))
    return h, partial(_reduced, exact=exact, dims=dims, sign=sign, keepdim=keepdim)


def _end(h: Tensor, d: Tensor, dims: tuple[int, ...], sign: int) -> Tensor:
    return sign * smoothed_largest(sign * h, d, dims)


def _reduced(
    h: Tensor,
    d: Tensor,
    exact: Callable[[Tensor], Any],
    dims: tuple[int, ...],
    sign: int,
    keepdim: bool,
) -> Any:
    result = exact(h)
    plain = result if isinstance(result, Tensor) else result[0]
    smoothed, mask = _end(h, d, dims, sign), (d > 0).any(dim=dims, keepdim=True)
    if not keepdim:
        smoothed, mask = smoothed.squeeze(dims), mask.squeeze(dims)
    values = torch.where(mask, smoothed, plain)
    return values if isinstance(result, Tensor) else type(result)((values, result[1]))


def _pair(h: Tensor, d: Tensor, exact: Callable[[], Tensor], sign: int) -> Tensor:
    smoothed = _end(h, d, (1,), sign).squeeze(1)
    return torch.where((d > 0).any(dim=1), smoothed, exact())


def _ends(
    h: Tensor, d: Tensor, exact: Callable[[Tensor], Any], dim: int, signs: tuple[int, int]
) -> Any:
    """Sorted values of which the first and the last are smoothed, by the signs that are not 0."""
    result = exact(h)
    values, count = result[0], result[0].shape[dim]
    mask = (d > 0).any(dim=dim, keepdim=True)
    first = torch.where(mask, _end(h, d, (dim,), signs[0]), values.narrow(dim, 0, 1))
    parts = [first, values.narrow(dim, 1, count - 1)]
    if signs[1] and count > 1:
        last = values.narrow(dim, count - 1, 1)
        parts[1:] = [
            values.narrow(dim, 1, count - 2),
            torch.where(mask, _end(h, d, (dim,), signs[1]), last),
        ]
    return type(result)((torch.cat(parts, dim), result[1]))
