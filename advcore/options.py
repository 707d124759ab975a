"""Every option of `minimize_distortion` in one place: type, default, check and help.

The call, the engine's parameters, the command line and ``docs/options.md`` are made from `Options`.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from . import validate
from .effort import EFFORTS, Effort

if TYPE_CHECKING:
    from .solve.job import Progress

PENALTIES = ("l2", "l2_unsquared")


@dataclass(frozen=True)
class Check:
    """A check of a value: ``run(value, name)`` returns the value to keep, or raises."""

    run: Callable[[Any, str], Any]
    accepts: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionInfo:
    """All that is known about an option besides its name, type and default.

    Attributes
    ----------
    help : str
        One line for the command line, without the default.
    check : Check
        None as a value is not checked where None is the default.
    meaning : str
        The entry of ``docs/options.md``; empty: ``help``.
    without : str
        What None, or another default that names no value, stands for.
    command_type : type, function of a word, or None
        How the command line reads the option. None: the command line does not have it.
    """

    help: str
    check: Check
    meaning: str = ""
    without: str = ""
    command_type: Any = None


def _one_of(*names: str) -> Check:
    def run(value: Any, name: str) -> str:
        return validate.choice(value, name, names)

    return Check(run, ", ".join(f'`"{name}"`' for name in names), names)


def _number(*, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Check:
    def run(value: Any, name: str) -> float:
        return validate.number(value, name, least=least, above=above, most=most)

    limits = [f"> {above:g}"] if above > -math.inf else [f">= {least:g}"]
    if most < math.inf:
        limits.append(f"<= {most:g}")
    return Check(run, f"number {' and '.join(limits)}")


def _integer(least: int, most: int | None = None) -> Check:
    def run(value: Any, name: str) -> int:
        if most is None:
            return validate.integer(value, name, least=least)
        return validate.integer(value, name, least=least, most=most)

    if most is None:
        return Check(run, f"integer >= {least}")
    limit = f"{most:,}" if most < 2**32 else f"2^{most.bit_length() - 1}"
    return Check(run, f"integer, {least} to {limit}")


def _effort(value: Any, name: str) -> str | Effort:
    return value if isinstance(value, Effort) else validate.choice(value, name, EFFORTS)


def _first_c(value: Any, name: str) -> str | float:
    if isinstance(value, str) and value == "auto":
        return value
    return validate.number(value, name, least=1 / validate.LARGE, most=validate.LARGE)


def _function(value: Any, name: str) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    return value


def _unchecked(value: Any, name: str) -> Any:
    return value


def _auto_or_float(word: str) -> str | float:
    """Value of ``--c-init``."""
    return word if word == "auto" else float(word)


def _about(help: str, check: Check, **more: Any) -> dict[str, OptionInfo]:
    return {"option": OptionInfo(help, check, **more)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """Checked options of a run, each described where it is defined.

    Raises
    ------
    TypeError, ValueError
        An option is not as described. The message names the option, what was expected and what
        came.
    """

    loss: str = field(
        default="margin",
        metadata=_about(
            "function that the search minimises",
            _one_of("margin", "cross_entropy"),
            meaning='smoothed log-odds of the target; `"cross_entropy"`: the loss of the paper',
            command_type=str,
        ),
    )
    penalty: str = field(
        default="l2",
        metadata=_about(
            "form of the distortion term",
            _one_of(*PENALTIES),
            meaning='`c*‖r‖²`; `"l2_unsquared"`: `c*‖r‖`, as in the paper. The former name of the '
            "option, `norm`, still works with a warning",
            command_type=str,
        ),
    )
    bounds: Any = field(
        default=(0.0, 1.0),
        metadata=_about(
            "least and largest value of a pixel",
            Check(validate.pair, "pair of numbers, or of arrays that broadcast to the images"),
            meaning="least and largest value of each pixel",
            command_type=tuple[float, float],
        ),
    )
    confidence: float = field(
        default=1e-4,
        metadata=_about(
            "margin required of a result, in logits",
            _number(least=0, most=validate.LARGE),
            meaning="margin required of a result, in logits. The engine adds four times the "
            "rounding noise that it measures on the model's logits",
            command_type=float,
        ),
    )
    effort: str | Effort = field(
        default="default",
        metadata=_about(
            "how much is searched",
            Check(_effort, _one_of(*EFFORTS).accepts, EFFORTS),
            meaning='how much is searched: `"fast"` takes fewer evaluations and `"thorough"` more '
            "([what it buys](optimality.md#what-an-effort-buys))",
            command_type=str,
        ),
    )
    history: int = field(
        default=5,
        metadata=_about(
            "pairs (s, y) of L-BFGS, 3 to 8",
            _integer(3, 8),
            command_type=int,
        ),
    )
    max_evaluations: int | None = field(
        default=None,
        metadata=_about(
            "budget of each image, in pairs of a forward and a backward",
            _integer(1),
            meaning="budget of each image, in pairs of a forward and a backward. Where it is too "
            "small for an effort, the next lower effort runs "
            "([smallest budgets](#smallest-budgets))",
            without="none but that of the effort",
            command_type=int,
        ),
    )
    tolerance: float = field(
        default=1e-3,
        metadata=_about(
            "relative change of c and of x at which a search stops",
            _number(above=0, most=0.5),
            command_type=float,
        ),
    )
    c_init: float | str = field(
        default="auto",
        metadata=_about(
            "first c: a number, or auto (from the linearised problem)",
            Check(
                _first_c, f'`"auto"`, or number >= {1 / validate.LARGE:g} and <= {validate.LARGE:g}'
            ),
            meaning='first `c`; `"auto"`: from the linearised problem',
            command_type=_auto_or_float,
        ),
    )
    c_search: str = field(
        default="fused",
        metadata=_about(
            "how c is found",
            _one_of("fused", "bisection"),
            meaning='how `c` is found. `"fused"` chooses it anew in each iteration, at no '
            'evaluation; `"bisection"` does a full solve for each `c`, as in the paper',
            command_type=str,
        ),
    )
    levels: int | None = field(
        default=None,
        metadata=_about(
            "results on a grid of so many values, 256 for 8 bits and for every folder of pictures",
            _integer(2, 2**16),
            meaning="results on a grid of so many values, 256 for 8-bit images, verified there. "
            "The bounds must be two numbers. The repair takes up to 27 evaluations beyond "
            "`max_evaluations`",
            without="no grid",
            command_type=int,
        ),
    )
    seed: int = field(
        default=0,
        metadata=_about(
            "seed of random directions and of random targets",
            _integer(0, 2**63),
            meaning="seed of the random directions, which are used only where the gradient is zero",
            command_type=int,
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=_about(
            "images in work at once",
            _integer(1, 2**20),
            meaning="images in work at once, in the native engine of each thread",
            without="chosen for the model",
            command_type=int,
        ),
    )
    device: Any = field(
        default=None,
        metadata=_about(
            "cpu, or a device of torch",
            Check(_unchecked, "name or `torch.device`"),
            meaning="where the model is evaluated. A torch module must be there already. On a GPU "
            "the solver runs there too, if advcore was built with CUDA",
            without="the model's",
            command_type=str,
        ),
    )
    threads: int | None = field(
        default=None,
        metadata=_about(
            "CPU threads",
            _integer(1, 1024),
            meaning="CPU threads of the engine, or of torch where a model runs through it",
            without="ADVCORE_NUM_THREADS, else all CPUs",
            command_type=int,
        ),
    )
    time_limit: float | None = field(
        default=None,
        metadata=_about(
            "seconds for the whole run",
            _number(above=0),
            meaning="seconds for the whole run. Images that are not finished then keep the best "
            "that was found, with status `interrupted`",
            without="no limit",
            command_type=float,
        ),
    )
    progress: bool = field(
        default=False,
        metadata=_about(
            "show a progress bar",
            Check(_unchecked, "`True`, `False`"),
            meaning="show a progress bar (needs `advcore[cli]`)",
        ),
    )
    callback: Callable[[Progress], object] | None = field(
        default=None,
        metadata=_about(
            "function that is told the progress",
            Check(_function, "function"),
            meaning="function that is called with an `advcore.Progress` some 20 times a second. It "
            "stops the run by returning `True`",
        ),
    )

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is not None or entry.default is not None:
                checked = option_info(entry.name).check.run(value, entry.name)
                object.__setattr__(self, entry.name, checked)
        if self.levels is not None:
            check_grid_bounds(self.bounds)


_FIELDS = {entry.name: entry for entry in fields(Options)}


def option_info(name: str) -> OptionInfo:
    """Check and texts of an option."""
    info: OptionInfo = _FIELDS[name].metadata["option"]
    return info


def check_grid_bounds(bounds: Any) -> None:
    """Raises unless bounds are two finite numbers, lower < upper, as ``levels`` needs them."""
    for bound in bounds:
        if not isinstance(bound, numbers.Real) or not math.isfinite(float(bound)):
            raise ValueError(
                "bounds must be two finite numbers where levels is given, got "
                + validate.shown(bound)
            )
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must have lower < upper where levels is given, got {bounds!r}")


def penalty_from_norm(penalty: str, norm: str | None, *, dashes: str = "", stacklevel: int) -> str:
    """The penalty, where ``norm``, the name that it had before, may be given in its place.

    Warns with a FutureWarning, as that is shown by default in scripts, modules and notebooks alike.
    A penalty that was given with the value of the default cannot be told from none.

    Parameters
    ----------
    dashes : str
        What stands before the names where the user sees them.

    Raises
    ------
    TypeError
        Both were given.
    """
    if norm is None:
        return penalty
    if not isinstance(penalty, str) or penalty != _FIELDS["penalty"].default:
        raise TypeError(
            f"{dashes}norm is the former name of {dashes}penalty: give one of them, not both"
        )
    validate.choice(norm, f"{dashes}norm", PENALTIES)
    warnings.warn(
        f"{dashes}norm is called {dashes}penalty now", FutureWarning, stacklevel=stacklevel + 1
    )
    return norm
