"""A run of experiments: its folder, data, trained networks and the steps it has finished."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import advcore

from . import networks
from .digits import Digits
from .networks import Recipe

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

Scale = Literal["full", "quick", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Trained:
    """A network as it came out of `Run.trained`; error rates in percent."""

    recipe: Recipe
    key: str
    model: torch.nn.Module
    train_error: float
    test_error: float
    seconds: float
    facts: dict[str, Any]


class Run:
    """Keeps every trained network and finished step in ``out/cache`` under a hash of what it
    depends on: a run that was broken off goes on where it stopped, and experiments share networks.

    Parameters
    ----------
    out : folder of the results.
    scale : "full", "quick" (smaller sets, fewer epochs) or "tiny" (of the tests).
    seeds : number of independent repetitions; each experiment's tables give mean and deviation.
    dataset : "mnist", or "embedded": the 1,000 digits of the package, split 800 to 200.
    workers : networks trained at the same time, one thread each. None: one a CPU.
    """

    def __init__(
        self,
        out: Path,
        *,
        scale: Scale = "full",
        seeds: int = 5,
        dataset: str = "mnist",
        workers: int | None = None,
        progress: bool = False,
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        self.out = out
        self.scale: Scale = scale
        self.seeds = tuple(range(seeds))
        self.dataset = dataset
        self.workers = workers or len(os.sched_getaffinity(0))
        self.progress = progress
        self.spent: dict[str, float] = {}
        """Seconds that the networks and steps asked for took when they were made, by their key."""
        self._loaded: dict[str, Trained] = {}
        self._shown: Progress | None = None

    @property
    def seconds(self) -> float:
        """Computing time of all in `spent`: networks on one thread each, steps on all."""
        return sum(self.spent.values())

    @cached_property
    def digits(self) -> Digits:
        return Digits.load(self.dataset)

    def recipe(self, model: str, seed: int, **changes: Any) -> Recipe:
        """`networks.recipe` at this run's scale and data."""
        return networks.recipe(self.scale, self.dataset, model, seed, **changes)

    def trained(self, recipes: Sequence[Recipe]) -> list[Trained]:
        """The networks of these recipes, in order; missing ones are trained side by side."""
        folder = self.out / "cache" / "networks"
        folder.mkdir(parents=True, exist_ok=True)
        keys = [digest(networks.content(recipe)) for recipe in recipes]
        missing = {
            key: recipe
            for key, recipe in zip(keys, recipes, strict=True)
            if not (folder / f"{key}.pt").exists()
        }
        if missing:
            self._train(missing, folder)
        for key, recipe in zip(keys, recipes, strict=True):
            if key not in self._loaded:
                model, facts = networks.load(folder / f"{key}.pt", recipe)
                seconds = float(facts["seconds"])
                train_error, test_error = float(facts["train_error"]), float(facts["test_error"])
                self._loaded[key] = Trained(
                    recipe, key, model, train_error, test_error, seconds, facts
                )
            self.spent[key] = self._loaded[key].seconds
        return [self._loaded[key] for key in keys]

    def trained_rows(self, recipes: Mapping[str, Sequence[Recipe]]) -> dict[str, list[Trained]]:
        """The networks of each row of a table, trained side by side over all rows."""
        made = iter(self.trained([recipe for row in recipes.values() for recipe in row]))
        return {name: [next(made) for _ in row] for name, row in recipes.items()}

    def step(
        self,
        name: str,
        depends: Mapping[str, Any],
        make: Callable[[], Mapping[str, Any]],
    ) -> dict[str, NDArray[Any]]:
        """The arrays that `make` returns, computed once for a name and what it `depends` on.

        `depends` must hold all that the result depends on, as JSON; `Trained.key` stands for a
        network. Raise a number in it where the code of a step changes its meaning.
        """
        folder = self.out / "cache" / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{digest({'dataset': self.dataset, **depends})}.npz"
        if not path.exists():
            begin = time.perf_counter()
            with self.bar(name, None):
                made = {key: np.asarray(value) for key, value in make().items()}
            seconds = time.perf_counter() - begin
            for key, array in made.items():
                if array.dtype.hasobject:  # would be pickled, and is not read again
                    raise TypeError(f"step {name!r}: {key!r} is not an array of numbers or text")
            with replacing(path) as file:
                contents: dict[str, Any] = {**made, "_seconds": np.asarray(seconds)}
                np.savez(file, **contents)
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        self.spent[path.stem] = float(arrays.pop("_seconds"))
        return arrays

    @contextmanager
    def bar(self, what: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A progress bar on stderr where `progress` was asked for; yields a function to advance.

        One inside another stands below it until it is done. total : None, not known.
        """
        if not self.progress:
            yield lambda: None
            return
        outer = self._shown
        with nullcontext(outer) if outer else _display() as shown:
            self._shown = shown
            task = shown.add_task(what, total=total)
            try:
                yield lambda: shown.advance(task)
            finally:
                self._shown = outer
                if outer:
                    shown.remove_task(task)

    def _train(self, missing: Mapping[str, Recipe], folder: Path) -> None:
        from joblib import Parallel, delayed

        jobs = (
            delayed(networks.train_to_file)(recipe, folder / f"{key}.pt")
            for key, recipe in missing.items()
        )
        with self.bar("training networks", len(missing)) as advance:
            workers = min(self.workers, len(missing))  # a single one in this process
            for _ in Parallel(workers, return_as="generator_unordered")(jobs):
                advance()


def _display() -> Progress:
    """Bars with counts and times, which leave no trace; nothing where stderr is no terminal."""
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Count(progress.MofNCompleteColumn):
        def render(self, task: progress.Task) -> Text:
            return Text() if task.total is None else super().render(task)

    console = Console(stderr=True)
    return progress.Progress(
        progress.TextColumn("  {task.description}"),
        progress.BarColumn(),
        Count(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def digest(content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of the content and the package's version."""
    text = json.dumps({**content, "advcore": advcore.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` only when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
