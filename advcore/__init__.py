"""Minimum-distortion adversarial examples by a compiled, batched, box-constrained L-BFGS."""

import importlib
from typing import Any

from . import _former

try:
    from ._core import Status
except ModuleNotFoundError as error:
    if error.name != f"{__name__}._core":
        raise
    raise ImportError(
        f"{__path__[0]} is the source folder of advcore, which has no compiled module: start "
        "Python from another folder, or install with `pip install -e .`",
        name=error.name,
    ) from None
from ._version import __version__
from .api import minimize_distortion
from .errors import DeviceError, Interrupted, ModelError
from .models.loading import load_model
from .network import Convolution, Layer, Network
from .options import Progress
from .result import Result

__all__ = [
    "Convolution",
    "DeviceError",
    "Interrupted",
    "Layer",
    "ModelError",
    "Network",
    "Progress",
    "Result",
    "Status",
    "__version__",
    "diagnose",
    "load_model",
    "minimize_distortion",
]

_former.register()


_LATER = {"diagnose": "advcore.diagnosis"}
"""Modules of public names that are imported at their first use."""
_MODULES = ("data", "diagnosis", "experiments", "jobs", "reference", "report")
"""Modules that are imported at their first use as well, as ``advcore.data``."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _former.MODULES:
        return importlib.import_module(_former.MODULES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
