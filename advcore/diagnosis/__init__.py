"""Whether a model and images can be attacked by gradients, and what is wrong where not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..api import minimize_distortion
from ..errors import ModelError
from ..result.statistics import already_count
from .checks import (
    Subject,
    check_gradients,
    check_images,
    check_outputs,
    check_precision,
    check_preprocessing,
)
from .findings import LEVELS, NAMES, Diagnosis, Finding, finding
from .probe import boundary_distances

__all__ = ["NAMES", "Diagnosis", "Finding", "diagnose"]

NEARER = 0.95
"""Distance of the probe over that of the attack below which the gradient misleads."""
MOST_NEARER = 0.2
"""Share of images for which that may be so by chance."""


def diagnose(
    model: Any,
    images: Any,
    labels: Any = None,
    *,
    bounds: Any = (0.0, 1.0),
    count: int = 16,
    seed: int = 0,
) -> Diagnosis:
    """Look for what would make an attack by gradients say too much, and name it.

    The model is not changed; of a module in training mode a copy in evaluation mode is looked at.
    It takes some 2,000 forwards an image, most of them for distances without a gradient.

    Parameters
    ----------
    model, bounds : as `advcore.minimize_distortion` takes them.
    images : array or tensor (N, ...)
    labels : (N,) int, optional
        True classes. Without them the accuracy and the preprocessing are not looked at.
    count : int
        The first images that are looked at.
    seed : int
        Seed of the random directions.

    Returns
    -------
    Diagnosis
        Findings of the names in `NAMES`, the gravest first, with evidence, what an attack does
        about each by itself, and what you can do.

    Raises
    ------
    TypeError, ValueError
        There are no images, they are not finite, or the model cannot be evaluated at all.
    """
    count = validate.integer(count, "count", minimum=1)
    arrays = validate.images(images[:count])
    if not len(arrays):
        raise ValueError("images must be one or more, got none")
    limits = validate.pair(bounds, "bounds")
    findings = check_images(arrays, limits)
    if any(each.name == "image_range" for each in findings):
        return Diagnosis(findings, {})
    flat = np.ascontiguousarray(arrays.reshape(len(arrays), -1), np.float32)
    low, high = (
        np.broadcast_to(np.asarray(limit, np.float32), arrays.shape).reshape(flat.shape)
        for limit in limits
    )
    if findings:  # normalised: the range of the values stands for the bounds
        low, high = np.full_like(flat, flat.min()), np.full_like(flat, flat.max())
    classes: Any = None
    if labels is not None:
        classes = validate.classes(labels, "labels", len(images), 2**31 - 1)
        classes = classes[:count].astype(np.int64)
    subject = Subject(model, flat, arrays.shape[1:], classes, (low, high), findings)
    check_outputs(subject)
    check_precision(subject)
    if not {"probabilities", "random_output"} & {each.name for each in findings}:
        check_preprocessing(subject)
        check_gradients(subject)
        _compare_distances(subject, arrays, seed)
    findings.sort(key=lambda each: LEVELS.index(each.level))
    return Diagnosis(findings, subject.measured)


def _compare_distances(subject: Subject, images: NDArray[Any], seed: int) -> None:
    """Compare distances of an attack with those that forwards alone find."""
    predicted = subject.logits.argmax(axis=1).astype(np.int64)
    limits = (float(subject.bounds[0].min()), float(subject.bounds[1].max()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = minimize_distortion(
                subject.model, images, labels=predicted, bounds=limits, effort="fast", record=False
            )
    except (TypeError, ValueError, ModelError) as error:
        subject.findings.append(finding("refused", " ".join(str(error).split())))
        return
    attack = result.minimum_distortion()
    free = boundary_distances(
        lambda x: np.asarray(subject.forward(x).argmax(axis=1), np.int64),
        subject.images,
        predicted,
        subject.bounds,
        seed,
    )
    nearer = free < NEARER * attack
    kept = len(attack) - already_count(result)
    subject.measured["distances"] = (
        f"attack {_median(attack)}, without a gradient {_median(free)} (medians)"
    )
    if kept and nearer.sum() > MOST_NEARER * kept:
        subject.add(
            "masked_gradient",
            f"forwards alone find nearer images for {int(nearer.sum())} of {kept}: median distance "
            f"{_median(free)}, the attack {_median(attack)}",
        )


def _median(values: NDArray[np.float64]) -> str:
    return f"{np.median(values):.3g}"
