"""The training of the experiments' networks, and the files that it writes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advcore._files import replacing
from advcore.models import training

from . import feedback
from .digits import Digits
from .networks import Recipe, build, fit

if TYPE_CHECKING:
    import torch


def train_to_file(recipe: Recipe, path: Path) -> None:
    """Train on one thread and write weights and facts (errors in percent, seconds) to `path`.

    On one thread the weights do not depend on the machine's CPUs.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        model, facts = train(recipe)
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)  # torch's default; it cannot be asked for
    with replacing(path) as file:
        torch.save({"weights": model.state_dict(), "facts": facts, "recipe": asdict(recipe)}, file)


def train(recipe: Recipe) -> tuple[torch.nn.Sequential, dict[str, Any]]:
    """Train a network, and return it with its facts: errors in percent, seconds."""
    digits = Digits.load(recipe.dataset)
    images, labels = digits.training_part(recipe.half, recipe.split)
    cut = len(images) - recipe.validation
    model = build(recipe)
    begin = time.perf_counter()
    facts: dict[str, Any] = {}
    if recipe.feedback is not None:
        facts |= feedback.train(model, images[:cut], labels[:cut], recipe)
    elif recipe.codes_epochs:
        _train_on_codes(model, images[:cut], labels[:cut], recipe)
    else:
        fit(model, images[:cut], labels[:cut], recipe)
    facts["seconds"] = time.perf_counter() - begin
    parts = {
        "train": (images[:cut], labels[:cut]),
        "test": (digits.test_images, digits.test_labels),
    }
    if recipe.validation:
        parts["validation"] = (images[cut:], labels[cut:])
    for part, (x, y) in parts.items():
        facts[f"{part}_error"] = 100 * training.error_rate(model, x, y)
    return model, facts


def _train_on_codes(
    model: torch.nn.Sequential, images: NDArray[Any], labels: NDArray[Any], recipe: Recipe
) -> None:
    """Train the autoencoder first, then the softmax layer on its code alone."""
    import torch

    encoder, classifier = (layer for layer in model if isinstance(layer, torch.nn.Linear))
    training.train_autoencoder(
        encoder, images, epochs=recipe.codes_epochs, batch_size=recipe.batch_size, seed=recipe.seed
    )
    with torch.inference_mode():
        codes = encoder(torch.as_tensor(images)).sigmoid().numpy()
    fit(classifier, np.ascontiguousarray(codes), labels, recipe)
