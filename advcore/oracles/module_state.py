"""The state of a torch module: whether what was found out about it before is still true.

Importing this file imports no torch.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

MOST_ENTRIES = 20_000
"""Attributes of a module, with those of its parts, that are looked at."""
MOST_COPIED_BYTES = 64 << 20
"""Bytes of weights of which copies are kept. They are compared at 10 GB/s, so that the largest take
7 ms; a network of that size needs longer for an image."""
LIBRARIES = frozenset(("builtins", "torch", "numpy", "typing", "abc", "functools", "collections"))
"""Packages whose classes are taken to stay as they are."""
BLOCK = 1 << 15
"""Values that are compared at once, so that the outcome stays in the cache."""
SMALL_ARRAY = 1 << 16
"""Bytes of an array among the attributes up to which its values are part of the state."""


class NoState(Exception):
    """Raised for a module that holds what cannot be compared, such as hooks or open files."""


class ModuleState:
    """What a module computes depends on this: types, flags, attributes and tensors of its parts.

    Parameters
    ----------
    module : torch.nn.Module in eval mode

    Raises
    ------
    NoState
        A part has hooks or is in training mode, or an attribute is no value, function, class,
        module, plain object, or list or dictionary of these.
    """

    def __init__(self, module: Any) -> None:
        torch = sys.modules["torch"]
        self._torch = torch
        self._plain = {
            *(bool, int, float, complex, str, bytes, type(None), type(Ellipsis), slice, range),
            *(
                types.CodeType,
                torch.dtype,
                torch.device,
                torch.Size,
                torch.layout,
                torch.memory_format,
            ),
        }
        self._active: set[int] = set()
        self._own = _own_attributes()
        self.entries: list[Any] = []
        self.tensors: list[Any] = []
        hooks = torch.nn.modules.module
        for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"):
            if getattr(hooks, f"_global_{name}", None):
                raise NoState
        try:
            self._value(module)
        except (AttributeError, KeyError, RuntimeError) as error:  # a module of an unusual make
            raise NoState from error
        self.addresses: list[tuple[int, int]] = [
            (id(tensor), tensor.data_ptr()) for tensor in self.tensors
        ]

    def is_built_as(self, other: ModuleState) -> bool:
        """Whether both have the same parts, attributes and tensors, whose values may differ."""
        return self.addresses == other.addresses and self.entries == other.entries

    def holds(self, tensors: list[Any]) -> bool:
        """Whether the values of all these tensors are those of the module's, or parts of them."""
        own = {tensor.untyped_storage().data_ptr() for tensor in self.tensors}
        return all(tensor.untyped_storage().data_ptr() in own for tensor in tensors)

    def _module(self, part: Any) -> None:
        add, values = self.entries.append, part.__dict__
        if (
            values["_forward_hooks"]
            or values["_forward_pre_hooks"]
            or values["_backward_hooks"]
            or values["_backward_pre_hooks"]
            or values["training"]
            or len(self.entries) > MOST_ENTRIES
        ):
            raise NoState
        kind = type(part)
        add(kind)
        add(kind.forward)  # of a traced graph it changes with the graph
        self._classes(kind)
        for name, value in values.items():
            if name not in self._own:
                add(name)
                self._value(value)
        for group in ("_parameters", "_buffers"):
            for name, tensor in values[group].items():
                add(name)
                self._value(tensor)
        for name, child in values["_modules"].items():
            add(name)
            self._value(child)
        add(None)

    def _classes(self, kind: type) -> None:
        """Add the methods and attributes of a class of the user's, and of those it inherits."""
        for each in kind.__mro__:
            if each.__module__.partition(".")[0] in LIBRARIES:
                continue
            for name, value in vars(each).items():
                if name == "__call__" or not name.startswith("__"):
                    self.entries.append(name)
                    if isinstance(value, (self._torch.Tensor, np.ndarray, list, dict, tuple)):
                        self._value(value)
                    else:
                        self.entries.append(value)

    def _value(self, value: Any) -> None:
        kind, add = type(value), self.entries.append
        if kind in self._plain or (kind is tuple and all(type(part) is int for part in value)):
            add(kind)
            add(value)
        elif isinstance(value, self._torch.Tensor):
            is_plain = kind in (self._torch.Tensor, self._torch.nn.Parameter)
            on_cpu = value.layout == self._torch.strided and value.device.type == "cpu"
            if not (is_plain and on_cpu) or value.is_complex() or value.is_quantized:
                raise NoState
            self.entries += (kind, value.dtype, value.shape, value.stride())
            self.tensors.append(value)
        elif isinstance(value, (type, enum.Enum, types.ModuleType)) or (
            kind is types.BuiltinFunctionType
            and isinstance(value.__self__, (types.ModuleType, type(None)))
        ):
            add(value)
        else:
            self._inner(value, kind)

    def _inner(self, value: Any, kind: type) -> None:
        """Add a value that has parts."""
        if id(value) in self._active or len(self.entries) > MOST_ENTRIES:
            raise NoState  # it contains itself
        self._active.add(id(value))
        self.entries += (kind,)
        if isinstance(value, self._torch.nn.Module):
            if isinstance(value, self._torch.jit.ScriptModule):
                raise NoState
            self._module(value)
        elif isinstance(value, np.ndarray):
            if value.dtype.hasobject or value.nbytes > SMALL_ARRAY:
                raise NoState
            self.entries += (value.shape, value.dtype, value.tobytes())
        else:
            self.entries.append(None)
            self._classes(kind)
            for part in _parts(value, kind):
                self._value(part)
        self._active.discard(id(value))


def _parts(value: Any, kind: type) -> list[Any]:
    """Whatever the behaviour of a function, container or object depends on."""
    if isinstance(value, (list, tuple)):
        return [len(value), *value]
    if isinstance(value, dict):
        return [len(value), *(part for item in value.items() for part in item)]
    if isinstance(value, (set, frozenset)):
        if any(type(part) is not str for part in value):
            _refuse()
        return sorted(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.FunctionType):
        try:
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
        except ValueError:  # one is not set yet
            _refuse()
        return [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
    if getattr(kind, "__slots__", None) or not hasattr(value, "__dict__") or callable(value):
        _refuse()
    if kind.__module__.split(".")[0] in ("builtins", "torch", "numpy", "_io", "threading"):
        _refuse()
    return [vars(value)]


def _refuse() -> NoReturn:
    raise NoState


@functools.cache
def _own_attributes() -> frozenset[str]:
    """Attributes of every module, which are looked at by themselves or do not matter."""
    module = sys.modules["torch"].nn.Module()
    return frozenset(vars(module)) | {"_compiled_call_impl", "_is_hf_initialized"}


class Copies:
    """The values of tensors on the CPU, copied, to be compared with those of later."""

    def __init__(self, tensors: list[Any]) -> None:
        self._copies = [_bits(tensor).copy() for tensor in tensors]

    @staticmethod
    def fit(tensors: list[Any]) -> bool:
        """Whether the tensors are small enough."""
        sizes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return bool(sizes <= MOST_COPIED_BYTES)

    def equal(self, tensors: list[Any]) -> bool:
        """Whether all have the values of before, bit for bit."""
        for tensor, copy in zip(tensors, self._copies, strict=True):
            bits = _bits(tensor)
            for begin in range(0, len(copy), BLOCK):
                part = slice(begin, begin + BLOCK)
                if not np.array_equal(bits[part], copy[part]):
                    return False
        return True


def _bits(tensor: Any) -> NDArray[Any]:
    """The tensor's values as integers, over the same memory where that is dense."""
    torch = sys.modules["torch"]
    values = tensor.detach()
    if not values.is_contiguous():
        values = values.contiguous()
    values = values.reshape(-1)
    size = values.element_size()
    bits: NDArray[Any] = values.view(torch.int32 if size % 4 == 0 else torch.uint8).numpy()
    return bits
