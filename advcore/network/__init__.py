"""Networks that the compiled engine runs by itself: layers, files, conversion from and to torch.

Importing this package imports neither torch nor the compiled module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .layers import (
    ACTIVATIONS,
    KINKED,
    POOLINGS,
    SATURATING,
    Convolution,
    Layer,
    Unsupported,
)
from .merge import MERGES, AnyLayer, Merge
from .network import Network

if TYPE_CHECKING:
    from .normalize import Normalize
else:

    def __getattr__(name: str) -> Any:
        if name == "Normalize":  # a torch module, so it is imported on first use
            from .normalize import Normalize

            return Normalize
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACTIVATIONS",
    "KINKED",
    "MERGES",
    "POOLINGS",
    "SATURATING",
    "AnyLayer",
    "Convolution",
    "Layer",
    "Merge",
    "Network",
    "Normalize",
    "Unsupported",
]
