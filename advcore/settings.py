"""What `effort` and the other options mean to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from . import _core

EFFORTS = ("fast", "default", "thorough")


@dataclass(frozen=True)
class Schedule:
    """One pass: smoothing of each stage, its budget of evaluations, T as a fraction of |m(x0)|."""

    smoothing: tuple[float, ...]
    budget: tuple[int, ...]
    temperature: float = 0.02


@dataclass(frozen=True)
class Effort:
    """Schedules that are always run, and when searches and the polish stop."""

    schedules: tuple[Schedule, ...]
    patience: int
    polish_tolerance: float
    polish_budget: int


# Networks with kinks go through smoothed ones, widest first. Four networks, 400 images each:
# patience 6 instead of 12 saves 8 evaluations at the same mean on the ReLU network and costs
# 0.04% on the tanh network for 3.
KINKED = {
    "fast": Effort((Schedule((0.2,), (40,)),), 4, 1e-3, 12),
    "default": Effort((Schedule((0.8, 0.2, 0.05), (30, 20, 20)),), 6, 1e-4, 30),
    "thorough": Effort(
        (
            Schedule((0.8, 0.2, 0.05), (30, 20, 20)),
            Schedule((0.4, 0.1), (40, 30)),
            Schedule((1.6, 0.4, 0.1, 0.025), (30, 20, 20, 20)),
        ),
        8,
        1e-5,
        60,
    ),
}
SMOOTH = {
    "fast": Effort((Schedule((0.0,), (30,)),), 4, 1e-3, 12),
    "default": Effort((Schedule((0.0,), (50,)),), 12, 1e-4, 30),
    "thorough": Effort(
        (
            Schedule((0.0,), (100,)),
            Schedule((0.0,), (100,), 0.1),
            Schedule((0.0,), (100,), 0.005),
        ),
        20,
        1e-5,
        60,
    ),
}
# For targets that these do not reach.
KINKED_RESCUE = Schedule((4.0, 2.0, 1.0, 0.5, 0.2, 0.05), (25,) * 6)
SMOOTH_RESCUE = Schedule((0.0,), (100,), 0.3)
# The paper's loss stops at the minimiser of the penalty problem.
PENALTY = Schedule((0.0,), (500,))


def engine_params(
    *,
    n: int,
    classes: int,
    targeted: bool,
    smoothable: bool,
    loss: str,
    norm: str,
    c_search: str,
    c_init: float | None,
    confidence: float,
    effort: str,
    history: int,
    tolerance: float,
    max_evaluations: int | None,
    starts: int,
    seed: int,
) -> _core.Params:
    """Checked options of `minimize_distortion` as the engine's Params."""
    penalty = loss == "cross_entropy" or c_search == "bisection"
    chosen = (KINKED if smoothable else SMOOTH)[effort]
    params = _core.Params()
    params.n = n
    params.classes = classes
    params.targeted = targeted
    params.smoothable = smoothable and not penalty
    params.loss = _core.Loss[loss]
    params.c_search = _core.CSearch[c_search]
    params.unsquared = norm == "l2_unsquared"
    params.c_init = c_init or 0.0
    params.confidence = confidence
    params.history = history
    # For a given c the minimiser is asked for; where c is chosen too, the margin decides.
    params.tolerance = 0.1 * tolerance if c_search == "bisection" else tolerance
    params.patience = chosen.patience
    params.polish_tolerance = chosen.polish_tolerance
    params.polish_budget = chosen.polish_budget
    if max_evaluations is not None:
        params.max_evaluations = max_evaluations
    if penalty:
        schedules: tuple[Schedule, ...] = (PENALTY,)
        params.attempts = 1
    else:
        schedules = (*chosen.schedules, KINKED_RESCUE if smoothable else SMOOTH_RESCUE)
        params.attempts = len(chosen.schedules)
    for schedule in schedules:
        params.add_schedule(schedule.smoothing, schedule.budget, schedule.temperature)
    params.starts = starts
    params.seed = seed
    return params
