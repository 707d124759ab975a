"""Sums and concatenations of images in the networks of the compiled engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .layers import (
    MAX_VALUES,
    Convolution,
    Floats,
    Layer,
    Pooled,
    check_function,
    check_integers,
    empty,
    freeze,
)

MERGES = ("sum", "concatenate")
"""Ways of a `Merge`, shared with the engine."""


@dataclass(frozen=True, eq=False)
class Merge(Pooled):
    """The sum or the concatenation of images, a map of each channel, an activation, and a pooling.

    Attributes
    ----------
    sources : tuple of int
        Numbers of the layers whose outputs it takes, -1 for the image; one at least.
    shapes : tuple of tuple of int
        (channels, height, width) of each of them. Those of a sum are equal, those of a
        concatenation have the same height and width.
    how : str
        "sum", or "concatenate" (of the channels).
    scale, shift : ndarray, shape (channels,), float32
        The map ``scale * h + shift`` of each channel, by default the identity.
    activation, slope
        See `Layer`.
    pooling, window, pooling_stride, pooling_padding, ceil_mode
        See `Convolution`.
    """

    sources: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]
    how: str = "sum"
    scale: Floats = field(default_factory=empty)
    shift: Floats = field(default_factory=empty)
    activation: str = "identity"
    slope: float = 0.01
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)
    pooling_stride: tuple[int, int] | None = None
    pooling_padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        if self.how not in MERGES:
            raise ValueError(f"how must be one of {MERGES}, got {self.how!r}")
        shapes = tuple(tuple(int(extent) for extent in shape) for shape in self.shapes)
        if not shapes or len(shapes) != len(self.sources):
            raise ValueError(
                f"shapes must have an entry for each of the sources {self.sources}, at least one, "
                f"got {self.shapes}"
            )
        if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
            raise ValueError(f"shapes must be three integers >= 1 each, got {self.shapes}")
        object.__setattr__(self, "shapes", shapes)
        check_integers(self, "sources", len(shapes), -1)
        first = 0 if self.how == "sum" else 1
        if any(shape[first:] != shapes[0][first:] for shape in shapes):
            raise ValueError(f"shapes must fit each other for a {self.how}, got {self.shapes}")
        for name, default in (("scale", 1.0), ("shift", 0.0)):
            if not np.asarray(getattr(self, name)).size:
                object.__setattr__(self, name, np.full(self.features, default, np.float32))
            freeze(self, name, 1)
            if len(getattr(self, name)) != self.features:
                raise ValueError(
                    f"{name} must have {self.features} values, one for each channel, got "
                    f"{len(getattr(self, name))}"
                )
        check_function(self)
        self.check_pooling()
        if min(self.out_shape) < 1:
            raise ValueError(f"window must fit the image {self.shape}, got {self.window}")
        if self.inputs > MAX_VALUES:
            raise ValueError(f"a merge must have at most {MAX_VALUES} values, got {self.inputs}")

    @property
    def features(self) -> int:
        """Number of channels of the output."""
        channels = [shape[0] for shape in self.shapes]
        return sum(channels) if self.how == "concatenate" else channels[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) before the pooling."""
        return self.features, *self.positions

    @property
    def positions(self) -> tuple[int, int]:
        """Rows and columns before the pooling."""
        return self.shapes[0][1], self.shapes[0][2]

    @property
    def inputs(self) -> int:
        """Number of values before the pooling."""
        return math.prod(self.shape)

    @property
    def arrays(self) -> dict[str, Floats]:
        """The arrays by name: scale and shift."""
        return {"scale": self.scale, "shift": self.shift}

    @property
    def factors(self) -> tuple[Floats, Floats]:
        """The arrays of the compiled layer: scale and shift."""
        return self.scale, self.shift

    @property
    def geometry(self) -> tuple[Any, ...]:
        """The arguments of the compiled layer beyond scale, shift and activation."""
        return self.sources, self.how, self.shape, (1, 1), (0, 0), empty(), *self.pooling_arguments

    def reversed(self, channels: int, outputs: bool) -> Merge:
        """The same layer with its channels in reverse order; ``outputs`` must be True."""
        if not outputs:
            raise ValueError("a merge gives no logits")
        parts = slice(None, None, 1 if self.how == "sum" else -1)
        return replace(
            self,
            sources=self.sources[parts],
            shapes=self.shapes[parts],
            scale=self.scale[::-1],
            shift=self.shift[::-1],
        )


AnyLayer = Layer | Convolution | Merge
"""A layer of a `Network`."""
