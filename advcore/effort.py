"""The parts of an effort: schedules of smoothed networks, descent steps, stopping rules."""

from __future__ import annotations

from dataclasses import dataclass

EFFORTS = ("fast", "default", "thorough")
SEARCHES = {"fast": 1, "default": 3, "thorough": 5}
"""Number of searches of an untargeted run, each for another class."""


@dataclass(frozen=True)
class Schedule:
    """One pass through networks that are smoothed less and less, a stage each.

    Attributes
    ----------
    smoothing : tuple of float
        k of each stage; 0 is the exact network.
    budget : tuple of int
        Evaluations of each stage.
    temperature : tuple of float
        T of each stage, as a fraction of the margin at the clean image.
    origin : float
        The search begins at ``lo + origin * (hi - lo)``. Negative: at the clean image.
    contest : int
        At the end of this stage a second search, from the start straight to the stage's network,
        competes with the first. Negative: at none.
    """

    smoothing: tuple[float, ...]
    budget: tuple[int, ...]
    temperature: tuple[float, ...]
    origin: float = -1.0
    contest: int = -1


@dataclass(frozen=True)
class Descent:
    """Normalised gradient descent on the exact network before a polish (csrc/solver/descent.h)."""

    steps: int = 0
    first_step: float = 0.3  # length of the first step, as a fraction of ||r||
    last_step: float = 0.01  # length of the last step, as a fraction of ||r||
    radius_rate: float = 0.03  # largest relative change of the radius in the first round
    power: int = 1  # with 3 the steps stay long for most of the descent
    temperature: float = 0.0  # T as a fraction of the clean margin; 0: the exact margin
    start: float = 1.0  # it begins at this many times the r where the stages ended
    reach: float = 0.0  # largest step, as a multiple of that ||r||; 0: none


@dataclass(frozen=True)
class Effort:
    """Schedules that are always run, and the rules by which searches and the polish stop.

    Attributes
    ----------
    patience : int
        A stage stops after so many rounds near its best point without a better one.
    polish_tolerance : float
        The polish stops at this relative gain.
    polish_budget : int
        Iterations of one polish.
    continuation_tolerance : float or None
        A step shorter than this fraction of ||r|| ends every stage but the last. None:
        `schedules.CONTINUATION_TOLERANCE`.
    untargeted : Schedule or None
        Schedule of the searches of an untargeted run. None: the first of `schedules`.
    searches : int
        Number of searches of an untargeted run. `find_effort` sets it.
    """

    schedules: tuple[Schedule, ...]
    patience: int
    polish_tolerance: float = 1e-4
    polish_budget: int = 30
    descent: Descent = Descent()
    continuation_tolerance: float | None = None
    untargeted: Schedule | None = None
    searches: int = SEARCHES["default"]
