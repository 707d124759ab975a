"""What the adapters share: options checked before there are images, and models that are watched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..api import minimize_distortion
from ..options import Options
from ..result import Result

OPTIONS = frozenset(entry.name for entry in fields(Options))


def attack_with(given: tuple[str, ...] = (), **options: Any) -> Callable[..., Result]:
    """Return `minimize_distortion` with these options, which are checked now.

    Parameters
    ----------
    given : tuple of str
        Options that the library gives with each call.

    Raises
    ------
    TypeError, ValueError
        An option does not exist, is one that the library gives, or is not as described in
        ``docs/options.md``.
    """
    for name in options:
        if name in given:
            raise TypeError(f"{name} is no option of this attack: the library gives it")
        if name not in OPTIONS:
            raise TypeError(f"{name} is no option of minimize_distortion, see docs/options.md")
    Options(**options)
    return functools.partial(minimize_distortion, **options)


def classes(values: Any, targeted: bool) -> dict[str, Any]:
    """Return the classes as the argument that they are: targets, or labels of the images."""
    return {"targets" if targeted else "labels": values}


def watched(model: Any) -> Callable[[Any], Any]:
    """Return a callable that runs a torch module as it is, hooks included, for each evaluation.

    A module in the engine is not called, so what counts its calls sees none.
    """
    return functools.partial(_run, model)


def _run(model: Any, images: Any) -> Any:
    return model(images)


def is_watched(model: Any) -> bool:
    """Whether a module, or a part of it, has hooks."""
    groups = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    parts = model.modules() if hasattr(model, "modules") else ()
    return any(getattr(part, group, None) for part in parts for group in groups)
