"""What an effort consists of: schedules of smoothed networks, descent steps, stopping rules."""

from __future__ import annotations

from dataclasses import dataclass

EFFORTS = ("fast", "default", "thorough")
SEARCHES = {"fast": 1, "default": 3, "thorough": 5}
"""Searches of an untargeted run, each for another class."""


@dataclass(frozen=True)
class Schedule:
    """One pass: of each stage its smoothing, budget of evaluations, and T as a share of |m(x0)|."""

    smoothing: tuple[float, ...]
    budget: tuple[int, ...]
    temperature: tuple[float, ...]
    origin: float = -1.0  # start at lo + origin (hi - lo); < 0: at the clean image
    contest: int = -1  # stage that a second search reaches straight from there, to compete


@dataclass(frozen=True)
class Descent:
    """Normalised gradient descent on the exact network before a polish (csrc/solver/descent.h)."""

    steps: int = 0
    first_step: float = 0.3  # length of the first step, as a part of ||r||
    last_step: float = 0.01
    radius_rate: float = 0.03  # change of the radius in the first round at most
    power: int = 1  # with 3 the steps stay long for most of the descent


@dataclass(frozen=True)
class Effort:
    """Schedules that are always run, and when searches and the polish stop."""

    schedules: tuple[Schedule, ...]
    patience: int
    polish_tolerance: float = 1e-4
    polish_budget: int = 30
    descent: Descent = Descent()
    continuation_tolerance: float | None = None  # None: that of CONTINUATION_TOLERANCE
    untargeted: Schedule | None = None  # of its searches, if not the first schedule
    searches: int = SEARCHES["default"]  # of an untargeted run; `find_effort` fills it in
