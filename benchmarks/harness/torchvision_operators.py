"""torchvision beside a torch that it was not built for."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

OPERATORS = ("nms", "qnms")
"""Operators that torchvision 0.25 to 0.28 describes at its import."""


def define_missing_operators() -> Any:
    """Define the operators that torchvision expects and that a build without its library lacks."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in OPERATORS:
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # alive while the operators are needed
