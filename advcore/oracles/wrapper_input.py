"""What wrappers of other libraries do to images. Importing this file imports torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..network import Normalize


class WrapperInput(nn.Module):
    """Images (B, ...) flipped along an axis, then ``(x - mean) / std``.

    Parameters
    ----------
    mean, std : Tensor
        They are broadcast against the batch. They are kept as buffers.
    flip_axis : int, optional
        Axis of the batch along which images are flipped first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, flip_axis: int | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.flip_axis = flip_axis

    def forward(self, x: Tensor) -> Tensor:
        """Return the images as the model behind the wrapper gets them, (B, ...)."""
        if self.flip_axis is not None:
            x = x.flip(self.flip_axis)
        return (x - self.mean) / self.std


def with_input(module: nn.Module, mean: Any, std: Any, flip_axis: int | None = None) -> nn.Module:
    """The module with `Normalize` before it, where that says the same, else with `WrapperInput`.

    Parameters
    ----------
    mean, std : Tensor or None
        None: 0 and 1.
    """
    import torch

    if mean is None and std is None and flip_axis is None:
        return module
    mean = torch.zeros(1) if mean is None else torch.as_tensor(mean).detach()
    std = torch.ones(1) if std is None else torch.as_tensor(std).detach()
    is_plain = flip_axis is None and bool((std > 0).all())
    if is_plain and _by_channel(mean) and _by_channel(std):
        first: nn.Module = Normalize(mean.flatten().tolist(), std.flatten().tolist())
    else:
        first = WrapperInput(mean, std, flip_axis)
    return nn.Sequential(first.eval(), module).eval()


def _by_channel(value: Tensor) -> bool:
    """Whether there is one value, or one for each channel of images (B, C, H, W)."""
    return value.numel() == 1 or (value.dim() in (3, 4) and value.numel() == value.shape[-3])
