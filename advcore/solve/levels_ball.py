"""The repair on a grid of levels in linf, where a distortion is a number of levels.

Within a ball of linf every move is free, so the radius is what there is to choose. It begins at
that of the continuous result, whose r is rounded at each radius. Where the ball cannot hold the
margin that is missing, by the gradient, or a few repairs fail, it grows. Where a grid point has the
margin, smaller radii are tried, down to the continuous one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .levels import Grid

Doubles = NDArray[np.float64]
GROWTH = 0.5
"""Part of a level by which the radius grows."""
SCALED = 4
"""First growths, after which the continuous r is rounded anew at the larger radius."""
MOST_REPAIRS = 3
"""Repairs at one radius, at most."""


class Ball:
    """Balls around clean images (B, n), at first as large as the continuous results (B, n) need."""

    def __init__(self, grid: Grid, clean: Doubles, free: Doubles) -> None:
        self.grid, self.clean, self.free = grid, clean, free
        self.least = np.abs(free - clean).max(axis=1, initial=0)
        self.radius = self.least.copy()
        self.repairs, self.growths = np.zeros((2, len(clean)), int)

    def limits(self, i: int) -> tuple[Doubles, Doubles]:
        """Lowest and highest level (n,) of each value of an image; its nearest one is inside."""
        grid, clean, radius = self.grid, self.clean[i], self.radius[i] + self.grid.rounding
        nearest = grid.nearest(clean)
        low = np.ceil((clean - radius - grid.low) / grid.step)
        high = np.floor((clean + radius - grid.low) / grid.step)
        top = grid.levels - 1
        return np.minimum(low, nearest).clip(0, top), np.maximum(high, nearest).clip(0, top)

    def start(self, i: int, radius: float) -> Doubles:
        """The continuous r (n,) at that radius, rounded into the ball."""
        self.radius[i], self.repairs[i] = radius, 0
        scale = radius / max(self.least[i], 1e-30)
        outward = self.clean[i] + scale * (self.free[i] - self.clean[i])
        level: Doubles = self.grid.nearest(outward).clip(*self.limits(i))
        return level

    def move(
        self,
        levels: Doubles,
        i: int,
        gradient: NDArray[np.float32],
        spare: float,
        best: float,
    ) -> bool:
        """Set ``levels[i]`` to what is to be tried next. False where nothing smaller is left."""
        level = self.next(i, levels[i], gradient, spare, best)
        if level is not None:
            levels[i] = level
        return level is not None

    def next(
        self, i: int, level: Doubles, gradient: NDArray[np.float32], spare: float, best: float
    ) -> Doubles | None:
        """The next levels (n,) of an image, None where nothing smaller is left to try.

        ``spare`` is the margin above the confidence; below 0 it is missing. ``best`` is the
        distortion of the best grid point so far, infinite without one.
        """
        step, rounding = self.grid.step, self.grid.rounding
        size = np.abs(self.grid.low + level * step - self.clean[i]).max()
        if np.isfinite(best) and size >= best - rounding:  # something smaller
            smaller = max(self.least[i], 0.5 * (self.least[i] + best - step))
            return self.start(i, smaller) if best - smaller > GROWTH * step else None
        self.repairs[i] += 1
        inside, target, gain, need = self._moves(i, level, gradient, spare)
        if float(gain.sum()) < need or self.repairs[i] > MOST_REPAIRS:
            self.growths[i] += 1
            larger = self.radius[i] + GROWTH * step
            if larger >= best - GROWTH * step:
                return None
            if self.growths[i] <= SCALED:
                return self.start(i, larger)
            self.radius[i], self.repairs[i] = larger, 1
            inside, target, gain, need = self._moves(i, level, gradient, spare)
        order = np.argsort(-gain, kind="stable")
        count = int(np.searchsorted(np.cumsum(gain[order]), need)) + 1
        inside[order[:count]] = target[order[:count]]
        return inside

    def _moves(
        self, i: int, level: Doubles, gradient: NDArray[np.float32], spare: float
    ) -> tuple[Doubles, Doubles, Doubles, float]:
        """The levels inside the ball, the best ones there, what each gains, and what is needed.

        After each repair that fell short it is twice as much.
        """
        step = self.grid.step
        low, high = self.limits(i)
        inside = level.clip(low, high)
        target = np.where(gradient > 0, high, np.where(gradient < 0, low, inside))
        gain = gradient * (target - inside) * step
        lost = float((gradient * (level - inside)).sum()) * step
        need = 1.02 * 2.0 ** (self.repairs[i] - 1) * max(-spare, 0.0) + 1e-6 + lost
        return inside, target, gain, need
