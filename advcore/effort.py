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
class Walk:
    """Normalised gradient steps on the exact network before a polish (csrc/walk.h)."""

    steps: int = 0
    first: float = 0.3  # length of a step, part of ||r||
    last: float = 0.01
    turn: float = 0.03  # change of the radius in the first round at most
    power: int = 1  # 3: long steps for most of the walk


@dataclass(frozen=True)
class Effort:
    """Schedules that are always run, and when searches and the polish stop."""

    schedules: tuple[Schedule, ...]
    patience: int
    polish_tolerance: float = 1e-4
    polish_budget: int = 30
    walk: Walk = Walk()
    pass_on: float | None = None  # if not that of PASS_ON
    untargeted: Schedule | None = None  # of its searches, if not the first schedule
    searches: int = SEARCHES["default"]  # of an untargeted run; `find_effort` fills it in
