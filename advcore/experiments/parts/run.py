"""A run of experiments: its folder, data, trained networks and finished steps."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from advcore._arrays import read_archive
from advcore._files import replacing

from . import networks
from .digits import Digits
from .files import digest
from .make import train_to_file
from .networks import Recipe

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

Scale = Literal["full", "quick", "tiny"]
SCALES: tuple[Scale, ...] = ("full", "quick", "tiny")


@dataclass(frozen=True)
class Trained:
    """A network that `Run.trained` returns.

    key : name of its file, which stands for the network in `Run.step`.
    train_error, test_error : error rates in percent.
    seconds : time of its training.
    facts : all facts that the training stored.
    """

    recipe: Recipe
    key: str
    model: torch.nn.Module
    train_error: float
    test_error: float
    seconds: float
    facts: dict[str, Any]


class Run:
    """One run of experiments at one scale.

    The run stores every trained network and finished step in ``out/cache``, under a hash of all
    that it depends on. So an interrupted run goes on where it stopped, and experiments share
    networks.

    Parameters
    ----------
    out : folder of the results.
    scale : "full", "quick" (smaller sets, fewer epochs) or "tiny" (for tests).
    seeds : number of independent repetitions. The tables give mean and deviation over them.
    dataset : "mnist", or "embedded" for the 1,000 digits of the package, split 800 to 200.
    workers : number of networks that are trained at the same time, each on one thread. None means
        one a CPU.
    progress : whether progress bars are shown on stderr.

    Raises
    ------
    ValueError : `scale` or `seeds` is not in its range.
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
        """Seconds of the training of each network in use, and of each step, by their keys."""
        self._loaded: dict[str, Trained] = {}
        self._shown: Progress | None = None

    @property
    def seconds(self) -> float:
        """The sum of `spent`. Networks take one thread each, steps all threads."""
        return sum(self.spent.values())

    @cached_property
    def digits(self) -> Digits:
        """The images and labels of `dataset`, loaded at the first use."""
        return Digits.load(self.dataset)

    def recipe(self, model: str, seed: int, **changes: Any) -> Recipe:
        """Return `networks.recipe` at this run's scale and data."""
        return networks.recipe(self.scale, self.dataset, model, seed, **changes)

    def trained(self, recipes: Sequence[Recipe]) -> list[Trained]:
        """Return the networks of these recipes, in order.

        Networks without a file are trained first, several at the same time.
        """
        folder = self.out / "cache" / "networks"
        folder.mkdir(parents=True, exist_ok=True)
        keys = [digest(networks.content(recipe)) for recipe in recipes]
        by_key = dict(zip(keys, recipes, strict=True))
        untrained = {key: r for key, r in by_key.items() if not self._load(key, r, folder)}
        if untrained:
            self._train(untrained, folder)
        for key, recipe in untrained.items():
            if not self._load(key, recipe, folder):
                raise OSError(f"{folder / key}.pt cannot be read after it was written")
        for key in keys:
            self.spent[key] = self._loaded[key].seconds
        return [self._loaded[key] for key in keys]

    def _load(self, key: str, recipe: Recipe, folder: Path) -> bool:
        """Return whether a network is loaded. A damaged file counts as none."""
        path = folder / f"{key}.pt"
        if key in self._loaded:
            return True
        if not path.exists():
            return False
        try:
            model, facts = networks.load(path, recipe)
            names = ("train_error", "test_error", "seconds")
            train_error, test_error, seconds = (float(facts[name]) for name in names)
        except Exception as error:  # torch raises errors of many kinds for damaged files.
            note_damage(path, error)
            return False
        self._loaded[key] = Trained(recipe, key, model, train_error, test_error, seconds, facts)
        return True

    def trained_rows(self, recipes: Mapping[str, Sequence[Recipe]]) -> dict[str, list[Trained]]:
        """Return the networks of each row of a table, trained together over all rows."""
        networks_in_order = iter(
            self.trained([recipe for row in recipes.values() for recipe in row])
        )
        return {name: [next(networks_in_order) for _ in row] for name, row in recipes.items()}

    def step(
        self,
        name: str,
        depends: Mapping[str, Any],
        make: Callable[[], Mapping[str, Any]],
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays that `make` returns, computed once for a name and for `depends`.

        `depends` must hold all that the result depends on, as JSON. `Trained.key` stands for a
        network. If a change of the code changes the results of a step, add or raise a number in
        `depends`.

        Raises
        ------
        TypeError : a result is neither numbers nor text.
        """
        folder = self.out / "cache" / "steps"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{digest({'dataset': self.dataset, **depends})}.npz"
        arrays = _read_step(path)
        if arrays is None:
            begin = time.perf_counter()
            with self.bar(name, None):
                results = {key: np.asarray(value) for key, value in make().items()}
            seconds = time.perf_counter() - begin
            for key, array in results.items():
                if array.dtype.hasobject:  # it would be pickled and could not be read
                    raise TypeError(f"step {name!r}: {key!r} is not an array of numbers or text")
            with replacing(path) as file:
                contents: dict[str, Any] = {**results, "_seconds": np.asarray(seconds)}
                np.savez(file, **contents)
            arrays = _read_step(path)
            if arrays is None:
                raise OSError(f"{path} cannot be read after it was written")
        self.spent[path.stem] = float(arrays.pop("_seconds"))
        return arrays

    @contextmanager
    def bar(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Show a progress bar on stderr if `progress` is set, and yield a function to advance it.

        A bar inside another one stands below it.

        total : number of advances, or None if it is not known.
        """
        if not self.progress:
            yield lambda: None
            return
        outer = self._shown
        with nullcontext(outer) if outer else _display() as display:
            self._shown = display
            task = display.add_task(name, total=total)
            try:
                yield lambda: display.advance(task)
            finally:
                self._shown = outer
                if outer:
                    display.remove_task(task)

    def _train(self, recipes: Mapping[str, Recipe], folder: Path) -> None:
        from joblib import Parallel, delayed

        jobs = (
            delayed(train_to_file)(recipe, folder / f"{key}.pt") for key, recipe in recipes.items()
        )
        with self.bar("training networks", len(recipes)) as advance:
            workers = min(self.workers, len(recipes))  # a single worker is this process
            for _ in Parallel(workers, return_as="generator_unordered")(jobs):
                advance()


def _read_step(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of a finished step, or None if there is no file or it is damaged."""
    if not path.exists():
        return None
    try:
        arrays = read_archive(path, lambda names: None, "biufcU")
        float(arrays["_seconds"])
    except (ValueError, KeyError, TypeError) as error:
        note_damage(path, error)
        return None
    return arrays


def note_damage(path: Path, error: Exception) -> None:
    """Say on stderr that a file is damaged, so that its contents are computed again."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    print(f"note: {path} is damaged and is made again ({reason:.200})", file=sys.stderr, flush=True)


def _display() -> Progress:
    """Make bars with counts and times that vanish at the end.

    Where stderr is not a terminal, they show nothing.
    """
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
