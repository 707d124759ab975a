"""Minimum-distortion adversarial examples by a compiled, batched, box-constrained L-BFGS."""

from ._core import Status
from ._version import __version__
from .api import minimize_distortion
from .errors import DeviceError, Interrupted, ModelError
from .loading import load_model
from .network import Convolution, Layer, Network
from .result import Result
from .run import Progress

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
    "load_model",
    "minimize_distortion",
]
