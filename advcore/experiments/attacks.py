"""Adversarial sets of the trained networks, kept as steps of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import advcore
from advcore import data

if TYPE_CHECKING:
    from .run import Run, Trained

CLASSES = 10


@dataclass(frozen=True)
class AdversarialSet:
    """Images (N, 784) in [0, 1], their labels, and what the attack made of them.

    rms : sqrt(mean r^2), the paper's distortion; infinite without success.
    penalty_rms : that of the penalty's minimiser at the final c, NaN where there is none.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    targets: NDArray[np.int64]
    adversarial: NDArray[np.float32]
    success: NDArray[np.bool_]
    rms: NDArray[np.float32]
    penalty_rms: NDArray[np.float32]
    evaluations: NDArray[np.int32]

    @property
    def mean_rms(self) -> float:
        """Mean distortion of the successes, as in the paper's "Av. min. distortion"."""
        return mean(self.rms[self.success])

    def first(self, count: int) -> AdversarialSet:
        """The first `count` images of the set."""
        return AdversarialSet(*(getattr(self, item.name)[:count] for item in fields(self)))

    def scaled(self, rms: float, *, clip: bool = False) -> NDArray[np.float32]:
        """x + rms * sqrt(n) * r / ||r||: every distortion brought to that root mean square."""
        r = self.adversarial - self.images
        norm = np.linalg.norm(r, axis=1, keepdims=True)
        length = np.float32(rms * np.sqrt(r.shape[1]))
        moved: NDArray[Any] = self.images + length * r / np.maximum(norm, np.float32(1e-12))
        return np.clip(moved, 0, 1) if clip else moved


def adversarial_set(
    run: Run,
    network: Trained,
    *,
    split: str,
    count: int,
    targets: str | int = "random",
    **options: Any,
) -> AdversarialSet:
    """Attacks `count` images of "train" or "test".

    targets : "random", uniform over the wrong classes and the same for every network;
        "untargeted"; or a class for all images, those with that label left out.
    options : of `advcore.minimize_distortion`.
    """
    images, labels = run.digits.sample(split, count)
    if isinstance(targets, int):
        images, labels = images[labels != targets], labels[labels != targets]
        wanted = np.full(len(labels), targets, np.int64)
    elif targets == "random":
        wanted = data.random_targets(labels, classes=CLASSES, seed=0)
    elif targets == "untargeted":
        wanted = np.full(len(labels), -1, np.int64)
    else:
        raise ValueError(f'targets must be "random", "untargeted" or a class, got {targets!r}')

    def make() -> dict[str, Any]:
        result = advcore.minimize_distortion(
            network.model,
            images,
            None if targets == "untargeted" else wanted,
            labels=labels if targets == "untargeted" else None,
            **options,
        )
        penalty = result.penalty_distortion
        return {
            "adversarial": result.adversarial,
            "success": result.success,
            "rms": result.rms_distortion,
            "penalty_rms": np.full(len(images), np.nan, np.float32)
            if penalty is None
            else penalty / np.sqrt(images.shape[1]),
            "evaluations": result.evaluations,
        }

    depends = {
        "network": network.key,
        "split": split,
        "count": count,
        "targets": targets,
        "options": options,
    }
    return AdversarialSet(images, labels, wanted, **run.step("attack", depends, make))


def error_percent(network: Trained, images: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of the images whose predicted class is not the label, in percent; NaN of none."""
    from advcore.models import training

    if not len(images):
        return math.nan
    return 100 * training.error_rate(network.model, images, labels)


def mean(values: NDArray[np.floating[Any]]) -> float:
    """Mean; NaN of nothing."""
    return float(values.mean()) if len(values) else math.nan
