"""Triton kernels of one round of the solver: forward, margin loss and input gradient.

The solver keeps its problems in slots (csrc/problem.h). A round takes the slots listed in ``rows``.
Their trial points go through a `Network`. The margin loss (csrc/solver/margin_loss.h) turns the
logits into margins and into dlogits, where the backward pass begins. The gradients go back into the
slots. `plan.Plan` puts the kernels together. It gives them as machine code for a CUDA graph
(`Plan.launches`), or runs them on tensors (`Plan.run`). Each kernel has a plain reference beside
it, and `kernel` looks both up by name.

Importing this package imports neither torch nor triton.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["KERNELS", "kernel"]

KERNELS = {
    "activation": "activation",
    "linear_forward": "linear",
    "linear_backward": "linear",
    "margin_loss": "margin_loss",
    "propagate": "fused",
    "smoothed_relu_forward": "smoothed_relu",
    "smoothed_relu_backward": "smoothed_relu",
}
"""Name of each kernel and its module, which has ``<name>_reference`` too."""


def kernel(name: str) -> tuple[Any, Any]:
    """Return the kernel of that name and its reference."""
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {sorted(KERNELS)}, got {name!r}")
    module = importlib.import_module(f"{__name__}.{KERNELS[name]}")
    return getattr(module, name), getattr(module, f"{name}_reference")
