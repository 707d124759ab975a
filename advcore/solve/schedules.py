"""Tables of searches: one ordered programme for each kind of network.

An effort is a part of the programme from its beginning, so the larger of two efforts does all that
the smaller one does, evaluation by evaluation, before it goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..effort import EFFORTS, Descent, Effort, Schedule


@dataclass(frozen=True)
class Programme:
    """The searches of a kind of network, by the effort that adds them.

    The fallbacks come behind those of ``default``. They are run while nothing was found.
    """

    fast: tuple[Schedule, ...]
    default: tuple[Schedule, ...]
    fallbacks: tuple[Schedule, ...]
    thorough: tuple[Schedule, ...]
    exhaustive: tuple[Schedule, ...] = ()

    def effort(self, name: str) -> Effort:
        """The searches of the effort of that name, and those that follow while nothing is found."""
        parts = (self.fast, self.default, self.thorough, (*self.exhaustive, *_LONGER))
        ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts))]
        last = max(EFFORTS.index(name), EFFORTS.index("default"))
        searches = (*self.fast, *self.default, *self.fallbacks)
        for part in parts[2 : last + 1]:
            searches += part
        if last >= 2:
            return Effort(searches, len(searches))
        return Effort(searches, ends[EFFORTS.index(name)])


_NO_DESCENT = Descent()


def _refined(tolerance: float, budget: int = 30, descent: Descent = _NO_DESCENT) -> Schedule:
    """From the best image: a descent, where it has steps, and a polish."""
    return Schedule(descent=descent, polish_tolerance=tolerance, polish_budget=budget)


def _ending_smooth(programme: Programme, smoothing: float) -> Programme:
    """The same with a smoothed network at the end of each search."""

    def ending(searches: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        return tuple(
            replace(each, smoothing=(*each.smoothing[:-1], smoothing), continuation_tolerance=0.2)
            if each.smoothing
            else each
            for each in searches
        )

    return replace(
        programme,
        fast=ending(programme.fast),
        default=ending(programme.default),
        thorough=ending(programme.thorough),
    )


def _with(searches: tuple[Schedule, ...], **settings: Any) -> tuple[Schedule, ...]:
    return tuple(replace(search, **settings) for search in searches)


# Fallback schedules, for images that the regular ones do not reach: one after the other until one
# does. They go through smoother networks first, then start at images of one value. On a network
# with squared-error outputs one schedule from the clean image reaches 66% of random targets at
# most, the sequence 95%. A stage in which nothing is found ends once the margin stops rising
# (csrc/solver/stages.h), so an image that cannot be reached costs 540 to 1,500 evaluations, not
# 1,800 to 2,900.
_WIDE = (4.0, 2.0, 1.0, 0.5, 0.2, 0.05)
_KINKED_FALLBACKS = (
    Schedule(_WIDE, (40,) * 6, (0.3,) * 6),
    Schedule((0.2,), (40,), (0.05,), origin=0.0),
    Schedule((0.8, 0.2, 0.05), (40,) * 3, (0.3,) * 3, origin=0.5),
    Schedule((0.0,), (40,), (0.3,), origin=0.0),
    Schedule(_WIDE, (40,) * 6, (1.0,) * 6, origin=0.25),
    Schedule(_WIDE, (40,) * 6, (1.0,) * 6),
)
_SATURATING_FALLBACKS = (
    Schedule((1.0, 0.3, 0.0), (60, 60, 60), (0.1, 0.05, 0.02)),
    Schedule((3.0, 1.5, 0.7, 0.3, 0.0), (60,) * 5, (0.05,) * 5),
    Schedule((0.3, 0.1, 0.0), (60,) * 3, (0.1,) * 3, origin=0.0),
    Schedule((0.3, 0.1, 0.0), (60,) * 3, (0.1,) * 3, origin=0.5),
)
_SMOOTH_FALLBACKS = (
    Schedule((0.0,), (150,), (0.3,)),
    Schedule((0.0,), (150,), (0.1,), origin=0.0),
    Schedule((0.0,), (150,), (0.1,), origin=0.5),
)
_FALLBACK = {"patience": 4, "polish_tolerance": 5e-5, "fallback": True}

# Networks with kinks go through smoothed ones, widest first, to the exact one.
_FINE = {"patience": 8, "polish_tolerance": 1e-5, "polish_budget": 60}
KINKED = Programme(
    fast=(
        Schedule(
            (0.4, 0.1), (20, 12), (0.1, 0.05), patience=2, polish_tolerance=2e-3, polish_budget=6
        ),
    ),
    default=(
        _refined(5e-5),
        Schedule(
            (0.8, 0.2, 0.05), (30, 20, 20), (0.1, 0.05, 0.02), patience=4, polish_tolerance=5e-5
        ),
    ),
    fallbacks=_with(_KINKED_FALLBACKS, **_FALLBACK),
    thorough=(
        *_with(
            (
                Schedule((0.2, 0.05), (20, 20), (0.02, 0.02)),
                Schedule((1.6, 0.4, 0.1, 0.025), (30, 20, 20, 20), (0.02,) * 4),
                Schedule((0.0,), (40,), (0.005,)),
            ),
            **_FINE,
        ),
        _refined(1e-5, 60),
    ),
)
# Convolutional networks have more and finer kinks.
CONVOLUTIONAL = Programme(
    fast=(
        Schedule(
            (0.8, 0.3, 0.1),
            (20, 12, 12),
            (0.05,) * 3,
            patience=2,
            continuation_tolerance=0.03,
            descent=Descent(10),
            polish_tolerance=2e-3,
            polish_budget=3,
        ),
    ),
    default=(
        Schedule(
            (0.3, 0.12),
            (20, 20),
            (0.02,) * 2,
            patience=8,
            continuation_tolerance=0.015,
            polish_tolerance=2e-3,
            polish_budget=3,
        ),
        _refined(5e-5, 6, Descent(15, 0.15)),
    ),
    fallbacks=_with(_KINKED_FALLBACKS, **_FALLBACK, descent=Descent(25)),
    thorough=(
        *_with(
            (
                Schedule((0.8, 0.32, 0.128, 0.0512, 0.02), (30, 20, 20, 20, 40), (0.02,) * 5),
                Schedule((1.6, 0.64, 0.256, 0.102, 0.041, 0.016), (30,) + (20,) * 5, (0.02,) * 6),
                Schedule((0.4, 0.2, 0.1, 0.05, 0.025, 0.0125), (30,) + (20,) * 5, (0.01,) * 6),
            ),
            descent=Descent(40),
            patience=10,
            continuation_tolerance=0.01,
            polish_tolerance=1e-5,
            polish_budget=20,
        ),
        _refined(1e-5, 20, Descent(60)),
    ),
)
LARGE = 2**14
"""Values of an image from which on it is large: its smoothed networks mislead (docs/decisions.md).
Measured are 3,072 values, where the stages are better, and 154,587."""
# On large images the descent is the search. It begins twice as far out as where the margin
# linearised at the clean image is zero. Its steps stay as long as r for most of it, as shorter
# steps keep it in a worse minimum, but they are never longer than that linear distance: else the
# sphere may grow without end (docs/decisions.md). Of 400 steps a gentler end makes 1% less
# distortion. With 90 steps such changes gain nothing.
_BOUNDED = (0.02, 2.0, 1.0)  # temperature, start and reach


def _descending(temperature: float, tolerance: float, polish: int, descent: Descent) -> Schedule:
    return Schedule(
        (0.0,),
        (1,),
        (temperature,),
        patience=8,
        descent=descent,
        polish_tolerance=tolerance,
        polish_budget=polish,
    )


ON_LARGE = Programme(
    fast=(_descending(0.02, 2e-3, 3, Descent(50, 1.0, 0.05, 0.1, 3, *_BOUNDED)),),
    default=(_refined(5e-5, 4, Descent(40, 0.6)),),
    # The first one is also for a large image that was found far away (csrc/solver/restarts.h).
    fallbacks=_with(
        (Schedule((0.0,), (1,), (0.1,)), *_KINKED_FALLBACKS[:-1]),
        **_FALLBACK,
        descent=Descent(90, 1.0, 0.05, 0.1, 3, *_BOUNDED),
    ),
    thorough=(_descending(0.005, 1e-5, 20, Descent(400, 1.0, 0.01, 0.05, 2, *_BOUNDED)),),
)
# Networks whose units saturate go through smoothed ones too (docs/decisions.md).
_SATURATING = Schedule(
    (0.3, 0.1, 0.0), (30, 30, 30), (0.1, 0.05, 0.03), patience=2, continuation_tolerance=0.3
)
SATURATING = Programme(
    fast=(replace(_SATURATING, polish_tolerance=5e-3, polish_budget=4),),
    default=(_refined(1e-3),),
    fallbacks=_with(
        _SATURATING_FALLBACKS,
        patience=2,
        continuation_tolerance=0.3,
        polish_tolerance=1e-3,
        fallback=True,
    ),
    thorough=(
        *_with(
            (
                Schedule((0.1, 0.0), (40, 60), (0.02, 0.02)),
                Schedule((1.0, 0.3, 0.0), (40, 40, 60), (0.05, 0.05, 0.05)),
                Schedule((0.3, 0.0), (40, 60), (0.02, 0.02)),
            ),
            continuation_tolerance=0.2,
            patience=8,
            polish_tolerance=2e-5,
            polish_budget=60,
        ),
        _refined(2e-5, 60),
    ),
)
# A maximum over logits has a kink near the solution, where rivals tie: the last stage smooths it.
COMPARED = _ending_smooth(SATURATING, 0.03)
# Other networks have nothing to smooth.
SMOOTH = Programme(
    fast=(Schedule((0.0,), (20,), (0.02,), patience=2, polish_tolerance=2e-3, polish_budget=6),),
    default=(_refined(3e-5),),
    fallbacks=_with(_SMOOTH_FALLBACKS, patience=12, fallback=True),
    thorough=(
        *_with(
            (
                Schedule((0.0,), (100,), (0.02,)),
                Schedule((0.0,), (100,), (0.1,)),
                Schedule((0.0,), (100,), (0.005,)),
            ),
            patience=20,
            polish_tolerance=1e-5,
            polish_budget=60,
        ),
        _refined(1e-5, 60),
    ),
)
# Without smoothing (``smoothing=False``) a falling T takes its place (docs/decisions.md).
_COOLED = {"patience": 10, "continuation_tolerance": 0.1, "descent": Descent(40)}
EXACT = Programme(
    fast=(
        Schedule(
            (0.0,) * 2,
            (10, 8),
            (0.3, 0.1),
            patience=2,
            continuation_tolerance=0.1,
            descent=Descent(10),
            polish_tolerance=2e-3,
            polish_budget=3,
        ),
    ),
    default=(
        Schedule(
            (0.0,) * 3,
            (15, 15, 20),
            (0.3, 0.1, 0.02),
            patience=8,
            continuation_tolerance=0.1,
            descent=Descent(25),
            polish_tolerance=5e-5,
            polish_budget=10,
        ),
    ),
    fallbacks=_with(_SMOOTH_FALLBACKS, **_FALLBACK, polish_budget=10, descent=Descent(25)),
    thorough=(
        *_with(
            (
                Schedule((0.0,) * 2, (20, 30), (0.1, 0.02)),
                Schedule((0.0,), (12,), (0.1,)),
                Schedule((0.0,) * 3, (30, 30, 40), (1.0, 0.2, 0.02)),
            ),
            **_COOLED,
            polish_tolerance=1e-5,
            polish_budget=20,
        ),
        _refined(1e-5, 20, Descent(60)),
    ),
)
_LONGER = (
    _refined(1e-5, 60, Descent(100, 1.0, 0.01)),
    _refined(1e-5, 60, Descent(200, 1.0, 0.005, 0.05, 2)),
    _refined(1e-5, 60, Descent(300, 0.5, 0.005)),
)
"""What ``exhaustive`` adds for every kind: longer and longer descents from the best image."""
PROGRAMMES = {
    "kinked": KINKED,
    "convolutional": CONVOLUTIONAL,
    "saturating": SATURATING,
    "compared": COMPARED,
    "smooth": SMOOTH,
    "exact": EXACT,
    "large": ON_LARGE,
}


def _last_refinement(programme: Programme) -> Schedule:
    """The refinement of ``default``, or where that has none the polish of its last search."""
    last = next((s for s in reversed(programme.default) if not s.smoothing), programme.default[-1])
    return replace(last, smoothing=(), budget=(), temperature=())


def untargeted(programme: Programme, *, ranked: bool) -> Programme:
    """The same for any class but one.

    A search that says nothing else is for any class that none before it has reached. Where
    ``ranked``, two searches before it are for those that are near by their linearised distance:
    without them convolutional networks need 40% more evaluations, with them dense ones 20%. Other
    searches for the class of the best image follow by ``"thorough"``, then the other classes.
    """
    first = programme.fast[0]
    near = (Schedule(ranked=5), *(replace(first, class_limit=1.5),) * 2)
    held = _with(tuple(s for s in programme.thorough if s.smoothing), same_class=True)
    any_distance = replace(first, class_limit=1e9)
    return Programme(
        fast=programme.fast,
        default=(*(near if ranked else (first,)), first, _last_refinement(programme)),
        fallbacks=programme.fallbacks,
        thorough=(*(first,) * 3, *held, programme.thorough[-1]),
        exhaustive=(Schedule(ranked=9), *(any_distance,) * 6, *programme.exhaustive),
    )


PENALTY = Schedule((0.0,), (500,), (0.02,))
"""Schedule of the paper's loss, which has one temperature and stops at the penalty's minimiser."""


WALK_STEPS = {"fast": 30, "default": 60, "thorough": 120, "exhaustive": 250}
"""Evaluations of a walk, the search in another norm than l2 (csrc/solver/walk.h)."""
_EXACT_PART = 0.4
_WALK_SMOOTHING = {"kinked": 0.5, "convolutional": 0.5, "saturating": 0.3, "compared": 0.3}
"""k of a walk by kind; 0 for others."""
_WALK_POLISH = {
    "fast": (1e-3, 10),
    "default": (1e-4, 40),
    "thorough": (1e-5, 60),
    "exhaustive": (1e-5, 60),
}
_FIRST_STEP = {"linf": 1.5, "l1": 1.0}
# Where a walk finds nothing: more smoothing, a higher temperature, other beginnings.
_WALK_FALLBACKS = (
    (2.0, 0.3, -1.0),
    (0.5, 0.05, 0.0),
    (0.5, 0.3, 0.5),
    (2.0, 1.0, 0.25),
)


def _walk(smoothing: float, steps: int, heat: float, origin: float = -1.0) -> Schedule:
    """A walk whose T falls from ``heat`` to 1 times 0.02."""
    exact = round(_EXACT_PART * steps)
    budget = (max(steps - exact, 1), max(exact, 1))
    return Schedule((smoothing, 0.0), budget, (0.02 * heat, 0.02), origin)


def find_walk(name: str, kind: str, norm: str, targeted: bool, budget: int | None) -> Effort:
    """The effort of that name in another norm than l2.

    Where the ``budget`` of evaluations is small, three quarters of it are the walk's. An untargeted
    run begins warmer, where many classes count, and so does the second walk of "thorough".
    """
    steps = WALK_STEPS[name]
    if budget is not None:
        steps = max(min(steps, 3 * budget // 4), 1)
    smoothing = _WALK_SMOOTHING.get(kind, 0.0)
    tolerance, iterations = _WALK_POLISH[name]
    settings: dict[str, Any] = {
        "patience": 0,
        "descent": Descent(0, _FIRST_STEP[norm], 0.01, 0.1),
        "polish_tolerance": tolerance,
        "polish_budget": iterations,
    }
    is_long = name in ("thorough", "exhaustive")
    heats = (1.0, 10.0)[: 2 if is_long else 1] if targeted else (10.0,) * (3 if is_long else 1)
    walks = _with(tuple(_walk(smoothing, steps, heat) for heat in heats), **settings)
    fallbacks = _with(
        tuple(
            _walk(k if smoothing else 0.0, 2 * steps, T / 0.02, origin)
            for k, T, origin in _WALK_FALLBACKS
        ),
        **settings,
        fallback=True,
    )
    return Effort((*walks, *fallbacks), len(walks))


def is_large(kind: str, n: int) -> bool:
    """Whether images of ``n`` values are large to a network of that kind."""
    return kind in ("convolutional", "exact") and n >= LARGE


def find_effort(name: str, kind: str, n: int, targeted: bool = True) -> Effort:
    """The effort of that name for images of ``n`` values and a network of that kind.

    ``kind`` is "kinked" (piecewise linear), "convolutional" (kinked, or max-pooling),
    "saturating" (sigmoid, tanh), "compared" (with a maximum over values, no kinks else), "smooth",
    or "exact" where nothing may be smoothed.
    """
    programme = PROGRAMMES["large" if is_large(kind, n) else kind]
    if not targeted:
        programme = untargeted(programme, ranked=kind in ("convolutional", "exact"))
    return programme.effort(name)
