"""Torch modules inside a callable, and what their training mode would change.

Importing this file imports no torch.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..network.modes import parts_in_training

MOST_VALUES = 1000
"""Values that are looked at, beside modules."""


def inner_modules(model: Any) -> list[Any]:
    """Return the torch modules that a model consists of, as far as they can be found.

    They are looked for in closures, in the globals that a function names, in the arguments of a
    partial, in the object of a bound method, and in attributes, lists, tuples and dictionaries.
    Nothing is called.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    own = set(vars(torch.nn.Module()))
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = [model]
    while waiting and len(seen) < MOST_VALUES:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, types.ModuleType):
            continue
        seen.add(id(value))
        if not isinstance(value, torch.nn.Module):
            waiting += _parts(value)
            continue
        for part in value.modules():
            found[id(part)] = part
            attributes = (item for name, item in vars(part).items() if name not in own)
            waiting += [item for item in attributes if _may_hold_modules(item)]
    return list(found.values())


def _may_hold_modules(value: Any) -> bool:
    kinds = (list, tuple, dict, types.FunctionType, types.MethodType, functools.partial)
    return isinstance(value, kinds)


def _parts(value: Any) -> list[Any]:
    """Return the values that a function or container refers to."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        if value.__module__ and value.__module__.split(".")[0] in ("torch", "numpy"):
            return []
        names = {name for name in _global_names(value.__code__) if name in value.__globals__}
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        cells = [_content(cell) for cell in value.__closure__ or ()]
        return [*(value.__globals__[name] for name in names), *cells, *defaults]
    if isinstance(value, (list, tuple)):
        return list(value[:MOST_VALUES])
    if isinstance(value, dict):
        return list(value.values())[:MOST_VALUES]
    if isinstance(value, type) or not callable(value):
        return []
    try:
        return list(vars(value).values())
    except Exception:  # no attributes, or a proxy
        return []


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names of globals that the code, or code inside it, reads."""
    names = {
        str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


@contextmanager
def buffers_kept(model: Any) -> Iterator[None]:
    """Keep the buffers of modules in training mode, such as the statistics of a batch norm.

    Raises
    ------
    ValueError
        The block has changed one. All are as before then.
    """
    torch = sys.modules["torch"]
    kept = [
        (part, name, buffer, buffer.detach().clone())
        for part in inner_modules(model)
        if getattr(part, "training", False) and not isinstance(part, torch.fx.GraphModule)
        for name, buffer in part.named_buffers(recurse=False)
        if not torch.nn.parameter.is_lazy(buffer) and not buffer.is_meta
    ]
    raised: Exception | None = None
    try:
        yield
    except Exception as error:
        raised = error
    changed = [
        f"{name} of a {type(part).__name__}"
        for part, name, buffer, before in kept
        if _restore(part, name, buffer, before)
    ]
    if changed:
        raise ValueError(
            f"model must be in eval mode: a forward changed the {changed[0]}, which is in training "
            "mode; call .eval() on it. Its values are as before"
        ) from raised
    if raised is not None:
        raise raised


def _restore(part: Any, name: str, buffer: Any, before: Any) -> bool:
    """Put a buffer back; whether it had changed."""
    torch = sys.modules["torch"]
    is_same = torch.equal(buffer, before)
    if not is_same and buffer.is_floating_point():  # NaN differs from itself
        is_same = torch.allclose(buffer, before, rtol=0, atol=0, equal_nan=True)
    if getattr(part, name) is not buffer and not torch.equal(getattr(part, name), before):
        setattr(part, name, buffer)
        is_same = False
    if not is_same:
        with torch.no_grad():
            buffer.copy_(before)
    return not is_same


def check_eval_mode(module: Any) -> None:
    """Raise a ValueError where a part of a module is in training mode, see `parts_in_training`."""
    # The flags of an exported program or traced graph say nothing: its mode was fixed before.
    if isinstance(module, sys.modules["torch"].fx.GraphModule):
        return
    if getattr(module, "draws", False) is True:  # models.averaging.Averaged
        return
    for name, part in parts_in_training(module):
        which = f"its submodule {name!r} ({type(part).__name__})" if name else "the module"
        raise ValueError(
            f"model must be in eval mode, {which} is in training mode; call model.eval()"
        )
