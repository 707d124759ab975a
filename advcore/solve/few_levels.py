"""Search on a grid of few levels, such as binary features, by forwards at grid points.

There a distortion is a count of moves from level to level, and a rounded result of the continuous
search is far from the smallest. Its grid point loses the moves that it does not need, and exchanges
one for another where that adds margin. A beam of grid points grows from the clean image as well;
each step tries the moves that gain most margin for their distortion by the gradient.

The search of an image is a generator. It yields the points to be evaluated and is sent their
margins and gradients, so that one forward serves many images.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MOST_LEVELS = 8
"""Levels up to which the search is done. With 16 it gains 0.1 to 0.4%, with 4 up to 7%."""
BEAM = 2
"""Grid points from which a step of the beam goes on."""
TRIED = 12
"""Moves that are tried at each of them."""
REMOVED = 32
"""Moves of the best grid point that are taken back, one at a time, in a round."""
EXCHANGED = 3
"""Moves that are exchanged for another in a round."""
MOST_GRADIENTS = 60
"""Gradients of an image after which no step begins."""
MOST_FORWARDS = 600
"""Forwards of an image after which no step begins."""
MEMORY = 1 << 22
"""Values of the grid points that are evaluated at once; they bound the memory."""


class Points(NamedTuple):
    """Levels (P, n) of grid points to evaluate, and whether gradients are wanted."""

    level: Doubles
    gradient: bool


class Answer(NamedTuple):
    """Margins (P,) of the points, and gradients (P, n) if they are wanted."""

    margin: Floats
    gradient: Floats | None


Steps = Generator[Points, Answer, None]


class GridSearch:
    """The search of one image.

    Parameters
    ----------
    clean : (n,) float64
    grid : (float, float, int)
        Lowest value, step and highest level: level i has the value ``low + i * step``.
    limit : float32
        Margin of a success.
    level : (n,) float64
        Levels to start from.
    best : (n,) float64, or None
        Levels of an adversarial grid point, which the search improves.
    power : int
        Of the differences in the distortion: 2, or 1 for l1, where no distance is squared.

    Attributes
    ----------
    distance2 : float
        Squared distance of ``best``; inf without one.
    improved : bool
        Whether the search has found ``best``.
    lack : float
        Margin that the last point with a gradient lacks; below 0 for a success.
    gradients, forwards : int
        Points that were evaluated with and without their gradient.
    """

    def __init__(
        self,
        clean: Doubles,
        grid: tuple[float, float, int],
        limit: np.float32,
        level: Doubles,
        best: Doubles | None,
        power: int = 2,
    ) -> None:
        self.clean, self.limit, self.first, self.best = clean, limit, level, best
        self.low, self.step, self.top = grid
        self.power = power
        self.slack = 1e-9 * self.step**power  # more than the rounding of a squared distance
        self.distance2 = np.inf if best is None else float(self.distances(best))
        self.margin = -np.inf
        self.improved = False
        self.lack = 0.0
        self.gradients = self.forwards = 0

    def distances(self, level: Doubles) -> Doubles:
        """Squared distances (...,) of levels (..., n)."""
        total: Doubles = self._sizes(self.low + level * self.step - self.clean).sum(axis=-1)
        return total

    def _sizes(self, r: Doubles) -> Doubles:
        return r**2 if self.power == 2 else np.abs(r)

    def run(self) -> Steps:
        """Search around the best grid point, from the clean image, and around what that found."""
        yield from self._polish()
        polished = self.best
        yield from self._grow()
        if self.best is not polished:
            yield from self._polish()

    def _exhausted(self) -> bool:
        return self.gradients >= MOST_GRADIENTS or self.forwards >= MOST_FORWARDS

    def _gradients(self, level: Doubles) -> Generator[Points, Answer, Floats]:
        """Gradients (P, n) of points."""
        self.gradients += len(level)
        answer = yield Points(level, True)
        self.lack = float(self.limit - answer.margin[0])
        assert answer.gradient is not None
        return answer.gradient

    def _margins(self, level: Doubles) -> Generator[Points, Answer, Floats]:
        """Margins (P,) of points; the best one is kept if it is better."""
        self.forwards += len(level)
        margin = (yield Points(level, False)).margin
        for i in np.flatnonzero(margin >= self.limit):
            distance2 = float(self.distances(level[i]))
            change = distance2 - self.distance2
            if change < -self.slack or (change <= self.slack and margin[i] > self.margin):
                self.best, self.distance2, self.improved = level[i], distance2, True
                self.margin = float(margin[i])
        return margin

    def _moves(self, nodes: Doubles, gradients: Floats, reach: float) -> Doubles:
        """Points (P, n) one move from ``nodes`` (B, n), with a squared distance below ``reach``.

        They are the `TRIED` of each node that gain most margin for their distortion.
        """
        points: dict[bytes, Doubles] = {}
        for level, gradient in zip(nodes, gradients, strict=True):
            move = np.sign(gradient).astype(np.float64)
            after = level + move
            r = self.low + level * self.step - self.clean
            cost = self._sizes(r + move * self.step) - self._sizes(r)
            room = reach - float(self.distances(level))
            allowed = (move != 0) & (after >= 0) & (after <= self.top) & (cost < room)
            places = np.flatnonzero(allowed)
            gain = np.abs(gradient[places]) / np.maximum(cost[places], 1e-3 * self.step**self.power)
            for place in places[np.argsort(-gain, kind="stable")[:TRIED]]:
                point = level.copy()
                point[place] += move[place]
                points.setdefault(point.tobytes(), point)
        return np.array(list(points.values())).reshape(-1, len(self.clean))

    def _grow(self) -> Steps:
        """Go from the clean image along a beam, while that may end nearer than the best point."""
        nodes, missing = self.first[None], 0.0
        while len(nodes) and not self._exhausted():
            gradients = yield from self._gradients(nodes)
            missing = missing or max(self.lack, 1e-30)
            points = self._moves(nodes, gradients, self.distance2 - self.slack)
            if not len(points):
                return
            margin = yield from self._margins(points)
            # The squared distance where a straight way to the best point would have this margin.
            whole = self.distance2 if np.isfinite(self.distance2) else self.step**self.power
            key = self.distances(points) + whole / missing * (
                self.limit - margin.astype(np.float64)
            )
            key[margin >= self.limit] = np.inf
            order = np.argsort(key, kind="stable")[:BEAM]
            nodes = points[order[np.isfinite(key[order])]]

    def _polish(self) -> Steps:
        """Take back moves of the best grid point, or exchange one, while that helps."""
        while self.best is not None and not self._exhausted():
            best, distance2, margin = self.best, self.distance2, self.margin
            r = self.low + best * self.step - self.clean
            back = -np.sign(r)
            saved = self._sizes(r) - self._sizes(r + back * self.step)
            places = np.flatnonzero(saved > self.slack)
            if len(places) > REMOVED:
                gradient = (yield from self._gradients(best[None]))[0]
                loss = -gradient[places] * back[places] / saved[places]
                places = places[np.argsort(loss, kind="stable")[:REMOVED]]
            if not len(places):
                return
            points = np.repeat(best[None], len(places), axis=0)
            points[np.arange(len(places)), places] += back[places]
            margins = yield from self._margins(points)
            if self.distance2 < distance2 - self.slack:
                continue
            nodes = points[np.argsort(-margins, kind="stable")[:EXCHANGED]]
            gradients = yield from self._gradients(nodes)
            exchanged = self._moves(nodes, gradients, distance2 + self.slack)
            if len(exchanged):
                yield from self._margins(exchanged)
            if not (self.distance2 < distance2 - self.slack or self.margin > margin):
                return


Evaluate = Callable[[Doubles, NDArray[np.intp], bool], Answer]
"""Evaluates levels (P, n) that searches of the numbers (P,) ask for, with gradients or without."""


def run_searches(
    searches: Sequence[GridSearch], evaluate: Evaluate, stop_early: Callable[[], bool]
) -> None:
    """Run searches side by side, as many at once as `MEMORY` allows, until ``stop_early``."""
    width = max(1, MEMORY // (len(searches[0].clean) * BEAM * TRIED))
    for start in range(0, len(searches), width):
        steps = {i: searches[i].run() for i in range(len(searches))[start : start + width]}
        answers: dict[int, Answer | None] = dict.fromkeys(steps)
        while answers and not stop_early():
            asked = {}
            for i, answer in answers.items():
                try:
                    asked[i] = next(steps[i]) if answer is None else steps[i].send(answer)
                except StopIteration:
                    continue
            answers = {}
            for gradient in (False, True):
                numbers = [i for i, points in asked.items() if points.gradient is gradient]
                answers |= _answers(numbers, [asked[i] for i in numbers], evaluate)


def _answers(
    numbers: list[int], asked: list[Points], evaluate: Evaluate
) -> dict[int, Answer | None]:
    """The answers to what searches ask for, all with gradients or all without."""
    if not asked:
        return {}
    counts = [len(points.level) for points in asked]
    level = np.concatenate([points.level for points in asked])
    margin, gradient = evaluate(level, np.repeat(numbers, counts), asked[0].gradient)
    ends = np.cumsum(counts)
    return {
        i: Answer(
            margin[end - count : end], None if gradient is None else gradient[end - count : end]
        )
        for i, count, end in zip(numbers, counts, ends, strict=True)
    }
