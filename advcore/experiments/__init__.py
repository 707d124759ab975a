"""The experiments of Szegedy et al. 2013, "Intriguing properties of neural networks", run again.

`reproduce` runs them. Each experiment is one file. It holds the settings at every scale, the
published numbers and `run(run) -> Outcome`. The folder `parts` holds what several of them share.
The experiments need the extra "experiments".
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from advcore._extras import require
from advcore._files import write_text

if TYPE_CHECKING:
    from .parts.run import Run, Scale
    from .parts.tables import Outcome

EXPERIMENTS = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "units",
    "figures",
    "training",
    "layers",
    "frequency",
)
NEEDED = ("torch", "joblib", "matplotlib", "jinja2", "markdown_it")


class ExperimentsFailed(RuntimeError):
    """Raised when some experiments failed and the others ran.

    `failed` holds the errors by experiment.
    """

    def __init__(self, failed: dict[str, Exception], total: int, out: Path) -> None:
        names = ", ".join(
            f"{name} ({type(error).__name__}: {error})" for name, error in failed.items()
        )
        places = ", ".join(str(out / name / "error.txt") for name in failed)
        super().__init__(f"{len(failed)} of {total} experiments failed: {names}; see {places}")
        self.failed = failed


def reproduce(
    names: str | Iterable[str],
    out: str | Path,
    *,
    scale: Scale = "full",
    seeds: int = 5,
    dataset: str = "mnist",
    progress: bool = False,
    finished: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run experiments and write each one's tables and figures below `out` as it finishes.

    Results of an interrupted run are not computed again. ``report.html`` shows all experiments in
    `out`, those of earlier calls too. ``runs.json`` has an entry for every call.

    Parameters
    ----------
    names : one or several of `EXPERIMENTS`, or "all".
    out, scale, seeds, dataset, progress : see `parts.run.Run`.
    finished : a function that is called with every outcome.

    Returns
    -------
    The outcomes, in the order in which the experiments ran.

    Raises
    ------
    ValueError : an experiment, the scale, the data set or the number of seeds is unknown.
    ImportError : a package of the extra "experiments" is missing.
    OSError : the digits are missing.
    ExperimentsFailed : an experiment raised. The others have run; the traceback is in
        ``error.txt``.
    """
    for module in NEEDED:
        require(module, "experiments", "advcore reproduce")
    from .parts import report
    from .parts.origin import origin
    from .parts.run import Run

    name_list = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in name_list:
        if name not in (*EXPERIMENTS, "all"):
            raise ValueError(
                f"unknown experiment {name!r}; there are all, {', '.join(EXPERIMENTS)}"
            )
    selection = list(EXPERIMENTS) if "all" in name_list else name_list
    run = Run(Path(out), scale=scale, seeds=seeds, dataset=dataset, progress=progress)
    _load_digits(run)
    run.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    failed: dict[str, Exception] = {}
    begin = time.perf_counter()
    try:
        for place, name in enumerate(selection, 1):
            if progress:
                print(f"[{place}/{len(selection)}] {name}", file=sys.stderr, flush=True)
            try:
                outcome = _run_one(run, name)
            except Exception as error:
                failed[name] = error
                continue
            outcomes.append(outcome)
            if finished is not None:
                finished(outcome)
    finally:
        entry = origin(run, name_list, time.perf_counter() - begin)
        entry |= {"finished": [outcome.name for outcome in outcomes], "failed": list(failed)}
        report.add_invocation(run.out, entry)
        report.write(run.out, EXPERIMENTS)
    if failed:
        raise ExperimentsFailed(failed, len(selection), run.out)
    return outcomes


def _run_one(run: Run, name: str) -> Outcome:
    """Run and write one experiment, or leave its traceback in ``error.txt``."""
    from .parts import report
    from .parts.origin import origin

    begin = time.perf_counter()
    run.spent.clear()
    trace = run.out / name / "error.txt"
    try:
        with run.bar(name, None):
            outcome: Outcome = importlib.import_module(f".{name}", __name__).run(run)
        outcome.seconds = round(run.seconds, 1)
        outcome.origin = origin(run, [name], time.perf_counter() - begin)
        outcome.write(run.out / name)
    except Exception:
        trace.parent.mkdir(exist_ok=True)
        write_text(trace, traceback.format_exc())
        raise
    trace.unlink(missing_ok=True)
    report.write(run.out, EXPERIMENTS)
    return outcome


def _load_digits(run: Run) -> None:
    """Read the data before anything else, so that missing files are reported at once."""
    try:
        run.digits  # noqa: B018
    except (OSError, ImportError) as error:
        raise OSError(
            f"{error}; put MNIST's four files in $ADVCORE_DATA/mnist, or take the 1,000 digits of "
            'the package, dataset "embedded"'
        ) from None
