"""The torch module that a callable runs, where that can be told for certain.

Importing this file imports no torch.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_WRAPPERS = 16
"""Wrappers around a module that are followed."""
LOADS = ("LOAD_GLOBAL", "LOAD_DEREF")
"""Instructions that read a function's global or a variable of its closure."""
PASSED_OVER = ("CACHE", "COPY_FREE_VARS", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "RESUME")
"""Instructions of the various Pythons that do nothing to the values."""


class ModuleOf(NamedTuple):
    """What `module_of` found.

    Attributes
    ----------
    module : torch.nn.Module, or None
        A module with the logits of the callable, in which the preprocessing of a wrapper is the
        first layer.
    inner : torch.nn.Module, or None
        The caller's own module inside it.
    note : str
        Where the module was found, empty for a module itself; or why there is none.
    """

    module: Any
    inner: Any
    note: str


class _Step(NamedTuple):
    """A wrapper taken off: what was in it, its name, and what it does to images before."""

    inner: Any
    name: str
    before: Callable[[Any], Any] | None = None


class _Unknown(Exception):
    """Raised with the reason why nothing is known of what a callable runs."""


def module_of(model: Any) -> ModuleOf:
    """Find the torch module behind a callable.

    A module is found behind bound methods ``forward`` and ``__call__``, a partial without
    arguments, a function that does nothing but call a module, what ``torch.compile`` returned,
    ``DataParallel`` and ``DistributedDataParallel`` on one device, a Foolbox ``PyTorchModel`` with
    its preprocessing and bounds, and an ART ``PyTorchClassifier`` with its standardisation. Nothing
    is called or changed.

    Returns
    -------
    ModuleOf
        Whoever uses the module compares its logits with the callable's.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return ModuleOf(None, None, "a callable that is not a module")
    value, names, before = model, [], []
    try:
        for _ in range(MOST_WRAPPERS):
            step = _unwrapped(value, torch)
            if step is None:
                break
            value = step.inner
            names.append(step.name)
            before += [] if step.before is None else [step.before]
    except _Unknown as unknown:
        return ModuleOf(None, None, str(unknown))
    if not isinstance(value, torch.nn.Module):
        return ModuleOf(None, None, "a callable that is not a module")
    module = value
    for prepend in reversed(before):
        module = prepend(module)
    note = f"the module of {' of '.join(names)}" if names else ""
    return ModuleOf(module, value, note)


def _unwrapped(value: Any, torch: Any) -> _Step | None:
    """Take one wrapper off; None where there is none. `_Unknown` is raised where it does more."""
    if isinstance(value, torch.nn.Module):
        return _inside_module(value, torch)
    if isinstance(value, types.MethodType):
        return _inside_method(value, torch)
    if isinstance(value, functools.partial):
        if value.args or value.keywords:
            raise _Unknown("a partial with arguments, which no module has")
        return _Step(value.func, "a partial")
    compiled = getattr(value, "_torchdynamo_orig_callable", None)
    if compiled is not None:
        return _Step(compiled, "a compiled function")
    if isinstance(value, types.FunctionType):
        return _Step(_only_called(value), "a function")
    return _inside_library(value)


def _inside_module(module: Any, torch: Any) -> _Step | None:
    nn, kind = torch.nn, type(module)
    if kind.__name__ == "OptimizedModule" and isinstance(
        getattr(module, "_orig_mod", None), nn.Module
    ):
        return _Step(module._orig_mod, "a compiled module")
    is_parallel = kind in (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if is_parallel and len(module.device_ids or ()) <= 1 and not _has_hooks(module):
        return _Step(module.module, kind.__name__)
    return None


def _has_hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _inside_method(method: types.MethodType, torch: Any) -> _Step:
    owner, function = method.__self__, method.__func__
    name = function.__name__
    if not isinstance(owner, torch.nn.Module):
        if function is vars(type(owner)).get("__call__"):
            return _Step(owner, "a bound method")
        raise _Unknown(f"the method {name} of a {type(owner).__name__}, which is not a module")
    if function is torch.nn.Module.__call__:
        return _Step(owner, "a bound method")
    if function is getattr(type(owner), "forward", None) and "forward" not in vars(owner):
        if _has_hooks(owner):
            raise _Unknown("the method forward of a module, which leaves its hooks out")
        return _Step(owner, "a bound method")
    raise _Unknown(f"the method {name} of a module, which may do other things than the module")


def _only_called(function: types.FunctionType) -> Any:
    """The value that a function calls with its only argument, and returns the result of."""
    reason = _Unknown("a function that does more than call a module")
    code = function.__code__
    if code.co_argcount != 1 or code.co_kwonlyargcount or code.co_flags & (0x04 | 0x08 | 0x20):
        raise reason
    steps = [step for step in dis.get_instructions(code) if step.opname not in PASSED_OVER]
    names = [step.opname for step in steps]
    if (
        len(steps) != 4
        or names[0] not in LOADS
        or not names[1].startswith("LOAD_FAST")
        or steps[1].argval != code.co_varnames[0]
        or names[2] not in ("CALL", "CALL_FUNCTION")
        or steps[2].arg != 1
        or names[3] != "RETURN_VALUE"
    ):
        raise reason
    name = steps[0].argval
    if names[0] == "LOAD_GLOBAL":
        if name not in function.__globals__:
            raise reason
        return function.__globals__[name]
    try:
        return (function.__closure__ or ())[code.co_freevars.index(name)].cell_contents
    except ValueError:  # not a variable of the closure, or not set yet
        raise reason from None


def _inside_library(value: Any) -> _Step | None:
    """Take the wrapper of another library off. A subclass may do anything, so it is none."""
    for package, names, step in (
        ("foolbox.models.pytorch", ("PyTorchModel",), _inside_foolbox),
        ("foolbox.models.base", ("TransformBoundsWrapper",), _inside_foolbox_bounds),
        ("art.estimators.classification.pytorch", ("PyTorchClassifier",), _inside_art),
    ):
        library = sys.modules.get(package)
        if library is not None and any(type(value) is getattr(library, name) for name in names):
            return step(value)
    return None


def _inside_foolbox(model: Any) -> _Step:
    call = model._model  # a function of its constructor, with the module in its closure
    if getattr(call, "__qualname__", "") != "PyTorchModel.__init__.<locals>._model":
        raise _Unknown("a Foolbox model with a function of its own")
    cells = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
    mean, std, flip_axis = model._preprocess_args
    raw = [None if part is None else part.raw for part in (mean, std)]

    def before(module: Any) -> Any:
        from .wrapper_input import with_input

        return with_input(module, raw[0], raw[1], flip_axis)

    return _Step(cells["model"].cell_contents, "a Foolbox PyTorchModel", before)


def _inside_foolbox_bounds(model: Any) -> _Step:
    (low, high), (inner_low, inner_high) = model.bounds, model._model.bounds
    scale = (inner_high - inner_low) / (high - low)

    def before(module: Any) -> Any:
        import torch

        from .wrapper_input import with_input

        if scale == 1 and low == inner_low:
            return module
        shift = torch.tensor([low - inner_low / scale])
        return with_input(module, shift, torch.tensor([1 / scale]))

    return _Step(model._model, "Foolbox bounds", before)


def _inside_art(classifier: Any) -> _Step:
    if classifier.postprocessing_defences:
        raise _Unknown("an ART classifier with postprocessing defences, which have no module")
    maps: list[tuple[Any, Any]] = []
    for operation in classifier.preprocessing_operations:
        if not type(operation).__name__.startswith("StandardisationMeanStd"):
            raise _Unknown(
                f"an ART classifier with the preprocessing {type(operation).__name__}, which has "
                "no module"
            )
        if operation.apply_predict:
            maps.append((operation.mean, operation.std))
    shape = classifier.input_shape

    def before(module: Any) -> Any:
        from .wrapper_input import with_input

        device = next((tensor.device for tensor in module.parameters()), None)
        for mean, std in reversed(maps):
            shift, scale = (_art_tensor(value, shape).to(device) for value in (mean, std))
            module = with_input(module, shift, scale)
        return module

    return _Step(classifier.model, "an ART PyTorchClassifier", before)


def _art_tensor(value: Any, shape: tuple[int, ...]) -> Any:
    """Mean or deviation of ART as a tensor that is broadcast against a batch, as ART does."""
    import torch

    tensor = torch.as_tensor(value, dtype=torch.float32)
    if tensor.dim() == 1 and len(tensor) > 1 and len(tensor) != shape[-1]:
        tensor = tensor.reshape(-1, *(1 for _ in shape[1:]))
    return tensor
