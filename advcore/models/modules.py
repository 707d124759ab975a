"""Torch modules that the models of the package are made of. Importing this file imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Resize(nn.Module):
    """Bilinear resizing, over the whole area of the source where it shrinks.

    Parameters
    ----------
    size : int, the shorter side, or (height, width)
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = _sides(size, "size") if isinstance(size, Sequence) else _side(size, "size")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) of another size."""
        size, shape = self.size, tuple(x.shape[2:])
        if isinstance(size, int):
            ratio = size / min(shape)
            size = (round(shape[0] * ratio), round(shape[1] * ratio))
        return (
            x if size == shape else functional.interpolate(x, size, mode="bilinear", antialias=True)
        )

    def extra_repr(self) -> str:
        return f"size={self.size}"


class CenterCrop(nn.Module):
    """The middle of images (B, C, H, W); ``size`` an int, or (height, width)."""

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = _sides(size if isinstance(size, Sequence) else (size, size), "crop")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, height, width)."""
        (rows, columns), (height, width) = x.shape[2:], self.size
        if rows < height or columns < width:
            raise ValueError(
                f"images of {rows}x{columns} are smaller than the crop of {height}x{width}"
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        return x[:, :, top : top + height, left : left + width]

    def extra_repr(self) -> str:
        return f"size={self.size}"


def _side(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer or (height, width), got {value!r}")
    return value


def _sides(value: Sequence[int], name: str) -> tuple[int, int]:
    if len(value) != 2:
        raise ValueError(f"{name} must be a positive integer or (height, width), got {value!r}")
    return _side(value[0], name), _side(value[1], name)


class ReverseChannels(nn.Module):
    """RGB to BGR."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)
