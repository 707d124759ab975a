"""Options of a run as the engine takes them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .. import _core
from ..effort import Descent, Effort, Schedule
from ..options import Options
from ..oracles.logits import NO_SQUASHING, Squashing
from .schedules import PENALTY, find_effort


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
    """

    n: int
    classes: int
    kind: str
    targeted: bool
    required_margin: float
    starts: int = 0
    squashing: Squashing = NO_SQUASHING


def engine_params(options: Options, facts: Facts) -> _core.Params:
    """Parameters of the engine for these options and this problem."""
    penalty_problem = _solves_penalty_problem(options)
    effort = options.effort
    if not isinstance(effort, Effort):
        effort = find_effort(effort, facts.kind, facts.n, facts.targeted)
    bisection = options.c_search == "bisection"
    params = _core.Params()
    params.n = facts.n
    params.classes = facts.classes
    params.targeted = facts.targeted
    params.smoothable = facts.kind != "smooth" and not penalty_problem
    params.loss = _core.Loss[options.loss]
    params.c_search = _core.CSearch[options.c_search]
    params.unsquared = options.penalty == "l2_unsquared"
    params.c_init = 0.0 if isinstance(options.c_init, str) else options.c_init
    params.confidence = facts.required_margin
    params.squash_rate, params.logit_floor, params.logit_cap = facts.squashing
    params.history = options.history
    # For a given c the minimiser is asked for; where c is chosen too, the margin decides.
    params.tolerance = 0.1 * options.tolerance if bisection else options.tolerance
    if options.max_evaluations is not None:
        params.max_evaluations = options.max_evaluations
    if penalty_problem:
        short = () if bisection else (replace(PENALTY, budget=(60,)),)
        effort = Effort((*short, replace(PENALTY, fallback=not bisection)), 1)
    params.attempts = effort.attempts
    for search in effort.searches:
        params.add_schedule(_core_schedule(search))
    params.starts = facts.starts
    params.seed = options.seed
    return params


def _solves_penalty_problem(options: Options) -> bool:
    """Whether the minimiser for a given c is asked for, as in the paper."""
    return options.loss == "cross_entropy" or options.c_search == "bisection"


def _core_schedule(search: Schedule) -> _core.Schedule:
    """The search as the engine takes it."""
    out = _core.Schedule()
    for entry in fields(Schedule):
        if entry.name not in {"smoothing", "budget", "temperature", "descent"}:
            setattr(out, entry.name, getattr(search, entry.name))
    for entry in fields(Descent):
        setattr(out.descent, entry.name, getattr(search.descent, entry.name))
    for stage in zip(search.smoothing, search.budget, search.temperature, strict=True):
        out.add_stage(*stage)
    return out
