"""Adversarial sets of the trained networks, stored as steps of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import advcore
from advcore import data

from .digits import CLASSES, mean

if TYPE_CHECKING:
    from .run import Run, Trained


@dataclass(frozen=True)
class AdversarialSet:
    """Images, their labels, and the results of an attack on them.

    images, adversarial : (N, 784) in [0, 1].
    labels, targets : (N,); a target of -1 stands for an untargeted attack.
    rms : (N,) sqrt(mean r^2), the paper's distortion. It is infinite without success.
    penalty_rms : (N,) the same for the penalty's minimiser at the final c, NaN where there is none.
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
        """The mean distortion of the successes, as in the paper's "Av. min. distortion"."""
        return mean(self.rms[self.success])

    def first(self, count: int) -> AdversarialSet:
        """Return the first `count` images of the set."""
        return AdversarialSet(*(getattr(self, item.name)[:count] for item in fields(self)))

    def scaled(self, rms: float, *, clip: bool = False) -> NDArray[np.float32]:
        """Return x + rms * sqrt(n) * r / ||r||, so that each distortion has that rms."""
        r = self.adversarial - self.images
        norm = np.linalg.norm(r, axis=1, keepdims=True)
        length = np.float32(rms * np.sqrt(r.shape[1]))
        scaled: NDArray[Any] = self.images + length * r / np.maximum(norm, np.float32(1e-12))
        return np.clip(scaled, 0, 1) if clip else scaled


def adversarial_set(
    run: Run,
    network: Trained,
    *,
    split: str,
    count: int,
    targets: str | int = "random",
    **options: Any,
) -> AdversarialSet:
    """Attack `count` images of "train" or "test".

    targets : "random" draws uniformly from the wrong classes, the same for every network.
        "untargeted" names no class. An integer is the class for all images; images with that label
        are left out.
    options : options of `advcore.minimize_distortion`.

    Raises
    ------
    ValueError : `targets` is none of these.
    """
    images, labels = run.digits.sample(split, count)
    if isinstance(targets, int):
        images, labels = images[labels != targets], labels[labels != targets]
        target_classes = np.full(len(labels), targets, np.int64)
    elif targets == "random":
        target_classes = data.random_targets(labels, classes=CLASSES, seed=0)
    elif targets == "untargeted":
        target_classes = np.full(len(labels), -1, np.int64)
    else:
        raise ValueError(f'targets must be "random", "untargeted" or a class, got {targets!r}')

    def make() -> dict[str, Any]:
        result = advcore.minimize_distortion(
            network.model,
            images,
            None if targets == "untargeted" else target_classes,
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
    return AdversarialSet(images, labels, target_classes, **run.step("attack", depends, make))


def error_percent(network: Trained, images: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the share of misclassified images in percent, or NaN without images."""
    from advcore.models import training

    if not len(images):
        return math.nan
    return 100 * training.error_rate(network.model, images, labels)


def mean_penalty(examples: AdversarialSet) -> float:
    """Return the mean rms distortion of the penalty's minimisers, where the run found one.

    An image that was adversarial already counts as 0.
    """
    penalty = np.where(examples.rms == 0, 0, examples.penalty_rms)
    return mean(penalty[examples.success & np.isfinite(penalty)])
