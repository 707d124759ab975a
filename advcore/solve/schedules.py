"""Tables of schedules: how each effort searches, by kind of network."""

from __future__ import annotations

from dataclasses import replace

from ..effort import SEARCHES, Descent, Effort, Schedule

# Networks with kinks go through smoothed ones, widest first, to the exact one.
_KINKED = (
    Schedule((0.8, 0.2, 0.05), (30, 20, 20), (0.1, 0.05, 0.02)),
    Schedule((0.2, 0.05), (20, 20), (0.02, 0.02)),
)
KINKED = {
    "fast": Effort((Schedule((0.4, 0.1), (20, 12), (0.1, 0.05)),), 2, 2e-3, 6),
    "default": Effort(_KINKED, 4, 5e-5),
    "thorough": Effort(
        (
            *_KINKED,
            Schedule((0.4, 0.1), (40, 30), (0.05, 0.005)),
            Schedule((1.6, 0.4, 0.1, 0.025), (30, 20, 20, 20), (0.02,) * 4),
            Schedule((0.0,), (40,), (0.005,)),
        ),
        8,
        1e-5,
        60,
    ),
}
# Convolutional networks have more and finer kinks. One schedule whose stages run until their steps
# are short, with a low T throughout, beats two schedules whose stages end early. By default two
# searches compete on the second network, and 25 descent steps on the exact network replace the
# finest stages. On 120 to 260 held-out problems a network that gives 0.05% (FMN, ResNet 2b) to 0.3%
# (RayS) less distortion than _FOLLOWED alone, at 75 to 99 instead of 61 to 94 evaluations.
_CONTEST = Schedule((0.8, 0.3, 0.12), (30, 20, 20), (0.02,) * 3, contest=1)
# Untargeted runs try several classes. A contest there gains nothing over this schedule with the
# descent, and loses 0.9% on one network. The last stage may take 40 evaluations: with 20 it ended
# just outside the class for 6% of the images of one network, and a fallback of 200 followed.
_FOLLOWED = Schedule((0.8, 0.32, 0.128, 0.0512, 0.02), (30, 20, 20, 20, 40), (0.02,) * 5)
CONVOLUTIONAL = {
    # Smoothing that begins at 0.8, not 0.4, gives 13% less distortion on COLT's network and 3% less
    # on Wong and Kolter's.
    "fast": Effort(
        (Schedule((0.8, 0.3, 0.1), (10, 6, 6), (0.05,) * 3),), 2, 2e-3, 3, descent=Descent(10)
    ),
    "default": Effort((_CONTEST,), 8, 5e-5, 4, Descent(25), 0.015, untargeted=_FOLLOWED),
    "thorough": Effort(
        (
            _FOLLOWED,
            Schedule((0.3, 0.1, 0.033), (40, 30, 30), (0.02,) * 3),
            Schedule((1.6, 0.64, 0.256, 0.102, 0.041, 0.016), (30,) + (20,) * 5, (0.02,) * 6),
            Schedule((0.4, 0.2, 0.1, 0.05, 0.025, 0.0125), (30,) + (20,) * 5, (0.01,) * 6),
        ),
        10,
        1e-5,
        20,
        Descent(40),  # RayS's network 1.006 to 1.002 of the envelope, for 9% more evaluations
        0.01,
    ),
}
LARGE = 2**14
"""Values of an image from which on it is large: its smoothed networks mislead (docs/decisions.md).
Measured are 3,072 values, where the stages are better, and 154,587."""
# On large images the descent is the search. It begins twice as far out as where the margin
# linearised at the clean image is zero. Its steps stay as long as r for most of it, as shorter
# steps keep it in a worse minimum, but they are never longer than that linear distance: else the
# sphere may grow without end (docs/decisions.md). Of 400 steps a gentler end makes 1% less
# distortion. With 90 steps such changes gain nothing.
_BOUNDED = (0.02, 2.0, 1.0)  # temperature, start and reach
ON_LARGE = {
    effort: Effort((Schedule((0.0,), (1,), (temperature,)),), 8, tolerance, polish, descent)
    for effort, temperature, tolerance, polish, descent in (
        ("fast", 0.02, 2e-3, 3, Descent(50, 1.0, 0.05, 0.1, 3, *_BOUNDED)),
        ("default", 0.02, 5e-5, 4, Descent(90, 1.0, 0.05, 0.1, 3, *_BOUNDED)),
        ("thorough", 0.005, 1e-5, 20, Descent(400, 1.0, 0.01, 0.05, 2, *_BOUNDED)),
    )
}
# Networks whose units saturate go through smoothed ones too (docs/decisions.md).
_SATURATING = Schedule((0.3, 0.1, 0.0), (30, 30, 30), (0.1, 0.05, 0.03))
SATURATING = {
    "fast": Effort((Schedule((0.3, 0.0), (12, 8), (0.1, 0.05)),), 1, 5e-3, 4),
    # A continuation tolerance of 0.3 and a polish tolerance of 1e-3 save 4% of the evaluations of
    # 0.2 and 7e-4, at 1.0000 of the distortion (five networks, 2,000 images each). `fast` ends
    # farther away with 0.3.
    "default": Effort((_SATURATING,), 2, 1e-3, continuation_tolerance=0.3),
    "thorough": Effort(
        (
            _SATURATING,
            Schedule((0.1, 0.0), (40, 60), (0.02, 0.02)),
            Schedule((1.0, 0.3, 0.0), (40, 40, 60), (0.05, 0.05, 0.05)),
            Schedule((0.3, 0.0), (40, 60), (0.02, 0.02)),
        ),
        8,
        2e-5,
        60,
    ),
}
# A maximum over logits has a kink near the solution, where rivals tie: the last stage smooths it.
COMPARED = {
    name: replace(
        effort,
        schedules=tuple(
            replace(each, smoothing=(*each.smoothing[:-1], 0.03)) for each in effort.schedules
        ),
        continuation_tolerance=None,
    )
    for name, effort in SATURATING.items()
}
# Other networks have nothing to smooth.
SMOOTH = {
    "fast": Effort((Schedule((0.0,), (20,), (0.02,)),), 2, 2e-3, 6),
    "default": Effort((Schedule((0.0,), (50,), (0.02,)),), 12),
    "thorough": Effort(
        (
            Schedule((0.0,), (100,), (0.02,)),
            Schedule((0.0,), (100,), (0.1,)),
            Schedule((0.0,), (100,), (0.005,)),
        ),
        20,
        1e-5,
        60,
    ),
}
# Without smoothing (``smoothing=False``) a falling T takes its place (docs/decisions.md).
_ANNEALED = Schedule((0.0,) * 3, (15, 15, 20), (0.3, 0.1, 0.02))
EXACT = {
    "fast": Effort((Schedule((0.0,) * 2, (10, 8), (0.3, 0.1)),), 2, 2e-3, 3, Descent(10)),
    "default": Effort((_ANNEALED,), 8, 5e-5, 10, Descent(25)),
    "thorough": Effort(
        (
            _ANNEALED,
            Schedule((0.0,) * 2, (20, 30), (0.1, 0.02)),
            Schedule((0.0,), (12,), (0.1,)),
            Schedule((0.0,) * 3, (30, 30, 40), (1.0, 0.2, 0.02)),
        ),
        10,
        1e-5,
        20,
        Descent(40),
    ),
}
# Fallback schedules, for images that the regular ones do not reach: one after the other until one
# does. They go through smoother networks first, then start at images of one value. On a network
# with squared-error outputs one schedule from the clean image reaches 66% of random targets at
# most, the sequence 95%. A stage in which nothing is found ends once the margin stops rising
# (csrc/solver/stages.h), so an image that cannot be reached costs 540 to 1,500 evaluations
# (`thorough` up to 2,000), not 1,800 to 2,900.
_WIDE = (4.0, 2.0, 1.0, 0.5, 0.2, 0.05)
RESCUE = {
    "kinked": (
        Schedule(_WIDE, (40,) * 6, (0.3,) * 6),
        Schedule((0.2,), (40,), (0.05,), origin=0.0),
        Schedule((0.8, 0.2, 0.05), (40,) * 3, (0.3,) * 3, origin=0.5),
        Schedule((0.0,), (40,), (0.3,), origin=0.0),
        Schedule(_WIDE, (40,) * 6, (1.0,) * 6, origin=0.25),
        Schedule(_WIDE, (40,) * 6, (1.0,) * 6),
    ),
    "saturating": (
        Schedule((1.0, 0.3, 0.0), (60, 60, 60), (0.1, 0.05, 0.02)),
        Schedule((3.0, 1.5, 0.7, 0.3, 0.0), (60,) * 5, (0.05,) * 5),
        Schedule((0.3, 0.1, 0.0), (60,) * 3, (0.1,) * 3, origin=0.0),
        Schedule((0.3, 0.1, 0.0), (60,) * 3, (0.1,) * 3, origin=0.5),
    ),
    "smooth": (
        Schedule((0.0,), (150,), (0.3,)),
        Schedule((0.0,), (150,), (0.1,), origin=0.0),
        Schedule((0.0,), (150,), (0.1,), origin=0.5),
    ),
}
RESCUE["convolutional"] = RESCUE["kinked"]
RESCUE["compared"] = RESCUE["saturating"]
RESCUE["exact"] = RESCUE["smooth"]
# The first one is also for a large image that was found far away (csrc/solver/restarts.h).
RESCUE["large"] = (Schedule((0.0,), (1,), (0.1,)), *RESCUE["kinked"][:-1])
CONTINUATION_TOLERANCE = {
    "kinked": 0.1,
    "convolutional": 0.1,
    "saturating": 0.2,
    "compared": 0.2,
    "smooth": 0.0,
    "exact": 0.1,
}
"""Part of ||r|| below which a step ends a stage that is not the last one. Networks with kinks lose
images where it is 0.4: the mean of a convolutional network rose by 2%."""
EFFORT = {
    "kinked": KINKED,
    "convolutional": CONVOLUTIONAL,
    "saturating": SATURATING,
    "compared": COMPARED,
    "smooth": SMOOTH,
    "exact": EXACT,
}
NEEDED = {
    "kinked": {"default": 50, "thorough": 50},
    "convolutional": {"default": 120, "thorough": 160},
    "saturating": {"default": 40, "thorough": 40},
    "compared": {"default": 40, "thorough": 40},
    "smooth": {"default": 20, "thorough": 20},
    "exact": {"default": 50, "thorough": 50},
    "large": {"default": 100, "thorough": 415},
}
"""Evaluations that ``max_evaluations`` must allow for an effort. With fewer the next lower effort
finds more images: within 40 evaluations `default` finds 0 to 40% of random targets on four
convolutional networks and `fast` 95 to 100%, within 100 `thorough` 85 to 100%. On large images the
descent must reach its end."""
PENALTY = Schedule((0.0,), (500,), (0.02,))
"""Schedule of the paper's loss, which has one temperature and stops at the penalty's minimiser."""


WALK_STEPS = {"fast": 30, "default": 60, "thorough": 120}
"""Evaluations of a walk, the search in another norm than l2 (csrc/solver/walk.h)."""
_EXACT_PART = 0.4
_WALK_SMOOTHING = {"kinked": 0.5, "convolutional": 0.5, "saturating": 0.3, "compared": 0.3}
"""k of a walk by kind; 0 for others."""
_WALK_POLISH = {"fast": (1e-3, 10), "default": (1e-4, 40), "thorough": (1e-5, 60)}
_FIRST_STEP = {"linf": 1.5, "l1": 1.0}
# Where a walk finds nothing: more smoothing, a higher temperature, other beginnings.
_WALK_RESCUES = (
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


def find_walk(
    name: str, kind: str, norm: str, targeted: bool, budget: int | None
) -> tuple[Effort, tuple[Schedule, ...]]:
    """The effort of that name in another norm than l2, and its fallbacks.

    Where the ``budget`` of evaluations is small, three quarters of it are the walk's. An untargeted
    run begins warmer, where many classes count, and so does the second walk of "thorough".
    """
    steps = WALK_STEPS[name]
    if budget is not None:
        steps = max(min(steps, 3 * budget // 4), 1)
    smoothing = _WALK_SMOOTHING.get(kind, 0.0)
    heats = (1.0, 10.0) if name == "thorough" else (1.0,)
    if not targeted:
        heats = (10.0,)
    effort = Effort(
        tuple(_walk(smoothing, steps, heat) for heat in heats),
        0,
        *_WALK_POLISH[name],
        Descent(0, _FIRST_STEP[norm], 0.01, 0.1),
        searches=3 if name == "thorough" else 1,
    )
    rescues = tuple(
        _walk(k if smoothing else 0.0, 2 * steps, T / 0.02, origin)
        for k, T, origin in _WALK_RESCUES
    )
    return effort, rescues


def is_large(kind: str, n: int) -> bool:
    """Whether images of ``n`` values are large to a network of that kind."""
    return kind in ("convolutional", "exact") and n >= LARGE


def find_effort(name: str, kind: str, n: int) -> Effort:
    """The effort of that name for images of ``n`` values and a network of that kind.

    ``kind`` is "kinked" (piecewise linear), "convolutional" (kinked, or max-pooling),
    "saturating" (sigmoid, tanh), "compared" (with a maximum over values, no kinks else), "smooth",
    or "exact" where nothing may be smoothed.
    """
    efforts = ON_LARGE if is_large(kind, n) else EFFORT[kind]
    return replace(efforts[name], searches=SEARCHES[name])
