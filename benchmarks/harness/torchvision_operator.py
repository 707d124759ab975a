"""torchvision beside a torch that it was not built for."""

from __future__ import annotations

from typing import Any

import torch


def define_missing_operator() -> Any:
    """Define the operator that torchvision expects and that a build without its library lacks."""
    try:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:  # it is there
        return None
    return library  # alive while the operator is needed
