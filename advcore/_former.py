"""Modules of version 0.1 that have moved, under their former names.

Stored objects such as a pickled `Network` look up their classes under these names.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

MODULES = {
    "averaged": "advcore.models.averaging",
    "layers": "advcore.network.layers",
    "locally_connected": "advcore.models.locally_connected",
    "onnx_graph": "advcore.models.onnx_graph",
    "onnx_operators": "advcore.models.onnx_operators",
    "preprocessing": "advcore.models.preprocessing",
    "pretrained": "advcore.models.pretrained",
    "training": "advcore.models.training",
}
"""Present name of each module, by its former name in the package."""


class _FormerModule(types.ModuleType):
    """Stands under a former name, and imports the module at the first look at its contents."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Tools that walk through all modules ask for such names.
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(MODULES[self.__name__.rpartition(".")[2]]), name)


def register() -> None:
    """Make the former names importable, without an import of the modules themselves."""
    for name in MODULES:
        former_name = f"advcore.{name}"
        sys.modules.setdefault(former_name, _FormerModule(former_name))
