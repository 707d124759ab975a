"""The experiments of Szegedy et al. 2013, "Intriguing properties of neural networks", run again.

`reproduce` runs them; each is one file with its settings at every scale, `run(run) -> Outcome`, and
the published numbers. Needs the extra "experiments".
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Scale
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


def reproduce(
    names: Iterable[str],
    out: str | Path,
    *,
    scale: Scale = "full",
    seeds: int = 5,
    dataset: str = "mnist",
    progress: bool = False,
) -> list[Outcome]:
    """Runs experiments and writes each one's tables and figures below `out` as it finishes.

    Parameters are those of `run.Run`. What a broken-off run had finished is not computed again.
    """
    from .run import Run

    names = list(names)
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"unknown experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    run = Run(Path(out), scale=scale, seeds=seeds, dataset=dataset, progress=progress)
    outcomes = []
    for name in names:
        run.seconds = 0.0
        outcome: Outcome = importlib.import_module(f".{name}", __name__).run(run)
        outcome.seconds = run.seconds
        outcome.write(run.out / name)
        outcomes.append(outcome)
    return outcomes
