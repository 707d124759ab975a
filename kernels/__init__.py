"""Triton kernels of one round of the solver: forward, head and input gradient of a `Network`.

The solver keeps its problems in slots (csrc/problem.h). A round takes the slots listed in ``rows``:
their trial points go through the network, the head (margin_loss.h) turns logits into margins and
the seed of the backward pass, and the gradients go back into the slots. `plan.Plan` puts the
kernels together, either as machine code for a CUDA graph (`Plan.launches`) or through Triton's own
launcher (`Plan.run`). Beside each kernel is its plain reference; `kernel` looks both up by name.

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
    "head": "head",
    "propagate": "fused",
}
"""Name of each kernel and its module, where ``<name>_reference`` is its twin."""


def kernel(name: str) -> tuple[Any, Any]:
    """The kernel of that name and its reference."""
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {sorted(KERNELS)}, got {name!r}")
    module = importlib.import_module(f"{__name__}.{KERNELS[name]}")
    return getattr(module, name), getattr(module, f"{name}_reference")
