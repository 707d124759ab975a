"""Smoothed activations and pooling for any torch module, which is not altered: calls are caught.

Two families have a smoothed form, used in the first stages of a solve. A network with kinks has a
loss whose gradient jumps: every ReLU is replaced by a quadratic spline of half-width d, ::

    relu_d(h) = 0 for h <= -d;  (h + d)^2 / (4 d) for |h| < d;  h for h >= d
    relu_d'(h) = clamp((h + d) / (2 d), 0, 1)

and a leaky ReLU by ``slope * h + (1 - slope) * relu_d(h)``. Units that saturate pass no gradient:
sigmoid and tanh are stretched as if h had noise of standard deviation d (their convolution with a
normal density, by the probit approximation; MacKay 1992), ::

    sigmoid_d(h) = sigmoid(h / sqrt(1 + pi d^2 / 8)),  tanh_d(h) = tanh(h / sqrt(1 + pi d^2 / 2))

Max-pooling becomes a log-sum-exp (`advcore.pooling`).

d = k * width: k is the row's smoothing (0 = the exact network), width the standard deviation of
that image's own pre-activation at its clean image, so that nothing depends on the neighbours in
the batch. The compiled networks have the same forms.

Importing this file imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .pooling import find_windows, smoothed_max

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


def smoothed_sigmoid(h: Tensor, d: Tensor) -> Tensor:
    """``sigmoid(h / sqrt(1 + pi d^2 / 8))`` for ``d >= 0`` as in `smoothed_relu`."""
    return _stretched(torch.sigmoid, h, math.sqrt(math.pi / 8) * d)


def smoothed_tanh(h: Tensor, d: Tensor) -> Tensor:
    """``tanh(h / sqrt(1 + pi d^2 / 2))`` for ``d >= 0`` as in `smoothed_relu`."""
    return _stretched(torch.tanh, h, math.sqrt(math.pi / 2) * d)


def _stretched(function: Callable[[Tensor], Tensor], h: Tensor, d: Tensor) -> Tensor:
    # Rows with d = 0 are taken from function(h): h / 1 has other strides where h is a slice, and
    # torch's loops over strided and contiguous memory differ in the last bit.
    stretched = function(h / torch.hypot(torch.ones_like(d), d))
    return torch.where(d > 0, stretched, function(h))


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


class Surveyed(NamedTuple):
    """An interceptable call of a forward: its kind, as `Activation.kind`, and shape with batch."""

    kind: str
    shape: tuple[int, ...]


class Widths:
    """Which activation calls of a module can be smoothed, and the widths of every slot.

    Attributes
    ----------
    kind : str
        Where any of them is a ReLU or leaky ReLU: "convolutional" if one of these has more than
        two dimensions, else "kinked"; else "saturating" where any is a sigmoid or tanh; else
        "convolutional" where any is a max-pooling; else "smooth".
    tails : dict of call index to shape
        Shape without the batch of each call whose first dimension is the batch. Calls are
        numbered in the order of the forward; a call that is not here, or comes with another
        shape, stays exact.
    stored : dict of call index to Tensor, (slots, C), float32
        Widths by slot; 0 where none was measured.
    """

    def __init__(self) -> None:
        self.kind = "smooth"
        self.tails: dict[int, tuple[int, ...]] = {}
        self.stored: dict[int, Tensor] = {}

    def learn(self, few: list[Surveyed], more: list[Surveyed]) -> None:
        """Take all calls of two forwards with 2 and 3 rows."""
        found = {
            index: one
            for index, (one, two) in enumerate(zip(few, more, strict=False))
            if len(few) == len(more) and len(one.shape) > 1 and 0 not in one.shape
            and one.shape[0] == 2 and two == Surveyed(one.kind, (3, *one.shape[1:]))
        }  # fmt: skip
        self.tails = {index: call.shape[1:] for index, call in found.items()}
        kinds = {call.kind for call in found.values()}
        known = ("kinked", "saturating", "pooled")
        self.kind = next((kind for kind in known if kind in kinds), "smooth")
        spatial = any(call.kind == "kinked" and len(call.shape) > 2 for call in found.values())
        if spatial or self.kind == "pooled":
            self.kind = "convolutional"

    def record(self, index: int, slots: Tensor, widths: Tensor, needed: int) -> None:
        """Store ``widths`` (B, C) of the call for ``slots`` (B,) < needed, growing the table."""
        table = self.stored.get(index)
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
    capacity : int, above every slot: known without waiting for the device
    """

    def __init__(
        self,
        widths: Widths,
        k: Tensor | None,
        slots: Tensor,
        measured: Tensor | None,
        capacity: int,
    ) -> None:
        super().__init__()
        self.widths = widths
        self.k = k
        self.slots = slots
        self.measured = measured
        self.capacity = capacity
        self.calls = 0

    def half_width(self, index: int, h: Tensor) -> Tensor | None:
        """Half-widths d that broadcast to the call's ``h``; None to leave the call exact."""
        if self.widths.tails.get(index) != tuple(h.shape[1:]) or len(h) != len(self.slots):
            return None
        if self.measured is not None:
            rows = h.detach()[self.measured]
            slots = self.slots[self.measured]
            self.widths.record(index, slots, unit_width(rows), self.capacity)
        table = self.widths.stored.get(index)
        if self.k is None or table is None:
            return None
        if self.capacity > len(table):  # a slot that was never measured has width 0
            none = table.new_zeros(0, table.shape[1])
            self.widths.record(index, self.slots[:0], none, self.capacity)
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
        call = find_activation(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        index = self.calls
        self.calls += 1
        d = self.half_width(index, call.h)
        if d is None:
            return func(*args, **kwargs)
        out = call.smoothed(call.h, d)
        return call.h.copy_(out) if call.inplace else out


class Survey(TorchFunctionMode):
    """Function mode that notes every interceptable call and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Surveyed] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        call = find_activation(func, args, kwargs)
        if call is not None:
            self.calls.append(Surveyed(call.kind, tuple(call.h.shape)))
        return func(*args, **kwargs)


class Recomputation(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Dispatch mode for a backward: sees activations that run again, as checkpointing does.

    Those calls would come without the function mode, and so with the wrong derivative. Their own
    derivatives have other names (``sigmoid_backward``).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.seen = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch need not import its compiler, which takes 1 s, to keep it out of here."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        self.seen |= name in _RECOMPUTED
        return func(*args, **(kwargs or {}))


class Activation(NamedTuple):
    """A call that has a smoothed form.

    Attributes
    ----------
    kind : str
        "kinked", "saturating" or "pooled".
    h : Tensor
        The pre-activation, or what is pooled.
    smoothed : callable
        The smoothed form, of ``h`` and half-widths d.
    inplace : bool
        Whether the result goes to ``h``.
    """

    kind: str
    h: Tensor
    smoothed: Callable[[Tensor, Tensor], Tensor]
    inplace: bool


_RECOMPUTED = (
    "relu", "leaky_relu", "clamp", "clamp_min", "sigmoid", "tanh",
    "max_pool2d_with_indices", "max_pool3d_with_indices",
)  # fmt: skip

# form: (its parameters, kind, smoothed form without the slope)
_FORMS: dict[str, tuple[tuple[str, ...], str, Callable[..., Tensor]]] = {
    "relu": (("input", "inplace"), "kinked", smoothed_relu),
    "leaky_relu": (("input", "negative_slope", "inplace"), "kinked", smoothed_relu),
    "clamp": (("input", "min", "max"), "kinked", smoothed_relu),
    "sigmoid": (("input",), "saturating", smoothed_sigmoid),
    "tanh": (("input",), "saturating", smoothed_tanh),
}

# function: (its form, whether it always works in place)
_FUNCTIONS: dict[Any, tuple[str, bool]] = {
    functional.relu: ("relu", False),
    torch.relu: ("relu", False),
    torch.relu_: ("relu", True),
    Tensor.relu: ("relu", False),
    Tensor.relu_: ("relu", True),
    functional.leaky_relu: ("leaky_relu", False),
    functional.leaky_relu_: ("leaky_relu", True),
    torch._C._nn.leaky_relu: ("leaky_relu", False),
    torch.clamp: ("clamp", False),
    torch.clip: ("clamp", False),
    torch.clamp_min: ("clamp", False),
    torch.clamp_: ("clamp", True),
    torch.clip_: ("clamp", True),
    torch.clamp_min_: ("clamp", True),
    Tensor.clamp: ("clamp", False),
    Tensor.clip: ("clamp", False),
    Tensor.clamp_min: ("clamp", False),
    Tensor.clamp_: ("clamp", True),
    Tensor.clip_: ("clamp", True),
    Tensor.clamp_min_: ("clamp", True),
    torch.sigmoid: ("sigmoid", False),
    torch.sigmoid_: ("sigmoid", True),
    Tensor.sigmoid: ("sigmoid", False),
    Tensor.sigmoid_: ("sigmoid", True),
    torch.special.expit: ("sigmoid", False),
    torch.tanh: ("tanh", False),
    torch.tanh_: ("tanh", True),
    Tensor.tanh: ("tanh", False),
    Tensor.tanh_: ("tanh", True),
}


def find_activation(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Activation | None:
    """The call as one that has a smoothed form, in any spelling; None for every other call.

    ``clamp`` is a ReLU where its lower bound is the number 0 and it has no upper bound.
    ``functional.sigmoid`` and ``functional.tanh`` come as the methods they call.
    """
    pooling = find_windows(func, args, kwargs)
    if pooling is not None:
        exact = partial(func, *args, **kwargs)
        smoothed_pooling = partial(smoothed_max, exact=exact, windows=pooling[1])
        return Activation("pooled", pooling[0], smoothed_pooling, False)
    form, inplace = _FUNCTIONS.get(func, ("", False))
    if not form or "out" in kwargs:
        return None
    parameters, kind, smoothed = _FORMS[form]
    given = dict(zip(parameters, args, strict=False)) | kwargs
    h = given.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point():
        return None
    if form == "clamp":
        low = given.get("min")
        number = isinstance(low, (int, float)) and not isinstance(low, bool)
        if not number or low != 0 or given.get("max") is not None:
            return None
    if form == "leaky_relu":
        smoothed = partial(smoothed, slope=float(given.get("negative_slope", 0.01)))
    return Activation(kind, h, smoothed, inplace or bool(given.get("inplace", False)))
