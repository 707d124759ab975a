"""The networks of the experiments: a recipe that determines one, its modules, its file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from advcore import models
from advcore.models import training

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe:
    """All that determines a trained network, beside the versions of advcore and torch.

    seed : seed of the initial weights, the order of the batches and dropout.
    half : 0 for all training images, 1 or 2 for one of the halves that the seed `split` gives.
    codes_epochs : number of epochs of the autoencoder below the classifier.
    dropout : rate before each Linear layer. Empty means no dropout.
    feedback : settings of `feedback.train`. None means no adversarial examples in training.
    validation : number of training images, the last ones, that are left out. The facts have the
        error rate on them.
    """

    model: str
    decay: tuple[float, ...]
    dataset: str
    seed: int
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str
    half: int = 0
    split: int = 0
    codes_epochs: int = 0
    dropout: tuple[float, ...] = ()
    feedback: tuple[tuple[str, Any], ...] | None = None
    validation: int = 0


def content(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that name a network's file, without those at their default."""
    return {
        item.name: value
        for item in fields(recipe)
        if (value := getattr(recipe, item.name)) != item.default
    }


@dataclass(frozen=True)
class Schedule:
    """Training of the sigmoid networks at one scale, and the number of epochs of the others."""

    epochs: int
    optimizer: str
    learning_rate: float
    convolutional_epochs: int
    codes_epochs: int
    batch_size: int = 128


# In 40 epochs SGD brings 784-100-100-10 to 1.9% test errors and Adam to 2.2%. In a few epochs Adam
# gets further.
SCHEDULES = {
    "full": Schedule(40, "sgd", 0.5, convolutional_epochs=3, codes_epochs=15),
    "quick": Schedule(8, "adam", 1e-2, convolutional_epochs=1, codes_epochs=3),
    "tiny": Schedule(20, "adam", 1e-2, convolutional_epochs=3, codes_epochs=3, batch_size=32),
}

# Each row of the paper's table 1 has a builder and a weight decay.
PAPER = {
    "FC10(1e-4)": ("fc10", (1e-4,)),
    "FC10(1e-2)": ("fc10", (1e-2,)),
    "FC10(1)": ("fc10", (1.0,)),
    "FC100-100-10": ("fc100_100_10", models.WEIGHT_DECAY["fc100_100_10"]),
    "FC200-200-10": ("fc200_200_10", models.WEIGHT_DECAY["fc200_200_10"]),
    "AE400-10": ("autoencoder400_10", models.WEIGHT_DECAY["autoencoder400_10"]),
}
CONVOLUTIONAL = {"SmallCNN": ("small_cnn", models.WEIGHT_DECAY["small_cnn"])}


def recipe(scale: str, dataset: str, model: str, seed: int, **changes: Any) -> Recipe:
    """Return the recipe of a builder of `advcore.models` at a scale, with some fields changed."""
    # The 800 embedded digits need the small batches of the smallest scale.
    schedule = SCHEDULES["tiny" if dataset == "embedded" else scale]
    result = Recipe(
        model=model,
        decay=models.WEIGHT_DECAY[model],
        dataset=dataset,
        seed=seed,
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        optimizer=schedule.optimizer,
    )
    if model == "small_cnn":
        result = replace(
            result,
            epochs=schedule.convolutional_epochs,
            learning_rate=1e-3,
            optimizer="adam",
        )
    if model == "autoencoder400_10":
        result = replace(result, codes_epochs=schedule.codes_epochs)
    if model == "fc123_456_10":  # at 0.5 (SGD) or 1e-2 (Adam) it stays at 89% errors
        result = replace(result, learning_rate=0.4 * result.learning_rate)
    if model == "fc10":  # lambda = 1 needs less than 1e-2 (Adam) or 0.5 (SGD) to converge
        result = replace(result, learning_rate=result.learning_rate / 5)
    return replace(result, **changes)


def build(recipe: Recipe) -> torch.nn.Sequential:
    """Build the untrained network."""
    if recipe.dropout:
        widths = [int(width) for width in recipe.model.removeprefix("fc").split("_")]
        return models.fully_connected(widths, dropout=recipe.dropout, seed=recipe.seed)
    make: Any = getattr(models, recipe.model)
    network: torch.nn.Sequential = make(seed=recipe.seed)
    return network


def load(path: Path, recipe: Recipe) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    """Load a network in eval mode and its facts from a file of `make.train_to_file`."""
    import torch

    contents = torch.load(path, weights_only=True)
    model = build(recipe)
    model.load_state_dict(contents["weights"])
    return model.eval().requires_grad_(False), contents["facts"]


def fit(
    model: torch.nn.Module,
    images: NDArray[Any],
    labels: NDArray[Any],
    recipe: Recipe,
    extra_loss: Callable[[], torch.Tensor] | None = None,
) -> None:
    """Call `training.train` with the fields of the recipe."""
    training.train(
        model,
        images,
        labels,
        weight_decay=recipe.decay,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        optimizer=recipe.optimizer,
        seed=recipe.seed,
        extra_loss=extra_loss,
    )
