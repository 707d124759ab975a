"""Parts of a torch module that are in training mode. Importing this file imports no torch."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any


def parts_in_training(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and part of what is in training mode, but for wrappers to which it says nothing.

    Such a wrapper has parts, which are all in eval mode or such wrappers again, and a ``forward``
    that does not read ``training``.
    """
    for name, part in module.named_modules():
        if getattr(part, "training", False) and not _only_wraps(
            part
        ):  # torch.jit.freeze removes it
            yield name, part


def reads_training(part: Any) -> bool:
    """Whether the ``forward`` of a module may read ``training``."""
    code = getattr(type(part).forward, "__code__", None)
    return code is None or "training" in _names(code)


def _only_wraps(part: Any) -> bool:
    children = list(part.children())
    if not children or reads_training(part):
        return False
    return all(not getattr(each, "training", False) or _only_wraps(each) for each in children)


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in the code, and in code inside it."""
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names(each) for each in inner))
