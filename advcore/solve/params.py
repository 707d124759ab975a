"""Options of a run as the engine takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .. import _core
from ..effort import Descent, Effort, Schedule
from ..options import Options
from ..oracles.logits import NO_SQUASHING, Squashing
from .schedules import PENALTY, find_effort, find_walk


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


def engine_params(options: Options, facts: Facts) -> _core.Params:
    """Parameters of the engine for these options and this problem."""
    penalty_problem = _solves_penalty_problem(options)
    effort = _find_effort(options, facts)
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
    if options.max_evaluations is not None:
        params.max_evaluations = options.max_evaluations
    if options.max_queries is not None:
        params.max_queries = options.max_queries - facts.kept_queries
    if options.stop_at is not None:
        params.stop_at = options.stop_at
    if penalty_problem:
        short = () if bisection else (replace(PENALTY, budget=(60,)),)
        effort = Effort((*short, replace(PENALTY, fallback=not bisection)), 1)
    params.attempts = effort.attempts
    for search in effort.searches:
        params.add_schedule(_core_schedule(search, options.smoothing))
    params.starts = facts.starts
    params.seed = options.seed
    return params


def _find_effort(options: Options, facts: Facts) -> Effort:
    """The searches of a run, of which the fallbacks are a part."""
    name = options.effort
    if isinstance(name, Effort):
        return name
    if options.norm == "l2":
        return find_effort(name, facts.kind, facts.n, facts.targeted)
    budget = pairs_within_budget(options, facts)
    return find_walk(name, facts.kind, str(options.norm), facts.targeted, budget)


def _solves_penalty_problem(options: Options) -> bool:
    """Whether the minimiser for a given c is asked for, as in the paper."""
    return options.loss == "cross_entropy" or options.c_search == "bisection"


def _core_schedule(search: Schedule, smoothing: bool) -> _core.Schedule:
    """The search as the engine takes it. ``smoothing`` False: on the exact network alone."""
    out = _core.Schedule()
    for entry in fields(Schedule):
        if entry.name not in {"smoothing", "budget", "temperature", "descent"}:
            setattr(out, entry.name, getattr(search, entry.name))
    for entry in fields(Descent):
        setattr(out.descent, entry.name, getattr(search.descent, entry.name))
    for k, budget, temperature in zip(
        search.smoothing, search.budget, search.temperature, strict=True
    ):
        out.add_stage(k if smoothing else 0.0, budget, temperature)
    return out
