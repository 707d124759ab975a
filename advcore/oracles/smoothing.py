"""Smoothed activations and pooling for any torch module: its calls are intercepted.

The module is not altered. Two families of activations have a smoothed form, which the first stages
of a solve use. A piecewise linear network has a loss whose gradient jumps. Every ReLU is replaced
by a quadratic spline of half-width d, which differs from the ReLU for abs(h) < d, ::

    relu_d(h) = 0 for h <= -d;  (h + d)^2 / (4 d) for |h| < d;  h for h >= d
    relu_d'(h) = clamp((h + d) / (2 d), 0, 1)

and a leaky ReLU by ``slope * h + (1 - slope) * relu_d(h)``; `advcore.oracles.kinks` has others.
Saturated sigmoidal units pass no
gradient. Sigmoid and tanh are stretched as if h had noise of standard deviation d. This is their
convolution with a normal density by the probit approximation (MacKay 1992), ::

    sigmoid_d(h) = sigmoid(h / sqrt(1 + pi d^2 / 8)),  tanh_d(h) = tanh(h / sqrt(1 + pi d^2 / 2))

Max-pooling becomes a log-sum-exp (`advcore.oracles.pooling`), and so do maxima and minima of values
(`advcore.oracles.largest`).

The half-width d is the row's smoothing, which is 0 for the exact network, times the smoothing
scale. The scale is the standard deviation of the pre-activation of that row's own clean image, so
that nothing depends on the other rows of the batch. The compiled networks have the same forms.

Importing this file imports torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..network.kinds import find_kind
from .kinks import CLAMPS, find_kinks
from .largest import find_largest
from .pooling import find_windows, smoothed_max
from .smoothed_relu import smoothed_relu
from .torch_calls import padded

RELATIVE_FLOOR = 1e-3
"""Smallest smoothing scale, as a share of the root mean square of the pre-activation. It keeps the
half-width above 0 where all units have one value."""

ABSOLUTE_FLOOR = 1e-30
"""Smallest smoothing scale, in units of the pre-activation, for one that is 0 everywhere."""


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


def smoothing_scale(h: Tensor) -> Tensor:
    """Smoothing scale of each row of a pre-activation ``h``, (B, C) float32.

    For (B, units) it is the standard deviation over the units, and C is 1. For (B, C, ...) it is
    that of each channel over its positions, or over the channels where there is one position. It is
    at least 1e-3 of the root mean square, and at least 1e-30.
    """
    rows = h.detach().to(torch.float32)
    positions = rows[0, 0].numel() if h.dim() > 2 else 1
    rows = rows.reshape(len(h), 1, -1) if positions == 1 else rows.reshape(len(h), h.shape[1], -1)
    deviation = rows.std(dim=2, correction=0)
    floor = RELATIVE_FLOOR * rows.square().mean(dim=2).sqrt()
    return torch.maximum(deviation, floor).clamp_min(ABSOLUTE_FLOOR)


class ActivationCall(NamedTuple):
    """An activation call that can be intercepted.

    Attributes
    ----------
    kind : str
        As `Activation.kind`.
    shape : tuple of int
        Shape of the pre-activation, with the batch.
    """

    kind: str
    shape: tuple[int, ...]


class SmoothingScales:
    """The activation calls of a module that can be smoothed, and their scales for every slot.

    Attributes
    ----------
    kind : str
        See `advcore.network.kinds`. A call is on maps if it has more than two dimensions.
    counts : Counter
        Number of calls of each kind of `Activation`.
    row_shapes : dict of call index to shape
        Shape without the batch of each call whose first dimension is the batch. Calls are
        numbered in the order of the forward. A call that is not here, or that has another shape,
        stays exact.
    columns : dict of call index to slice
        Columns of the table that have the scales of each call.
    table : Tensor (slots, C of all calls) float32, or None
        Smoothing scales by slot; 0 where none was recorded. All calls share it, so that a forward
        looks its slots up once.
    """

    def __init__(self) -> None:
        self.kind = "smooth"
        self.counts: Counter[str] = Counter()
        self.row_shapes: dict[int, tuple[int, ...]] = {}
        self.columns: dict[int, slice] = {}
        self.table: Tensor | None = None

    def update(
        self,
        few_rows: list[ActivationCall],
        more_rows: list[ActivationCall],
        counts: tuple[int, int] = (2, 3),
    ) -> None:
        """Keep the calls that follow the batch, from all calls of two forwards.

        Their numbers of rows are ``counts``. With one row in both, for a model that takes no more,
        all calls with a first dimension of 1 are kept.
        """
        few, more = counts
        calls = {
            index: call
            for index, (call, repeat) in enumerate(zip(few_rows, more_rows, strict=False))
            if len(few_rows) == len(more_rows) and len(call.shape) > 1 and 0 not in call.shape
            and call.shape[0] == few
            and repeat == ActivationCall(call.kind, (more, *call.shape[1:]))
        }  # fmt: skip
        self.row_shapes = {index: call.shape[1:] for index, call in calls.items()}
        self.columns, first = {}, 0
        for index, shape in self.row_shapes.items():
            channels = shape[0] if math.prod(shape[1:]) > 1 else 1
            self.columns[index] = slice(first, first + channels)
            first += channels
        self.counts = Counter(call.kind for call in calls.values())
        self.kind = find_kind(
            on_maps=any(call.kind == "kinked" and len(call.shape) > 2 for call in calls.values()),
            kinked="kinked" in self.counts,
            saturating="saturating" in self.counts,
            pooled="pooled" in self.counts,
            compared="largest" in self.counts,
        )

    def grow(self, capacity: int, device: torch.device) -> Tensor:
        """The table, with rows for all slots below ``capacity``."""
        table = self.table
        if table is None or len(table) < capacity:
            width = max(columns.stop for columns in self.columns.values())
            rows = max(capacity, 2 * len(table)) if table is not None else capacity
            self.table = torch.zeros(rows, width, device=device)
            if table is not None:
                self.table[: len(table)] = table
        assert self.table is not None
        return self.table


class Smoothing(TorchFunctionMode):
    """Function mode of one forward: records smoothing scales, and smooths rows.

    Parameters
    ----------
    scales : SmoothingScales
    smoothing : Tensor (B,) float32, or None
        Smoothing of each row; None where every row is exact.
    slots : Tensor (B,) int64
    recorded_rows : Tensor int64, or None
        Numbers of the rows whose scales are recorded.
    capacity : int
        A number above every slot. A GPU would have to be waited for to compute it from ``slots``.
    """

    def __init__(
        self,
        scales: SmoothingScales,
        smoothing: Tensor | None,
        slots: Tensor,
        recorded_rows: Tensor | None,
        capacity: int,
    ) -> None:
        super().__init__()
        self.scales = scales
        self.smoothing = smoothing
        self.slots = slots
        self.recorded_rows = recorded_rows
        self.capacity = capacity
        self.calls = 0
        self.half_widths: Tensor | None = None  # (B, columns of the table), at the first call
        if recorded_rows is not None:
            self.table = scales.grow(capacity, slots.device)
            self.recorded_slots = slots[recorded_rows]
            self.table[self.recorded_slots] = 0  # those of the last image may be NaN, and 0 k too

    def pad(self, rows: int) -> None:
        """Take ``rows`` rows, of which those that are new are as the last one."""
        self.slots = padded(self.slots, rows)
        if self.smoothing is not None:
            self.smoothing = padded(self.smoothing, rows)

    def half_width(self, index: int, h: Tensor) -> Tensor | None:
        """Half-widths d that broadcast to ``h`` of call ``index``; None to leave the call exact."""
        if self.scales.row_shapes.get(index) != tuple(h.shape[1:]) or len(h) != len(self.slots):
            return None
        columns = self.scales.columns[index]
        if (
            self.half_widths is None
            and self.smoothing is not None
            and self.scales.table is not None
        ):
            table = self.scales.grow(self.capacity, self.slots.device)
            self.half_widths = self.smoothing[:, None] * table[self.slots]
        if self.recorded_rows is not None:
            rows = h.detach()[self.recorded_rows]
            self.table[self.recorded_slots, columns] = smoothing_scale(rows)
        if self.half_widths is None:
            return None
        d = self.half_widths[:, columns]
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
        return call.h.copy_(out) if call.inplace and out is not call.h else out


class Survey(TorchFunctionMode):
    """Function mode that lists the activation calls of a forward and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[ActivationCall] = []

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
        before = call.h.detach().clone() if call.may_be_idle else None
        result = func(*args, **kwargs)
        changes = before is None or not torch.equal(before, result)
        self.calls.append(ActivationCall(call.kind, tuple(call.h.shape) if changes else ()))
        return result


class Recomputation(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Dispatch mode of a backward that detects activations which run again (checkpointing).

    Such calls come without the function mode, and so with the wrong derivative. Derivatives of
    activations have other names (``sigmoid_backward``).

    Attributes
    ----------
    detected : bool
        Whether an activation has run.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.detected = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False. Otherwise torch imports its compiler, which takes a second."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        self.detected |= name in _ACTIVATION_OPERATORS
        return func(*args, **(kwargs or {}))


def surveyed_calls(
    forward: Callable[[int, TorchFunctionMode], tuple[Tensor, Tensor]],
    counts: tuple[int, int],
    always: bool,
) -> tuple[list[ActivationCall], list[ActivationCall]] | None:
    """Activation calls of forwards with ``counts`` rows; None where a backward runs them again.

    ``forward`` gives a leaf and the logits. ``always``: models without such calls are run backward
    too.
    """
    calls = []
    for count in counts:
        mode = Survey()
        with torch.inference_mode(False), torch.enable_grad():
            leaf, output = forward(count, mode)
            if (mode.calls or always) and output.requires_grad:
                total = output.sum()
                with Recomputation() as recomputation:
                    torch.autograd.grad(total, leaf, allow_unused=True)
                if recomputation.detected:
                    return None
        calls.append(mode.calls)
    return calls[0], calls[1]


class Activation(NamedTuple):
    """An intercepted call, with its smoothed form.

    Attributes
    ----------
    kind : str
        "kinked", "saturating", "pooled" or "largest".
    h : Tensor
        The pre-activation, or the input of the pooling.
    smoothed : callable
        The smoothed form, a function of ``h`` and half-widths d.
    inplace : bool
        Whether the result goes to ``h``.
    may_be_idle : bool
        Whether the call stays exact if it changes nothing in the survey.
    """

    kind: str
    h: Tensor
    smoothed: Callable[[Tensor, Tensor], Any]
    inplace: bool
    may_be_idle: bool = False


_ACTIVATION_OPERATORS = (
    "relu", "leaky_relu", "clamp", "clamp_min", "sigmoid", "tanh",
    "max_pool2d_with_indices", "max_pool3d_with_indices",
    "hardtanh", "prelu", "_prelu_kernel", "abs", "clamp_max", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "amax", "amin", "max", "min", "maximum", "minimum", "topk", "sort",
)  # fmt: skip
"""Names of the operators that `_FUNCTIONS` and max-pooling run."""

_FORMS: dict[str, tuple[tuple[str, ...], str, Callable[..., Tensor]]] = {
    "relu": (("input", "inplace"), "kinked", smoothed_relu),
    "leaky_relu": (("input", "negative_slope", "inplace"), "kinked", smoothed_relu),
    "clamp": (("input", "min", "max"), "kinked", smoothed_relu),
    "sigmoid": (("input",), "saturating", smoothed_sigmoid),
    "tanh": (("input",), "saturating", smoothed_tanh),
}
"""Parameters, kind and smoothed form of each activation; the slope of a leaky ReLU is added."""

_FUNCTIONS: dict[Any, tuple[str, bool]] = {
    **CLAMPS,
    functional.relu: ("relu", False),
    torch.relu: ("relu", False),
    torch.relu_: ("relu", True),
    Tensor.relu: ("relu", False),
    Tensor.relu_: ("relu", True),
    functional.leaky_relu: ("leaky_relu", False),
    functional.leaky_relu_: ("leaky_relu", True),
    torch._C._nn.leaky_relu: ("leaky_relu", False),
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
"""Activation of each function that is intercepted, and whether it always works in place."""


def find_activation(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Activation | None:
    """The activation that a call is, in any spelling; None for a call without a smoothed form.

    ``clamp`` is a ReLU where its lower bound is the number 0 and it has no upper bound.
    ``functional.sigmoid`` and ``functional.tanh`` are intercepted as the methods that they call.
    """
    pooling = find_windows(func, args, kwargs)
    if pooling is not None:
        pool_input, windows = pooling

        def pool(h: Tensor) -> Tensor:
            result: Tensor = func(h, *args[1:], **kwargs) if args else func(**kwargs | {"input": h})
            return result

        smoothed_pooling = partial(smoothed_max, pool=pool, windows=windows)
        return Activation("pooled", pool_input, smoothed_pooling, False)
    largest = find_largest(func, args, kwargs)
    if largest is not None:
        return Activation("largest", *largest, False)
    if func not in _FUNCTIONS:
        kinks = find_kinks(func, args, kwargs)
        return None if kinks is None else Activation("kinked", *kinks)
    form, inplace = _FUNCTIONS.get(func, ("", False))
    if not form or "out" in kwargs:
        return None
    parameters, kind, smoothed = _FORMS[form]
    arguments = dict(zip(parameters, args, strict=False)) | kwargs
    h = arguments.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point():
        return None
    if form == "clamp":
        minimum = arguments.get("min")
        is_number = isinstance(minimum, (int, float)) and not isinstance(minimum, bool)
        if not is_number or minimum != 0 or arguments.get("max") is not None:
            kinks = find_kinks(func, args, kwargs)
            return None if kinks is None else Activation("kinked", *kinks)
    inplace = inplace or bool(arguments.get("inplace", False))
    if form == "leaky_relu":
        smoothed = partial(smoothed, slope=float(arguments.get("negative_slope", 0.01)))
    if kind == "kinked":
        smoothed = partial(smoothed, inplace=inplace)
    return Activation(kind, h, smoothed, inplace)
