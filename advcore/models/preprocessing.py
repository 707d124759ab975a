"""What is done to an image before a network sees it, as part of the model.

So distortion is measured in the image's own [0, 1] space. `warn_if_normalised` notices images that
have been normalised already.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._extras import require

if TYPE_CHECKING:
    import torch

SAMPLE = 1 << 16
"""Values of a channel that are looked at."""
REMEDY = (
    "pass them in [0, 1] and put the normalisation into the model: "
    "advcore.models.preprocess(model, mean=..., std=...)"
)


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


def normalised_note(images: NDArray[Any]) -> str | None:
    """What is wrong, and the remedy, if these are pictures of 8 bits that were normalised.

    They are where some values are below zero, outside [-1, 1] and not all whole, and a channel of
    512 values or more has 256 different ones at most. What is not shaped like pictures is not
    judged.
    """
    channels = _channels(np.asarray(images))
    if channels is None or channels.shape[1] < 512 or not np.isfinite(channels).all():
        return None
    low, high = float(channels.min()), float(channels.max())
    if low > -0.05 or max(-low, high) <= 1 + 1e-6 or max(-low, high) > 20:
        return None
    for channel in channels:
        different = np.unique(channel)
        if not 8 <= len(different) <= 256 or (different == np.rint(different)).all():
            return None
    return (
        f"images look normalised: 8-bit pictures with values from {low:.3g} to {high:.3g}, and "
        f"distortion is measured in these units; {REMEDY}"
    )


def warn_if_normalised(images: NDArray[Any], *, stacklevel: int = 2) -> None:
    """UserWarning with `normalised_note`."""
    note = normalised_note(images)
    if note is not None:
        warnings.warn(note, stacklevel=stacklevel + 1)


def _channels(images: NDArray[Any]) -> NDArray[Any] | None:
    """(C, n) values of the first images, if they are shaped like pictures of 64 pixels or more."""
    if images.ndim < 2 or not len(images):
        return None
    shape = images.shape[1:]
    pixels = math.prod(shape[-2:]) if len(shape) > 1 else shape[0]
    if len(shape) == 1:
        count = next((c for c in (1, 3) if math.isqrt(pixels // c) ** 2 * c == pixels), 0)
        shape = (count, pixels // count) if count else ()
    elif len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        images, shape = np.moveaxis(images, 3, 1), (shape[2], *shape[:2])
    elif len(shape) == 2:
        shape = (1, *shape)
    if len(shape) < 2 or shape[0] not in (1, 3) or math.prod(shape[1:]) < 64:
        return None
    some = images[: max(1, SAMPLE // math.prod(shape[1:]))]
    return np.moveaxis(some.reshape(len(some), shape[0], -1), 1, 0).reshape(shape[0], -1)
