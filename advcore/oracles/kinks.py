"""Smoothed piecewise linear activations other than the leaky ReLU, as sums of its spline.

A piecewise linear function with slope s at minus infinity, whose slope jumps by j_i at t_i, is ::

    f(h) = s h + c + sum_i j_i relu(h - t_i),  f_d(h) = s h + c + sum_i j_i relu_d(h - t_i)

The spline relu_d of `advcore.oracles.smoothing` is the mean of relu(h + u) over u uniform in
[-d, d], as its second derivative is the density of u. So f_d is that of f: uniform noise has mean 0
and the mean is linear in f. With d = 0 the result is that of the call itself, bit for bit.
A ``clamp`` or ``abs`` that changes nothing in the survey, such as a clip of images to [0, 1], stays
exact (`advcore.oracles.smoothing.Survey`). So do hardswish and hardsigmoid, where smoothing brings
nothing (docs/decisions.md).

Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .smoothed_relu import smoothed_relu


class Kinks(NamedTuple):
    """A piecewise linear function.

    Attributes
    ----------
    slope, offset : float or Tensor
        s and c.
    jumps : tuple of (float, float or Tensor)
        Pairs t_i and j_i.
    """

    slope: Any
    offset: Any
    jumps: tuple[tuple[float, Any], ...]

    def smoothed(self, h: Tensor, d: Tensor) -> Tensor:
        """f_d of ``h`` for half-widths ``d >= 0`` that broadcast to it, of its dtype."""
        out: Tensor = self.slope * h + self.offset
        for threshold, jump in self.jumps:
            out = out + jump * smoothed_relu(h - threshold, d)
        return out


def clipped(low: float | None, high: float | None) -> Kinks:
    """The function that clips at ``low`` and ``high``; None: it does not on that side."""
    bounds = ((low, 1.0), (high, -1.0))
    jumps = tuple((float(bound), jump) for bound, jump in bounds if bound is not None)
    return Kinks(1.0 if low is None else 0.0, 0.0 if low is None else float(low), jumps)


_ABS = Kinks(-1.0, 0.0, ((0.0, 2.0),))

_PARAMETERS = {
    "relu6": ("input", "inplace"),
    "hardtanh": ("input", "min_val", "max_val", "inplace"),
    "clamp": ("input", "min", "max"),
    "abs": ("input",),
    "prelu": ("input", "weight"),
}
CLAMPS: dict[Any, tuple[str, bool]] = {
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
}
"""The functions that clamp, as in `FORMS`."""
FORMS: dict[Any, tuple[str, bool]] = {
    **CLAMPS,
    functional.relu6: ("relu6", False),
    functional.hardtanh: ("hardtanh", False),
    functional.hardtanh_: ("hardtanh", True),
    torch.abs: ("abs", False),
    torch.abs_: ("abs", True),
    torch.absolute: ("abs", False),
    Tensor.abs: ("abs", False),
    Tensor.abs_: ("abs", True),
    Tensor.absolute: ("abs", False),
    functional.prelu: ("prelu", False),
    torch.prelu: ("prelu", False),
    Tensor.prelu: ("prelu", False),
}
"""Form of each function that is intercepted, and whether it always works in place."""


def find_kinks(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor], bool, bool] | None:
    """The fields of an `Activation` but its kind for a call; None for others.

    Bounds of ``clamp`` must be numbers.
    """
    name, inplace = FORMS.get(func, ("", False))
    if not name or "out" in kwargs:
        return None
    arguments = dict(zip(_PARAMETERS[name], args, strict=False)) | kwargs
    h = arguments.get("input")
    if not isinstance(h, Tensor) or not h.is_floating_point():
        return None
    found = _find_form(name, h, arguments)
    if found is None:
        return None
    kinks, exact = found
    inplace = inplace or bool(arguments.get("inplace", False))

    def smoothed(h: Tensor, d: Tensor) -> Tensor:
        h = h.clone() if inplace else h  # the backward needs what the result replaces
        return torch.where(d > 0, kinks.smoothed(h, d), exact(h))

    return h, smoothed, inplace, name in ("clamp", "abs")


def _find_form(
    name: str, h: Tensor, arguments: dict[str, Any]
) -> tuple[Kinks, Callable[[Tensor], Tensor]] | None:
    """The kinks of a call, and the function itself, which does not work in place."""
    if name == "relu6":
        return clipped(0, 6), functional.relu6
    if name == "hardtanh":
        low, high = arguments.get("min_val", -1.0), arguments.get("max_val", 1.0)
        return clipped(low, high), lambda h: functional.hardtanh(h, low, high)
    if name == "clamp":
        low, high = arguments.get("min"), arguments.get("max")
        numbers = [bound for bound in (low, high) if bound is not None]
        if not numbers or not all(type(bound) in (int, float) for bound in numbers):
            return None
        if numbers[0] > numbers[-1]:
            return None
        return clipped(low, high), lambda h: torch.clamp(h, low, high)
    if name == "abs":
        return _ABS, torch.abs
    weight = arguments["weight"]
    slope = weight.view(-1, *(1,) * (h.dim() - 2)) if h.dim() > 1 else weight
    return Kinks(slope, 0.0, ((0.0, 1 - slope),)), lambda h: torch.prelu(h, weight)
