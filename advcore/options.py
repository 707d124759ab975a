"""Every option of `minimize_distortion` in one place: type, default, check and help.

The call, the engine's parameters, the command line and ``docs/options.md`` are made from `Options`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from . import validate
from ._progress import Progress as Progress
from .effort import EFFORTS, Effort
from .errors import warn_caller

PENALTIES = ("l2", "l2_unsquared")
NORMS = ("l2", "linf", "l1")


@dataclass(frozen=True)
class Check:
    """A check of an option's value.

    Attributes
    ----------
    run : function
        ``run(value, name)`` returns the value to keep, or raises.
    accepts : str
        The values that pass, as ``docs/options.md`` describes them.
    choices : tuple of str
        The names that pass. Empty: the value is no name.
    """

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
        The check of a value. None is not checked where it is the default.
    meaning : str
        The entry of ``docs/options.md``. Empty: it is ``help``.
    without : str
        The meaning of a default that names no value, such as None.
    command_type : type, function of a word, or None
        The type as which the command line reads the option. None: it does not have the option.
    metavar : str
        What the help of the command line shows for a value. Empty: a word for the type.
    """

    help: str
    check: Check
    meaning: str = ""
    without: str = ""
    command_type: Any = None
    metavar: str = ""


def _one_of(*names: str) -> Check:
    def run(value: Any, name: str) -> str:
        return validate.choice(value, name, names)

    return Check(run, ", ".join(f'`"{name}"`' for name in names), names)


def _number(
    *, minimum: float = -math.inf, lower_limit: float = -math.inf, maximum: float = math.inf
) -> Check:
    def run(value: Any, name: str) -> float:
        return validate.number(
            value, name, minimum=minimum, lower_limit=lower_limit, maximum=maximum
        )

    limits = [f"> {lower_limit:g}"] if lower_limit > -math.inf else [f">= {minimum:g}"]
    if maximum < math.inf:
        limits.append(f"<= {maximum:g}")
    return Check(run, f"number {' and '.join(limits)}")


def _integer(minimum: int, maximum: int | None = None) -> Check:
    def run(value: Any, name: str) -> int:
        if maximum is None:
            return validate.integer(value, name, minimum=minimum)
        return validate.integer(value, name, minimum=minimum, maximum=maximum)

    if maximum is None:
        return Check(run, f"integer >= {minimum}")
    limit = f"{maximum:,}" if maximum < 2**32 else f"2^{maximum.bit_length() - 1}"
    return Check(run, f"integer, {minimum} to {limit}")


def _effort(value: Any, name: str) -> str | Effort:
    return value if isinstance(value, Effort) else validate.choice(value, name, EFFORTS)


_NORM_NAMES = {"2": "l2", "inf": "linf", "1": "l1"}


def _norm(value: Any, name: str) -> str:
    """Return the name of a norm that is given by its name or its order."""
    order = f"{value:g}" if isinstance(value, (int, float, np.number)) else value
    if isinstance(value, bool) or not isinstance(order, str) or order not in _NORM_NAMES:
        return validate.choice(value, name, NORMS)
    return _NORM_NAMES[order]


def _first_c(value: Any, name: str) -> str | float:
    if isinstance(value, str) and value == "auto":
        return value
    return validate.number(value, name, minimum=1 / validate.LARGE, maximum=validate.LARGE)


def _function(value: Any, name: str) -> Any:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {type(value).__name__}")
    return value


def _unchecked(value: Any, name: str) -> Any:
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {validate.describe(value)}")
    return bool(value)


def _auto_or_float(word: str) -> str | float:
    """Convert a word of the command line to a value of ``c_init``."""
    return word if word == "auto" else float(word)


def _metadata(help: str, check: Check, **more: Any) -> dict[str, OptionInfo]:
    return {"option": OptionInfo(help, check, **more)}


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """Checked options of a run. The metadata of each field describe it.

    Raises
    ------
    TypeError, ValueError
        An option is not as described. The message names the option, what was expected and what
        came.
    """

    loss: str = field(
        default="margin",
        metadata=_metadata(
            "function that the search minimises",
            _one_of("margin", "cross_entropy"),
            meaning='smoothed log-odds of the target; `"cross_entropy"`: the loss of the paper',
            command_type=str,
        ),
    )
    penalty: str = field(
        default="l2",
        metadata=_metadata(
            "form of the distortion term",
            _one_of(*PENALTIES),
            meaning='`c*‖r‖²`; `"l2_unsquared"`: `c*‖r‖`, as in the paper. The former name of the '
            "option, `norm`, still works for the second with a warning",
            command_type=str,
        ),
    )
    norm: str | float = field(
        default="l2",
        metadata=_metadata(
            "norm of r that is smallest in the result: l2, linf or l1",
            Check(_norm, _one_of(*NORMS).accepts + ", or `2`, `inf`, `1`", (*NORMS, *_NORM_NAMES)),
            meaning="norm of `r` that is smallest in the result, and in which all distances of it "
            "are given. The options of the paper's penalty problem (`penalty`, `c_init`, "
            '`c_search`, `loss="cross_entropy"`) and of its search (`history`, `tolerance`) belong '
            "to `l2`: with another norm there is [no c](optimality.md#other-norms)",
            command_type=str,
        ),
    )
    bounds: Any = field(
        default=(0.0, 1.0),
        metadata=_metadata(
            "least and largest value of a pixel, as in --bounds 0 255",
            Check(validate.pair, "pair of numbers, or of arrays that broadcast to the images"),
            meaning="least and largest value of each pixel; on the command line `--bounds 0 255`",
            command_type=tuple[float, float],
            metavar="LOWER UPPER",
        ),
    )
    confidence: float = field(
        default=1e-4,
        metadata=_metadata(
            "margin required of a result, in logits",
            _number(minimum=0, maximum=validate.LARGE),
            meaning="margin required of a result, in logits. The engine adds four times the "
            "rounding noise that it measures on the model's logits",
            command_type=float,
        ),
    )
    effort: str | Effort = field(
        default="default",
        metadata=_metadata(
            "how much is searched",
            Check(_effort, _one_of(*EFFORTS).accepts, EFFORTS),
            meaning='how much is searched: `"fast"` takes fewer evaluations and `"thorough"` more '
            "([what it buys](optimality.md#what-an-effort-buys))",
            command_type=str,
        ),
    )
    history: int = field(
        default=5,
        metadata=_metadata(
            "pairs (s, y) of L-BFGS, 3 to 8",
            _integer(3, 8),
            command_type=int,
        ),
    )
    max_evaluations: int | None = field(
        default=None,
        metadata=_metadata(
            "budget of each image, in pairs of a forward and a backward",
            _integer(1),
            meaning="budget of each image, in pairs of a forward and a backward. Efforts begin "
            "alike, so a smaller budget needs no lower effort. `levels` takes evaluations beyond "
            "it",
            without="none but that of the effort",
            command_type=int,
        ),
    )
    max_queries: int | None = field(
        default=None,
        metadata=_metadata(
            "budget of each image, in forwards and backwards, each counted",
            _integer(10, 2**30),
            meaning="budget of each image in queries: each forward and each backward of the model "
            "for it counts one, those of its label and of its verification too. The trials of the "
            "model are on random images then, and are not in it. With bounds of each value or "
            "image at least 30. Not with `levels`",
            without="none but that of the effort",
            command_type=int,
        ),
    )
    stop_at: float | None = field(
        default=None,
        metadata=_metadata(
            "distortion that is small enough: the search of an image ends there",
            _number(minimum=0, maximum=validate.LARGE),
            meaning="distortion, in the norm of the run, at which the search of an image ends with "
            "the status `good_enough`. The rounding to `levels` comes after it",
            without="the smallest that is found",
            command_type=float,
        ),
    )
    smoothing: bool = field(
        default=True,
        metadata=_metadata(
            "search smoothed forms of the network too, not the model alone",
            Check(_flag, "`True`, `False`"),
            meaning="whether the search may evaluate the network with smoothed kinks. `False`: "
            "every evaluation is one of the model as it is, for harnesses that watch its forwards "
            "([what it costs](optimality.md#without-smoothing))",
            command_type=bool,
        ),
    )
    tolerance: float = field(
        default=1e-3,
        metadata=_metadata(
            "relative change of c and of x at which a search stops",
            _number(lower_limit=0, maximum=0.5),
            command_type=float,
        ),
    )
    c_init: float | str = field(
        default="auto",
        metadata=_metadata(
            "first c: a number, or auto (from the linearised problem)",
            Check(
                _first_c, f'`"auto"`, or number >= {1 / validate.LARGE:g} and <= {validate.LARGE:g}'
            ),
            meaning='first `c`; `"auto"`: from the linearised problem',
            command_type=_auto_or_float,
            metavar="auto|NUMBER",
        ),
    )
    c_search: str = field(
        default="fused",
        metadata=_metadata(
            "how c is found",
            _one_of("fused", "bisection"),
            meaning='how `c` is found. `"fused"` chooses it anew in each iteration, at no '
            'evaluation; `"bisection"` does a full solve for each `c`, as in the paper',
            command_type=str,
        ),
    )
    levels: int | None = field(
        default=None,
        metadata=_metadata(
            "results on a grid of so many values, 256 for 8 bits and for every folder of pictures",
            _integer(2, 2**16),
            meaning="results on a grid of so many values, 256 for 8-bit images, verified there. "
            "The bounds must be two numbers. The repair takes up to 27 evaluations beyond "
            "`max_evaluations`; on a grid of 8 levels or fewer up to 90, and 700 further forwards",
            without="no grid",
            command_type=int,
        ),
    )
    seed: int = field(
        default=0,
        metadata=_metadata(
            "seed of random directions and of random targets",
            _integer(0, 2**63),
            meaning="seed of the random directions, which are used only where the gradient is zero",
            command_type=int,
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=_metadata(
            "images in work at once",
            _integer(1, 2**20),
            meaning="images worked on at once (in the native engine: per thread). A model that "
            "does not run there never gets more at once, in the trials and the verification as "
            "well: 1 is for models of one image",
            without="chosen for the model",
            command_type=int,
        ),
    )
    device: Any = field(
        default=None,
        metadata=_metadata(
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
        metadata=_metadata(
            "CPU threads",
            _integer(1, 1024),
            meaning="CPU threads of the engine, or of torch where a model runs through it. In the "
            "child of a fork, after torch has used threads, every call of torch hangs but with 1",
            without="ADVCORE_NUM_THREADS, else all CPUs",
            command_type=int,
        ),
    )
    time_limit: float | None = field(
        default=None,
        metadata=_metadata(
            "seconds for the whole run",
            _number(lower_limit=0),
            meaning="seconds from the beginning of the call: the trials of the model and its first "
            "forwards count too. The clock is looked at between rounds, so a call of the model "
            "that runs then is waited for. Images that are not finished keep the best that was "
            "found, with status `interrupted`. That is verified after the limit: a few further "
            "forwards, with `levels` the repair",
            without="no limit",
            command_type=float,
        ),
    )
    progress: bool = field(
        default=False,
        metadata=_metadata(
            "show a progress bar",
            Check(_unchecked, "`True`, `False`"),
            meaning="show a progress bar (needs `advcore[cli]`), in a notebook without ipywidgets "
            "a line of text",
        ),
    )
    callback: Callable[[Progress], object] | None = field(
        default=None,
        metadata=_metadata(
            "function that is told the progress",
            Check(_function, "function"),
            meaning="function that is called with an [`advcore.Progress`](#progress) some 20 times "
            "a second. It stops the run by returning `True`",
        ),
    )

    deterministic: bool = field(
        default=False,
        metadata=_metadata(
            "results that do not depend on the other images, bit for bit",
            Check(_flag, "`True`, `False`"),
            meaning="bits of an image's result that do not depend on the other images, its place "
            "among them, or where a data set is cut into blocks. In the native engine that holds "
            "anyway; through torch or NumPy it takes "
            "[batches of one size](models.md#batches-of-one-size)",
            command_type=bool,
        ),
    )

    record: bool | None = field(
        default=None,
        metadata=_metadata(
            "keep hashes of the model and of the inputs with the result",
            Check(_flag, "`True`, `False`"),
            meaning="whether `result.record` holds hashes of the model and of the inputs "
            "([what it costs](decisions.md#hashes-are-made-from-32-images-on))",
            without="where there are 32 images or more",
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
            if self.max_queries is not None:
                raise ValueError(
                    "max_queries must be None where levels is given, whose repair has no such "
                    f"limit, got {self.max_queries}"
                )
        if self.norm != "l2":
            for name in _OF_L2:
                value, default = getattr(self, name), _FIELDS[name].default
                if value != default:
                    raise ValueError(
                        f"{name} must be {default!r} with norm={self.norm!r}, got {value!r}: it "
                        "belongs to the penalty problem of norm='l2'"
                    )


_OF_L2 = ("loss", "penalty", "c_init", "c_search")
"""Options that have a meaning for the norm l2 alone."""
_FIELDS = {entry.name: entry for entry in fields(Options)}


def option_info(name: str) -> OptionInfo:
    """Return the check and the texts of an option."""
    info: OptionInfo = _FIELDS[name].metadata["option"]
    return info


def check_grid_bounds(bounds: Any) -> None:
    """Raise unless bounds are two finite numbers, lower < upper, as ``levels`` needs them."""
    for bound in bounds:
        if not isinstance(bound, numbers.Real) or not math.isfinite(float(bound)):
            raise ValueError(
                "bounds must be two finite numbers where levels is given, got "
                + validate.describe(bound)
            )
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds must have lower < upper where levels is given, got {bounds!r}")


def split_former_norm(norm: Any, penalty: str, *, dashes: str = "") -> tuple[Any, str]:
    """Return the norm and the penalty, which may be given as ``norm``, its former name.

    That warns with a FutureWarning, which scripts, modules and notebooks alike show by default. The
    penalty "l2", the default, is the norm of that name too, and does not warn.

    Parameters
    ----------
    dashes : str
        Prefix of the names as the user sees them: "--" on the command line.

    Raises
    ------
    TypeError
        A penalty is given as ``norm`` and another one as ``penalty``.
    """
    if not isinstance(norm, str) or norm not in PENALTIES or norm in NORMS:
        return norm, penalty
    if not isinstance(penalty, str) or penalty not in (norm, _FIELDS["penalty"].default):
        raise TypeError(
            f"{dashes}norm {norm} is the former name of {dashes}penalty: give one of them, not both"
        )
    warn_caller(f"{dashes}norm {norm} is {dashes}penalty {norm} now", FutureWarning)
    return _FIELDS["norm"].default, norm
