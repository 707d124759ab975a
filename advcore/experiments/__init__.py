"""The experiments of Szegedy et al. 2013, "Intriguing properties of neural networks", run again.

`reproduce` runs them; each is one file with its settings at every scale, `run(run) -> Outcome`, and
the published numbers. Needs the extra "experiments".
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

if TYPE_CHECKING:
    from .run import Run, Scale
    from .tables import Outcome

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
    """Some experiments raised, the others ran; `failed` has the errors by experiment."""

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
    """Runs experiments and writes each one's tables and figures below `out` as it finishes.

    What a broken-off run had finished is not computed again. ``report.html`` shows all experiments
    that `out` holds, of earlier calls too; ``runs.json`` has a line for every call.

    Parameters are those of `run.Run`, and
    names : one, or several, of `EXPERIMENTS`; "all".
    finished : called with every outcome.

    Raises
    ------
    ExperimentsFailed : when all others are done; the traceback is in ``error.txt``.
    """
    for module in NEEDED:
        require(module, "experiments", "advcore reproduce")
    from . import report
    from .origin import origin
    from .run import Run

    asked = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    for name in asked:
        if name not in (*EXPERIMENTS, "all"):
            raise ValueError(
                f"unknown experiment {name!r}; there are all, {', '.join(EXPERIMENTS)}"
            )
    wanted = list(EXPERIMENTS) if "all" in asked else asked
    run = Run(Path(out), scale=scale, seeds=seeds, dataset=dataset, progress=progress)
    _load_digits(run)
    run.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    failed: dict[str, Exception] = {}
    begin = time.perf_counter()
    try:
        for place, name in enumerate(wanted, 1):
            if progress:
                print(f"[{place}/{len(wanted)}] {name}", file=sys.stderr, flush=True)
            try:
                outcome = _run_one(run, name)
            except Exception as error:
                failed[name] = error
                continue
            outcomes.append(outcome)
            if finished is not None:
                finished(outcome)
    finally:
        made = origin(run, asked, time.perf_counter() - begin)
        done = [outcome.name for outcome in outcomes]
        report.add_invocation(run.out, {**made, "finished": done, "failed": list(failed)})
        report.write(run.out)
    if failed:
        raise ExperimentsFailed(failed, len(wanted), run.out)
    return outcomes


def _run_one(run: Run, name: str) -> Outcome:
    """Runs and writes one experiment, or leaves its traceback in ``error.txt``."""
    from . import report
    from .origin import origin
    from .tables import write_text

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
    report.write(run.out)
    return outcome


def _load_digits(run: Run) -> None:
    """Reads the data before anything else, to say at once what is missing."""
    try:
        run.digits  # noqa: B018
    except (OSError, ImportError) as error:
        raise OSError(
            f"{error}; put MNIST's four files in $ADVCORE_DATA/mnist, or take the 1,000 digits of "
            'the package, dataset "embedded"'
        ) from None
