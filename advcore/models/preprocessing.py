"""What is done to an image before a network sees it, as part of the model.

So distortion is measured in the image's own [0, 1] space. `normalised_note` notices images that
have been normalised already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._extras import require
from ..validate import normalised_note

if TYPE_CHECKING:
    import torch

__all__ = ["normalised_note", "preprocess"]


def preprocess(
    model: torch.nn.Module,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float = 1.0,
    size: int | tuple[int, int] | None = None,
    crop: int | tuple[int, int] | None = None,
    bgr: bool = False,
) -> torch.nn.Sequential:
    """``model`` behind resizing, crop, order of channels and normalisation, all differentiable.

    The result takes RGB images (B, C, H, W) in [0, 1], of any size where ``size`` is given. A fully
    connected ``model`` with ``mean``, ``std`` and ``scale`` alone still runs in the engine.

    Parameters
    ----------
    mean, std : number, or one per channel in the order that the model sees
        The model gets ``(scale * x - mean) / std``. None: 0 and 1.
    scale : number > 0
        255 for a model that takes pixels from 0 to 255.
    size : int, the shorter side, or (height, width)
        Bilinear, over the whole area of the source where it shrinks.
    crop : int, or (height, width)
        The middle of the resized image.
    bgr : bool
        The model takes the channels in reverse.
    """
    require("torch", "torch", "advcore.models.preprocess")
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a finite number > 0, got {scale!r}")
    from ..network import Normalize
    from .modules import CenterCrop, Resize, ReverseChannels

    parts: list[torch.nn.Module] = []
    if size is not None:
        parts.append(Resize(size))
    if crop is not None:
        parts.append(CenterCrop(crop))
    if bgr:
        parts.append(ReverseChannels())
    if mean is not None or std is not None or scale != 1:
        centre, width = (
            np.asarray(default if value is None else value, np.float64) / scale
            for value, default in ((mean, 0.0), (std, 1.0))
        )
        parts.append(Normalize(centre.tolist(), width.tolist()))
    network = torch.nn.Sequential(*parts, model)
    for part in (network, *parts):  # not train(): parts of the model may have a mode of their own
        part.training = model.training
    return network
