"""Torch modules of the package's models. Importing this file imports torch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Resize(nn.Module):
    """Bilinear resizing, with antialiasing where the image shrinks.

    Parameters
    ----------
    size : int or (int, int)
        Length of the shorter side, or (height, width), in pixels.

    Raises
    ------
    ValueError
        A length is not a positive integer.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = (
            _check_sides(size, "size") if isinstance(size, Sequence) else _check_side(size, "size")
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized images of ``x``, (B, C, H, W)."""
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
    """Crop to the middle of images (B, C, H, W).

    Parameters
    ----------
    size : int or (int, int)
        Side of a square, or (height, width), in pixels.

    Raises
    ------
    ValueError
        A length is not a positive integer, or an image is smaller than the crop.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = _check_sides(size if isinstance(size, Sequence) else (size, size), "crop")

    def forward(self, x: Tensor) -> Tensor:
        """Return the middle of the images, (B, C, height, width)."""
        (rows, columns), (height, width) = x.shape[2:], self.size
        if rows < height or columns < width:
            raise ValueError(
                f"images of {rows}x{columns} are smaller than the crop of {height}x{width}"
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        return x[:, :, top : top + height, left : left + width]

    def extra_repr(self) -> str:
        return f"size={self.size}"


def _check_side(value: int, name: str) -> int:
    """Return a length in pixels; ValueError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer or (height, width), got {value!r}")
    return value


def _check_sides(value: Sequence[int], name: str) -> tuple[int, int]:
    """Return (height, width) in pixels; ValueError unless both are positive integers."""
    if len(value) != 2:
        raise ValueError(f"{name} must be a positive integer or (height, width), got {value!r}")
    return _check_side(value[0], name), _check_side(value[1], name)


class ReverseChannels(nn.Module):
    """Reverse the channels of images (B, C, H, W), for example from RGB to BGR."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)
