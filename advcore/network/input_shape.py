"""The shape of the images that a model from a file takes. Importing this file imports torch."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn


def in_shape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the images ``x`` as (B, *shape).

    ``x`` is in that shape, but for dimensions of size 1, or flat, (B, n). Images in another order
    of the dimensions are not reshaped: their values would be scrambled.

    Raises
    ------
    ValueError : ``x`` has another shape. The message names the transposition if there is one.
    """
    if tuple(x.shape[1:]) == shape:
        return x
    n = math.prod(shape)
    flat = x.dim() == 2 and x.shape[1] == n
    if x.dim() > 1 and (flat or _squeezed(x.shape[1:]) == _squeezed(shape)):
        return x.reshape(len(x), *shape)
    text = f"images must have the shape (N, {', '.join(map(str, shape))}) of the model's input"
    if len(shape) > 1:
        text += f", or be flat, (N, {n})"
    raise ValueError(f"{text}; got {tuple(x.shape)}{_remedy(tuple(x.shape), shape)}")


def _squeezed(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _remedy(given: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Text of the way from images of the shape ``given`` to ``shape``; empty if there is none."""
    if len(given) == len(shape) + 1:
        for order in itertools.permutations(range(1, len(given))):
            if tuple(given[i] for i in order) == shape:
                return f". numpy.transpose(images, {(0, *order)}) has it"
    if len(shape) == 1 and math.prod(given[1:]) == shape[0]:
        return ". images.reshape(len(images), -1) has it, in this order of the values"
    return ""


class FlattenImages(nn.Flatten):
    """The first module of a chain of layers on flat values: `in_shape`, then flat."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Return the values (B, n) of the images ``x``."""
        return in_shape(x, self.shape).flatten(1)

    def extra_repr(self) -> str:
        return f"shape={self.shape}"
