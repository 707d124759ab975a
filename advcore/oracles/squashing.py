"""Logits before a squashing function at the model's end: the call is taken back in the search.

``tanh``, ``sigmoid`` or a clamp of the logits, with positive factors and shifts after it, changes
no decision, but its gradient vanishes where the logits are large, and with it every search. So the
search sees the function's input in place of its result. Verification is with the model as it is.

Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SQUASHING: dict[Any, bool] = {
    torch.tanh: True,
    torch.tanh_: True,
    Tensor.tanh: True,
    Tensor.tanh_: True,
    torch.sigmoid: False,
    torch.sigmoid_: False,
    Tensor.sigmoid: False,
    Tensor.sigmoid_: False,
    torch.special.expit: False,
    functional.logsigmoid: False,
    functional.hardsigmoid: False,
}
"""Whether each strictly or weakly increasing function keeps the sign of its argument."""
_CLAMPS = (
    torch.clamp, torch.clip, torch.clamp_, torch.clip_,
    Tensor.clamp, Tensor.clip, Tensor.clamp_, Tensor.clip_,
    functional.hardtanh, functional.hardtanh_,
)  # fmt: skip
_FACTORS = (torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__)
_DIVISIONS = (torch.div, Tensor.div, Tensor.div_, Tensor.__truediv__, Tensor.__itruediv__)
_SHIFTS = (
    torch.add, torch.sub, Tensor.add, Tensor.sub, Tensor.add_, Tensor.sub_,
    Tensor.__add__, Tensor.__radd__, Tensor.__iadd__, Tensor.__sub__, Tensor.__isub__,
)  # fmt: skip


class Squash(NamedTuple):
    """A squashing call of a forward.

    Attributes
    ----------
    call : int
        Its number among all calls of squashing functions, in the order of the forward.
    keeps_sign : bool
        Whether its result, and what the model makes of it, has the sign of its argument.
    function : callable
        The squashing function.
    tail : callable
        What the model makes of its result: an increasing affine function.
    """

    call: int
    keeps_sign: bool
    function: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]

    def output(self, logit: float) -> float:
        """The output that belongs to a logit, which is the tail of the call's argument."""
        shift = float(self.tail(torch.zeros(1, 2, dtype=torch.float64))[0, 0])
        scale = float(self.tail(torch.ones(1, 2, dtype=torch.float64))[0, 0]) - shift
        z = torch.full((1, 2), (logit - shift) / scale, dtype=torch.float64)
        return scale * float(self.function(z)[0, 0]) + shift


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _squashing(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Whether the call keeps signs; None for a call that squashes nothing."""
    value = args[0] if args else kwargs.get("input")
    if not isinstance(value, Tensor) or not value.is_floating_point() or "out" in kwargs:
        return None
    if func in _CLAMPS:
        names = ("min_val", "max_val") if "hardtanh" in func.__name__ else ("min", "max")
        bounds = dict(zip(names, args[1:], strict=False)) | kwargs
        default = 1.0 if "hardtanh" in func.__name__ else None
        low, high = bounds.get(names[0], default and -default), bounds.get(names[1], default)
        if not all(bound is None or _is_number(bound) for bound in (low, high)):
            return None
        if low is None and high is None:
            return None
        return (low is None or low < 0) and (high is None or high > 0)
    return _SQUASHING.get(func)


class FindSquash(TorchFunctionMode):
    """Function mode of a forward: finds the squashing call whose result is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.links: dict[int, Squash] = {}
        self.results: list[Any] = []  # an identity is that of a living object

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        keeps_sign = _squashing(func, args, kwargs)
        link = self.links.get(id(args[0])) if args else None
        out = func(*args, **kwargs)
        if out is None and args:  # as of out[:, 0] = ..., which changes a part
            self.links.pop(id(args[0]), None)
        if isinstance(out, Tensor):
            self.results.append(out)
            self.links.pop(id(out), None)  # an in-place function has changed it
        if keeps_sign is not None:
            rest = {name: value for name, value in kwargs.items() if name != "input"}

            def squash(z: Tensor) -> Tensor:
                result: Tensor = func(z, *args[1:], **rest)
                return result

            self.links[id(out)] = Squash(self.calls, keeps_sign, squash, lambda z: z)
            self.calls += 1
        elif link is not None and len(args) == 2 and not kwargs and _is_number(args[1]):
            inner = link.tail

            def tail(z: Tensor) -> Tensor:
                result: Tensor = func(inner(z), args[1])
                return result

            if func in (*_FACTORS, *_DIVISIONS) and args[1] > 0:
                self.links[id(out)] = Squash(link.call, link.keeps_sign, link.function, tail)
            elif func in _SHIFTS:
                self.links[id(out)] = Squash(link.call, False, link.function, tail)
        elif link is not None and func in (Tensor.float, Tensor.contiguous):
            self.links[id(out)] = link
        return out

    def found(self, output: Tensor) -> Squash | None:
        """The call that gave the model's output (B, K); None where no such call did.

        With one logit, whose sign decides, the signs must be kept.
        """
        squash = self.links.get(id(output))
        if squash is None or output.dim() != 2:
            return None
        return squash if output.shape[1] > 1 or squash.keeps_sign else None


class Unsquash(TorchFunctionMode):
    """Function mode of a forward in which one squashing call returns its argument.

    It is entered after all other modes, so that they do not see the call.
    """

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if _squashing(func, args, kwargs) is None:
            return func(*args, **kwargs)
        self.calls += 1
        if self.calls - 1 != self.index:
            return func(*args, **kwargs)
        return args[0] if args else kwargs["input"]


def find_squash(
    call: Callable[[int, TorchFunctionMode], Tensor], counts: tuple[int, int]
) -> Squash | None:
    """The squashing call at a model's end, where two forwards agree about it; else None.

    ``call`` returns the output (B, K) of a forward of B rows under a mode, here for both counts B.
    """
    found = []
    for count in counts:
        mode = FindSquash()
        output = call(count, mode)
        found.append((mode.found(output), mode.calls))
    (squash, calls), (repeat, repeat_calls) = found
    if squash is None or repeat is None or (squash.call, calls) != (repeat.call, repeat_calls):
        return None
    return squash
