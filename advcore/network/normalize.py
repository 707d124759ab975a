"""Normalisation as the first module of a model. Importing this file imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """The normalisation ``(x - mean) / std`` of each channel, for a model that takes raw images.

    It stands as the first module. `Network.from_torch` folds it into the first ``Linear`` or
    ``Conv2d``.

    Parameters
    ----------
    mean, std : float or sequence of float
        One value, or one per channel, which is dimension 1 of the batch. ``std`` is positive. Both
        are kept as float32 buffers of shape (1,) or (C,).

    Raises
    ------
    ValueError
        A value is not finite, or ``std`` is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32).flatten().clone()
            if tensor.numel() == 0 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must be finite numbers, got {value!r}")
            self.register_buffer(name, tensor)
        if not bool((self.std > 0).all()):
            raise ValueError(f"std must be positive, got {std!r}")

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images of ``x``, (B, C, ...)."""
        shape = (-1,) + (1,) * (x.dim() - 2)
        return (x - self.mean.view(shape)) / self.std.view(shape)

    def extra_repr(self) -> str:
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


# Stored modules look the class up under this name, so that it may move to another file.
Normalize.__module__ = "advcore.network"
