"""Preprocessing of images as part of the model.

Distortion is then measured on the images themselves, with values in [0, 1]. `normalised_note`
detects images that are normalised already.
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
    """Put resizing, crop, order of channels and normalisation before ``model``.

    All of them are differentiable. The result takes RGB images (B, C, H, W) in [0, 1], of any size
    if ``size`` is set. A ``model`` that the engine runs still runs there if only ``mean``, ``std``
    and ``scale`` are set.

    Parameters
    ----------
    model : torch.nn.Module
    mean, std : number or sequence of float, optional
        The model gets ``(scale * x - mean) / std``. A sequence has one number per channel, in the
        order of the model's channels. The defaults are 0 and 1.
    scale : number > 0
        Factor of the image; 255 for a model that takes pixels from 0 to 255.
    size : int or (int, int), optional
        Length of the shorter side after a bilinear resizing, or (height, width), in pixels.
    crop : int or (int, int), optional
        Side, or (height, width), of the middle part of the resized image that the model gets.
    bgr : bool
        Whether the model takes the channels in reverse order.

    Returns
    -------
    torch.nn.Sequential
        The new modules and ``model``, in the mode (training or eval) of ``model``.

    Raises
    ------
    TypeError, ValueError
        ``model`` is not a module, or a number is not valid.
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
        scaled_mean, scaled_std = (
            np.asarray(default if value is None else value, np.float64) / scale
            for value, default in ((mean, 0.0), (std, 1.0))
        )
        parts.append(Normalize(scaled_mean.tolist(), scaled_std.tolist()))
    network = torch.nn.Sequential(*parts, model)
    for part in (network, *parts):  # not train(): parts of the model may have a mode of their own
        part.training = model.training
    return network
