"""Smoothed ReLUs for any torch module, by intercepting its calls; the module is never altered.

A network with kinks has a loss whose gradient jumps. For the first stages of a solve every ReLU is
replaced by a quadratic spline of half-width d, ::

    relu_d(h) = 0 for h <= -d;  (h + d)^2 / (4 d) for |h| < d;  h for h >= d
    relu_d'(h) = clamp((h + d) / (2 d), 0, 1)

and a leaky ReLU by ``slope * h + (1 - slope) * relu_d(h)``. d = k * width: k is the row's
smoothing (0 = the exact network), width the standard deviation of that image's own pre-activation
at its clean image, so that nothing depends on the neighbours in the batch.

Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

RELATIVE_FLOOR = 1e-3
"""Smallest width, as a share of the root mean square of the pre-activation."""

ABSOLUTE_FLOOR = 1e-30


class _SmoothedReLU(torch.autograd.Function):
    """Smoothed leaky ReLU and its derivative; d = 0 gives the exact one, bit for bit."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, d: Tensor, slope: float) -> Tensor:
        u = (h + d).div_((2 * d).clamp_min(torch.finfo(h.dtype).tiny)).clamp_(0, 1)
        ctx.save_for_backward(u)  # not h: an in-place form overwrites it
        ctx.slope = slope
        if slope == 0:
            return torch.where(h >= d, h, u * u * d)
        return torch.where(h >= d, h, slope * h + (1 - slope) * (u * u * d))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        if ctx.slope != 0:  # lerp gives exactly 1 for u = 1
            u = torch.lerp(torch.full_like(u, ctx.slope), torch.ones_like(u), u)
        return grads[0] * u, None, None


def smoothed_relu(h: Tensor, d: Tensor, slope: float = 0.0) -> Tensor:
    """``slope * h + (1 - slope) * relu_d(h)`` for half-widths ``d >= 0``.

    ``d`` has the dtype of ``h`` and broadcasts to it.
    """
    out: Tensor = _SmoothedReLU.apply(h, d, slope)  # type: ignore[no-untyped-call, unused-ignore]
    return out


def unit_width(h: Tensor) -> Tensor:
    """Width of each row of a pre-activation, (B, C).

    (B, units): standard deviation over the units, C = 1. (B, C, ...): per channel over the rest;
    where the rest is a single value it is taken over the channels, as for (B, units). Floored at
    1e-3 of the root mean square, and at 1e-30.
    """
    rows = h.detach().to(torch.float32)
    rest = rows[0, 0].numel() if h.dim() > 2 else 1
    rows = rows.reshape(len(h), 1, -1) if rest == 1 else rows.reshape(len(h), h.shape[1], -1)
    deviation = rows.std(dim=2, correction=0)
    floor = RELATIVE_FLOOR * rows.square().mean(dim=2).sqrt()
    return torch.maximum(deviation, floor).clamp_min(ABSOLUTE_FLOOR)


class Widths:
    """Which ReLU calls of a module can be smoothed, and the widths of every slot.

    Attributes
    ----------
    tails : dict of call index to shape
        Shape without the batch of each call whose first dimension is the batch. Calls are
        numbered in the order of the forward; a call that is not here, or comes with another
        shape, stays exact.
    stored : dict of call index to Tensor, (slots, C), float32
        Widths by slot; 0 where none was measured.
    """

    def __init__(self) -> None:
        self.tails: dict[int, tuple[int, ...]] = {}
        self.stored: dict[int, Tensor] = {}

    def learn(self, few: dict[int, tuple[int, ...]], more: dict[int, tuple[int, ...]]) -> None:
        """Take the shapes of all calls of two forwards with 2 and 3 rows."""
        self.tails = {
            index: shape[1:]
            for index, shape in few.items()
            if len(few) == len(more) and len(shape) > 1 and 0 not in shape
            and shape[0] == 2 and more[index] == (3, *shape[1:])
        }  # fmt: skip

    def record(self, index: int, slots: Tensor, widths: Tensor) -> None:
        """Store ``widths`` (B, C) of the call for ``slots`` (B,), growing the table."""
        table = self.stored.get(index)
        needed = int(slots.max()) + 1
        if table is None or len(table) < needed:
            grown = widths.new_zeros(max(needed, 2 * len(table) if table is not None else 0), 1)
            grown = grown.repeat(1, widths.shape[1])
            if table is not None:
                grown[: len(table)] = table
            self.stored[index] = table = grown
        table[slots] = widths


class Smoothing(TorchFunctionMode):
    """Function mode for one forward: measures widths and smooths the rows with k > 0.

    Parameters
    ----------
    widths : Widths
    k : Tensor (B,) float32, or None where every row is exact
    slots : Tensor (B,) int64
    measured : Tensor int64, row numbers to measure, or None
    """

    def __init__(
        self, widths: Widths, k: Tensor | None, slots: Tensor, measured: Tensor | None
    ) -> None:
        super().__init__()
        self.widths = widths
        self.k = k
        self.slots = slots
        self.measured = measured
        self.calls = 0

    def half_width(self, index: int, h: Tensor) -> Tensor | None:
        """Half-widths d that broadcast to the call's ``h``; None to leave the call exact."""
        if self.widths.tails.get(index) != tuple(h.shape[1:]) or len(h) != len(self.slots):
            return None
        if self.measured is not None:
            rows = h.detach()[self.measured]
            self.widths.record(index, self.slots[self.measured], unit_width(rows))
        table = self.widths.stored.get(index)
        if self.k is None or table is None:
            return None
        if int(self.slots.max()) >= len(table):  # a slot that was never measured has width 0
            self.widths.record(index, self.slots.max()[None], table.new_zeros(1, table.shape[1]))
            table = self.widths.stored[index]
        d = self.k[:, None] * table[self.slots]
        return d.to(h.dtype).view(d.shape + (1,) * (h.dim() - 2))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kink = find_kink(func, args, kwargs)
        if kink is None:
            return func(*args, **kwargs)
        h, slope, inplace = kink
        index = self.calls
        self.calls += 1
        d = self.half_width(index, h)
        if d is None:
            return func(*args, **kwargs)
        out = smoothed_relu(h, d, slope)
        return h.copy_(out) if inplace else out


class Survey(TorchFunctionMode):
    """Function mode that notes the shape of every interceptable call and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[int, tuple[int, ...]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kink = find_kink(func, args, kwargs)
        if kink is not None:
            self.shapes[len(self.shapes)] = tuple(kink[0].shape)
        return func(*args, **kwargs)


class Recomputation(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Dispatch mode for a backward: sees whether ReLUs run again in it, as checkpointing does.

    Those calls would come without the function mode, and so with the wrong derivative.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.seen = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        self.seen |= name in ("relu", "leaky_relu", "clamp", "clamp_min")
        return func(*args, **(kwargs or {}))


_RELU = ("input", "inplace")
_LEAKY = ("input", "negative_slope", "inplace")
_CLAMP = ("input", "min", "max")

# function: (its parameters, whether it always works in place)
_KINKS: dict[Any, tuple[tuple[str, ...], bool]] = {
    functional.relu: (_RELU, False),
    torch.relu: (_RELU, False),
    torch.relu_: (_RELU, True),
    Tensor.relu: (_RELU, False),
    Tensor.relu_: (_RELU, True),
    functional.leaky_relu: (_LEAKY, False),
    functional.leaky_relu_: (_LEAKY, True),
    torch._C._nn.leaky_relu: (_LEAKY, False),
    torch.clamp: (_CLAMP, False),
    torch.clip: (_CLAMP, False),
    torch.clamp_min: (_CLAMP, False),
    torch.clamp_: (_CLAMP, True),
    torch.clip_: (_CLAMP, True),
    torch.clamp_min_: (_CLAMP, True),
    Tensor.clamp: (_CLAMP, False),
    Tensor.clip: (_CLAMP, False),
    Tensor.clamp_min: (_CLAMP, False),
    Tensor.clamp_: (_CLAMP, True),
    Tensor.clip_: (_CLAMP, True),
    Tensor.clamp_min_: (_CLAMP, True),
}


def find_kink(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, float, bool] | None:
    """``(h, slope, in place)`` if the call is a ReLU or leaky ReLU in any spelling, else None.

    ``clamp`` counts where its lower bound is the number 0 and it has no upper bound.
    """
    known = _KINKS.get(func)
    if known is None or "out" in kwargs:
        return None
    names, inplace = known
    given = dict(zip(names, args, strict=False)) | kwargs
    h = given.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point():
        return None
    slope = 0.0
    if names is _CLAMP:
        low = given.get("min")
        number = isinstance(low, (int, float)) and not isinstance(low, bool)
        if not number or low != 0 or given.get("max") is not None:
            return None
    elif names is _LEAKY:
        slope = float(given.get("negative_slope", 0.01))
    return h, slope, inplace or bool(given.get("inplace", False))
