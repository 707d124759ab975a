"""The networks of `training` and `layers`: settings of each row, and the choice among them.

Where a row has several settings, the one with the fewest errors on held-out training images is
chosen. The test set has no part in the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .feedback import Feedback

if TYPE_CHECKING:
    from .run import Run, Trained

MODEL = "fc100_100_10"
PAPER_DECAY = "weight decay of table 1"
DECAY = "weight decay alone"
DROPOUT = "dropout"
INPUT, FIRST, SECOND, ALL = "pool: images", "pool: hidden 1", "pool: hidden 2", "pools: all three"
POOLS = {INPUT: (0,), FIRST: (1,), SECOND: (2,), ALL: (0, 1, 2)}
TUNING_SEED = 0
Changes = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Settings of both experiments at one scale.

    epochs : number of epochs of the networks without dropout.
    dropout_epochs : the same with dropout. Those networks have one batch a step, not two.
    decays : lambdas to try. One lambda holds for all layers.
    dropouts : triples to try: rate of the pixels, rate of the hidden units, lambda.
    pools : pairs to try: reach and weight.
    pool : the other fields of `Feedback`.
    validation : number of the last training images, which are left out to choose the settings.
    images : number of test images that are attacked with random targets.
    """

    epochs: int
    dropout_epochs: int
    decays: tuple[float, ...]
    dropouts: tuple[tuple[float, float, float], ...]
    pools: tuple[tuple[float, float], ...]
    pool: tuple[tuple[str, Any], ...] = ()
    validation: int = 10_000
    images: int = 1000


SETTINGS = {
    "full": Settings(
        epochs=40,
        dropout_epochs=80,
        decays=(3e-4, 1e-3, 2e-3, 4e-3),
        dropouts=((0.1, 0.1, 1e-4), (0.2, 0.1, 1e-4), (0.2, 0.0, 3e-4), (0.1, 0.1, 1e-3)),
        pools=((1.0, 0.02), (0.5, 0.3)),
    ),
    "quick": Settings(
        epochs=4,
        dropout_epochs=4,
        decays=(1e-3,),
        dropouts=((0.1, 0.1, 1e-4),),
        pools=((0.5, 0.3),),
        images=300,
    ),
    "tiny": Settings(
        epochs=6,
        dropout_epochs=12,
        decays=(1e-4, 1e-2),
        dropouts=((0.1, 0.1, 1e-4),),
        pools=((0.5, 0.3),),
        pool=(("size", 200), ("every", 20), ("warmup", 50), ("batch", 32)),
        validation=100,
        images=40,
    ),
}


@dataclass(frozen=True)
class Choice:
    """The best of several settings.

    changes : fields of the recipe that differ from the default.
    tried : error of each setting in percent of the held-out images. It is empty where there was one
        setting only.
    """

    changes: Changes
    tried: dict[str, float]


def choose(run: Run, settings: Settings, row: str) -> Choice:
    """Choose the setting of a row with the fewest errors on held-out images, at one seed."""
    options = candidates(settings, row, _best_decay(run, settings) if row in POOLS else ())
    if len(options) == 1:
        return Choice(next(iter(options.values())), {})
    trained = run.trained(
        [
            run.recipe(MODEL, TUNING_SEED, validation=settings.validation, **changes)
            for changes in options.values()
        ]
    )
    errors = [float(one.facts["validation_error"]) for one in trained]
    winner = list(options)[int(np.argmin(errors))]
    return Choice(options[winner], dict(zip(options, errors, strict=True)))


def _best_decay(run: Run, settings: Settings) -> tuple[float, ...]:
    decay: tuple[float, ...] = choose(run, settings, DECAY).changes["decay"]
    return decay


def candidates(settings: Settings, row: str, decay: tuple[float, ...]) -> dict[str, Changes]:
    """Return the settings of a row, in words and as changes of the recipe.

    decay : weight decay of the networks with pools.
    """
    epochs = {"epochs": settings.epochs}
    if row == PAPER_DECAY:
        return {"lambda of the paper's table 1": epochs}
    if row == DECAY:
        return {f"lambda {value:g}": {**epochs, "decay": (value,) * 3} for value in settings.decays}
    if row == DROPOUT:
        return {
            f"rates {pixels:g}, {units:g}, {units:g}, lambda {value:g}": {
                "epochs": settings.dropout_epochs,
                "decay": (value,) * 3,
                "dropout": (pixels, units, units),
            }
            for pixels, units, value in settings.dropouts
        }
    settings_by_text = {}
    for reach, weight in settings.pools:
        pool = Feedback(POOLS[row], reach=reach, weight=weight, **dict(settings.pool))
        text = f"reach {reach:g}, weight {weight:g}"
        settings_by_text[text] = {**epochs, "decay": decay, "feedback": pool.pairs()}
    return settings_by_text


def trained(
    run: Run, settings: Settings, rows: Sequence[str]
) -> tuple[dict[str, list[Trained]], dict[str, Choice]]:
    """Train the networks of these rows, one a seed, and return them with the choices."""
    choices = {row: choose(run, settings, row) for row in rows}
    recipes = {
        row: [run.recipe(MODEL, seed, **choice.changes) for seed in run.seeds]
        for row, choice in choices.items()
    }
    return run.trained_rows(recipes), choices
