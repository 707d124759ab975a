"""The networks of the experiments: a recipe that says all about one, its training, its file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advcore import models
from advcore.models import training

from .digits import Digits

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Recipe:
    """What determines a trained network, beside the versions of advcore and torch.

    seed : of the initial weights, the order of the batches and dropout.
    half : 0, all training images; 1 or 2, one of the halves that the seed `split` cuts them in.
    codes_epochs : epochs of the autoencoder below the classifier.
    dropout : rate before each Linear layer; empty: none.
    feedback : settings of `feedback.train`; None: no adversarial examples in training.
    validation : training images left out (the last of the part), error rate in the facts.
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


def content(wanted: Recipe) -> dict[str, Any]:
    """The fields that name a network's file: those at their default are no part of it."""
    return {
        item.name: value
        for item in fields(wanted)
        if (value := getattr(wanted, item.name)) != item.default
    }


@dataclass(frozen=True)
class Schedule:
    """Training of the sigmoid networks at one scale, and the epochs of the others."""

    epochs: int
    optimizer: str
    learning_rate: float
    convolutional_epochs: int
    codes_epochs: int
    batch_size: int = 128


# SGD leaves 784-100-100-10 at 1.9% test errors in 40 epochs, Adam at 2.2%, but Adam gets further in
# a few steps.
SCHEDULES = {
    "full": Schedule(40, "sgd", 0.5, convolutional_epochs=3, codes_epochs=15),
    "quick": Schedule(8, "adam", 1e-2, convolutional_epochs=1, codes_epochs=3),
    "tiny": Schedule(20, "adam", 1e-2, convolutional_epochs=3, codes_epochs=3, batch_size=32),
}

# The rows of the paper's table 1: name there, builder and weight decay.
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
    """The recipe of a builder of `advcore.models` at a scale, with fields changed as asked for."""
    # a few hundred digits need the small batches of the smallest scale
    schedule = SCHEDULES["tiny" if dataset == "embedded" else scale]
    plain = Recipe(
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
        plain = replace(
            plain,
            epochs=schedule.convolutional_epochs,
            learning_rate=1e-3,
            optimizer="adam",
        )
    if model == "autoencoder400_10":
        plain = replace(plain, codes_epochs=schedule.codes_epochs)
    if model == "fc123_456_10":  # SGD at 0.5 and Adam at 1e-2 leave it at 89% errors, a plateau
        plain = replace(plain, learning_rate=0.4 * plain.learning_rate)
    if model == "fc10":  # Adam at 1e-2 and SGD at 0.5 do not come to rest at lambda = 1
        plain = replace(plain, learning_rate=plain.learning_rate / 5)
    return replace(plain, **changes)


def build(wanted: Recipe) -> torch.nn.Sequential:
    """The untrained network."""
    if wanted.dropout:
        widths = [int(width) for width in wanted.model.removeprefix("fc").split("_")]
        return models.fully_connected(widths, dropout=wanted.dropout, seed=wanted.seed)
    make: Any = getattr(models, wanted.model)
    network: torch.nn.Sequential = make(seed=wanted.seed)
    return network


def train_to_file(wanted: Recipe, path: Path) -> None:
    """Trains on one thread, so that the weights do not depend on the machine's CPUs, and writes
    weights and facts (error rates in percent, seconds) to `path`.
    """
    import torch

    from .run import replacing

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        model, facts = train(wanted)
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)  # torch's default; it cannot be asked for
    with replacing(path) as file:
        torch.save({"weights": model.state_dict(), "facts": facts, "recipe": asdict(wanted)}, file)


def load(path: Path, wanted: Recipe) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    """Network in eval mode, and facts, from a file of `train_to_file`."""
    import torch

    stored = torch.load(path, weights_only=True)
    model = build(wanted)
    model.load_state_dict(stored["weights"])
    return model.eval().requires_grad_(False), stored["facts"]


def train(wanted: Recipe) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    """The trained network and what is known about it."""
    digits = Digits.load(wanted.dataset)
    images, labels = digits.training_part(wanted.half, wanted.split)
    cut = len(images) - wanted.validation
    model = build(wanted)
    begin = time.perf_counter()
    facts: dict[str, Any] = {}
    if wanted.feedback is not None:
        from . import feedback

        facts |= feedback.train(model, images[:cut], labels[:cut], wanted)
    elif wanted.codes_epochs:
        _train_on_codes(model, images[:cut], labels[:cut], wanted)
    else:
        fit(model, images[:cut], labels[:cut], wanted)
    facts["seconds"] = time.perf_counter() - begin
    parts = {
        "train": (images[:cut], labels[:cut]),
        "test": (digits.test_images, digits.test_labels),
    }
    if wanted.validation:
        parts["validation"] = (images[cut:], labels[cut:])
    for part, (x, y) in parts.items():
        facts[f"{part}_error"] = 100 * training.error_rate(model, x, y)
    return model, facts


def fit(
    model: torch.nn.Module,
    images: NDArray[Any],
    labels: NDArray[Any],
    wanted: Recipe,
    extra_loss: Callable[[], torch.Tensor] | None = None,
) -> None:
    """`training.train` with the fields of the recipe."""
    training.train(
        model,
        images,
        labels,
        weight_decay=wanted.decay,
        epochs=wanted.epochs,
        batch_size=wanted.batch_size,
        learning_rate=wanted.learning_rate,
        optimizer=wanted.optimizer,
        seed=wanted.seed,
        extra_loss=extra_loss,
    )


def _train_on_codes(
    model: torch.nn.Sequential, images: NDArray[Any], labels: NDArray[Any], wanted: Recipe
) -> None:
    """The autoencoder first, then the softmax layer on its code alone."""
    import torch

    encoder, classifier = (layer for layer in model if isinstance(layer, torch.nn.Linear))
    training.train_autoencoder(
        encoder, images, epochs=wanted.codes_epochs, batch_size=wanted.batch_size, seed=wanted.seed
    )
    with torch.inference_mode():
        codes = encoder(torch.as_tensor(images)).sigmoid().numpy()
    fit(classifier, np.ascontiguousarray(codes), labels, wanted)
