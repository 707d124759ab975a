"""A run of experiments: its folder, data, trained networks and the steps it has finished."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
        self.seconds = 0.0
        """Computing time of all networks and steps asked for, restored ones at their own."""
        self._loaded: dict[str, Trained] = {}

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
        keys = [digest(asdict(recipe)) for recipe in recipes]
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
                seconds = float(facts.pop("seconds"))
                errors = [float(facts.pop(f"{part}_error")) for part in ("train", "test")]
                self._loaded[key] = Trained(recipe, key, model, *errors, seconds, facts)
                self.seconds += seconds
        return [self._loaded[key] for key in keys]

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
            made = {key: np.asarray(value) for key, value in make().items()}
            seconds = time.perf_counter() - begin
            with replacing(path) as file:
                np.savez(file, **made, _seconds=np.asarray(seconds))
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        self.seconds += float(arrays.pop("_seconds"))
        return arrays

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A progress bar on stderr where `progress` was asked for; yields a function to advance."""
        if not self.progress:
            yield lambda: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()),
        )
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(what, total=total)
            yield lambda: shown.advance(task)

    def _train(self, missing: Mapping[str, Recipe], folder: Path) -> None:
        from joblib import Parallel, delayed

        jobs = (
            delayed(networks.train_to_file)(recipe, folder / f"{key}.pt")
            for key, recipe in missing.items()
        )
        with self.bar("training networks", len(missing)) as advance:
            for _ in Parallel(self.workers, return_as="generator_unordered")(jobs):
                advance()


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
