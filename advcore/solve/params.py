"""Options of a run as the engine takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .. import _core
from ..effort import Effort, Schedule
from ..options import Options
from ..oracles.logits import NO_SQUASHING, Squashing
from .schedules import (
    CONTINUATION_TOLERANCE,
    NEEDED,
    PENALTY,
    RESCUE,
    find_effort,
    find_walk,
    is_large,
)


@dataclass(frozen=True)
class Facts:
    """Facts of the problem, on which the search depends besides the options.

    Attributes
    ----------
    n : int
        Values of an image.
    classes : int
    kind : str
        Kind of the network; `schedules.find_effort` names the four.
    targeted : bool
    required_margin : float
        The confidence of the options, and the rounding noise of the model's logits.
    starts : int
        Starting images of each image.
    squashing : Squashing
        How the function behind the logits that the search sees nears its limits.
    kept_queries : int
        Queries of each image that ``max_queries`` must keep for what is outside the search.
    """

    n: int
    classes: int
    kind: str
    targeted: bool
    required_margin: float
    starts: int = 0
    squashing: Squashing = NO_SQUASHING
    kept_queries: int = 0


def pairs_within_budget(options: Options, facts: Facts) -> int | None:
    """Evaluations that ``max_evaluations`` and ``max_queries`` allow the search; None: no limit."""
    budgets = [] if options.max_evaluations is None else [options.max_evaluations]
    if options.max_queries is not None:
        budgets.append((options.max_queries - facts.kept_queries) // 2)
    return min(budgets, default=None)


def effort_within_budget(options: Options, facts: Facts) -> str | Effort:
    """The effort of the options, or the highest one below it for which the budget is enough.

    The budget is ``max_evaluations``, or half of the queries that ``max_queries`` leaves for the
    search. An `Effort` object is taken as it is. So are the names where the run solves the paper's
    penalty problem, which every effort solves in the same way, and in another norm than l2, where
    the walk is as long as the budget allows.
    """
    name, budget = options.effort, pairs_within_budget(options, facts)
    if isinstance(name, Effort) or budget is None or options.norm != "l2":
        return name
    if _solves_penalty_problem(options):
        return name
    needed = NEEDED["large" if is_large(facts.kind, facts.n) else facts.kind]
    next_lower = {"thorough": "default", "default": "fast"}
    while budget < needed.get(name, 0):
        name = next_lower[name]
    return name


def engine_params(options: Options, facts: Facts) -> _core.Params:
    """Parameters of the engine for these options and this problem."""
    penalty_problem = _solves_penalty_problem(options)
    effort, rescues = _effort_and_rescues(options, facts)
    bisection = options.c_search == "bisection"
    params = _core.Params()
    params.n = facts.n
    params.classes = facts.classes
    params.targeted = facts.targeted
    params.smoothable = facts.kind not in ("smooth", "exact") and not penalty_problem
    params.loss = _core.Loss[options.loss]
    params.c_search = _core.CSearch[options.c_search]
    params.norm = _core.Norm[str(options.norm)]
    params.unsquared = options.penalty == "l2_unsquared"
    params.c_init = 0.0 if isinstance(options.c_init, str) else options.c_init
    params.confidence = facts.required_margin
    params.squash_rate, params.logit_floor, params.logit_cap = facts.squashing
    params.history = options.history
    # For a given c the minimiser is asked for; where c is chosen too, the margin decides.
    params.tolerance = 0.1 * options.tolerance if bisection else options.tolerance
    params.patience = 12 if penalty_problem else effort.patience
    continuation = (
        CONTINUATION_TOLERANCE[facts.kind]
        if effort.continuation_tolerance is None
        else effort.continuation_tolerance
    )
    params.continuation_tolerance = continuation
    params.polish_tolerance = effort.polish_tolerance
    params.polish_budget = effort.polish_budget
    params.descent_budget = 0 if penalty_problem else effort.descent.steps
    params.descent_first_step = effort.descent.first_step
    params.descent_last_step = effort.descent.last_step
    params.descent_radius_rate = effort.descent.radius_rate
    params.descent_power = effort.descent.power
    params.descent_start = effort.descent.start
    params.descent_reach = effort.descent.reach
    params.descent_temperature = effort.descent.temperature
    if options.max_evaluations is not None:
        params.max_evaluations = options.max_evaluations
    if options.max_queries is not None:
        params.max_queries = options.max_queries - facts.kept_queries
    if options.stop_at is not None:
        params.stop_at = options.stop_at
    if penalty_problem:
        short = () if bisection else (replace(PENALTY, budget=(60,)),)
        schedules: tuple[Schedule, ...] = (*short, PENALTY)
        params.attempts = 1
    else:
        regular = _regular_schedules(effort, facts.targeted)
        schedules = (*regular, *rescues)
        params.attempts = len(regular)
    for schedule in schedules:
        exact = (0.0,) * len(schedule.smoothing)
        params.add_schedule(
            schedule.smoothing if options.smoothing else exact,
            schedule.budget,
            schedule.temperature,
            schedule.origin,
            schedule.contest,
        )
    params.starts = facts.starts
    params.seed = options.seed
    return params


def _effort_and_rescues(options: Options, facts: Facts) -> tuple[Effort, tuple[Schedule, ...]]:
    """The effort of a run, and its fallback schedules."""
    effort = effort_within_budget(options, facts)
    if options.norm != "l2":
        name = "default" if isinstance(effort, Effort) else effort
        found, rescues = find_walk(
            name, facts.kind, str(options.norm), facts.targeted, pairs_within_budget(options, facts)
        )
        return (effort if isinstance(effort, Effort) else found), rescues
    if not isinstance(effort, Effort):
        effort = find_effort(effort, facts.kind, facts.n)
    return effort, RESCUE["large" if is_large(facts.kind, facts.n) else facts.kind]


def _solves_penalty_problem(options: Options) -> bool:
    """Whether the minimiser for a given c is asked for, as in the paper."""
    return options.loss == "cross_entropy" or options.c_search == "bisection"


def _regular_schedules(effort: Effort, targeted: bool) -> tuple[Schedule, ...]:
    """Schedules that are always run. An untargeted run has one search for each further class."""
    if targeted:
        return effort.schedules
    return (effort.untargeted or effort.schedules[0],) * effort.searches
