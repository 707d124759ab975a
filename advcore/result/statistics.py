"""Figures over the images of a result: over all of them, of each class, and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._durations import precise
from .record import labels_of

if TYPE_CHECKING:
    from .core import Result


@dataclass(frozen=True)
class ClassStatistics:
    """Figures over the images of one class.

    Attributes
    ----------
    label : int
    images, adversarial, already_adversarial : int
        Numbers of all images of the class, of the successes, and of those among them that were
        adversarial without a change.
    mean, median : float
        Distortion of the successes that needed a change. NaN: there is none.
    evaluations : float
        Mean of the pairs of a forward and a backward.
    accuracy : tuple of float
        Share of the images that withstood the attack, at each ``eps`` that was asked for.
    """

    label: int
    images: int
    adversarial: int
    already_adversarial: int
    mean: float
    median: float
    evaluations: float
    accuracy: tuple[float, ...]


def per_class(result: Result, eps: Sequence[float]) -> list[ClassStatistics]:
    """Return the figures of each class that a label names, in the order of the classes."""
    table = []
    for label in np.unique(known_labels(result)).tolist():
        part = result[result.label == label]
        changed = changed_distortions(part)
        table.append(
            ClassStatistics(
                label,
                len(part),
                int(part.success.sum()),
                already_count(part),
                float(changed.mean()) if len(changed) else np.nan,
                float(np.median(changed)) if len(changed) else np.nan,
                float(part.evaluations.mean()),
                tuple(part.robust_accuracy(float(limit)) for limit in eps),
            )
        )
    return table


def class_counts(result: Result) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which class was led to which, as `Result.class_counts` says."""
    rows = result.success & (known_labels(result) >= 0)
    pairs = np.stack([result.label[rows], result.prediction[rows]])
    classes, places = np.unique(pairs, return_inverse=True)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, tuple(places.reshape(2, -1)), 1)
    return classes, counts


def known_labels(result: Result) -> NDArray[np.int64]:
    """Return the labels (N,).

    Raises
    ------
    ValueError
        An image has none.
    """
    if (result.label < 0).any():
        raise ValueError(
            "the result has no labels: give labels= to the call, or set result.label, (N,)"
        )
    return result.label


def already_count(result: Result) -> int:
    """Return the number of images that were adversarial without a change."""
    return int((result.status == status_code("already_adversarial")).sum())


def changed_distortions(result: Result) -> NDArray[np.float64]:
    """Return the distortions of the successes that were not adversarial already."""
    rows = result.success & (result.status != status_code("already_adversarial"))
    return np.asarray(result.distortion[rows], np.float64)


def statistics(result: Result, eps: Sequence[float]) -> dict[str, Any]:
    """Return the figures over all images, as `Result.statistics` says."""
    count, success = len(result), result.success
    all_found = result.distortion[success].astype(np.float64)
    changed = changed_distortions(result)
    rms = result.rms_distortion[success].astype(np.float64)
    evaluations = result.evaluations
    given = labels_of(result.record) == "given" and not result.targeted
    return {
        "images": count,
        "adversarial": int(success.sum()),
        "already_adversarial": already_count(result),
        "labels": labels_of(result.record),
        "targeted": result.targeted,
        "clean_accuracy": result.robust_accuracy(0.0) if given and count else None,
        "withstood": [
            {"eps": float(limit), "share": result.robust_accuracy(float(limit)) if count else None}
            for limit in eps
        ],
        "norm": result.norm,
        "distortion": _center(all_found),
        "distortion_of_changed": _center(changed),
        "rms_distortion": _center(rms),
        "evaluations": _spread(evaluations),
        "forwards": _spread(result.forwards),
        "queries": _spread(result.queries),
        "seconds": result.seconds,
        "images_per_second": images_per_second(result),
        "status": result.status_counts(),
    }


def _center(values: NDArray[np.float64]) -> dict[str, float | None]:
    if not len(values):
        return {"mean": None, "median": None}
    return {"mean": float(values.mean()), "median": float(np.median(values))}


def _spread(values: NDArray[Any]) -> dict[str, float | None]:
    if not len(values):
        return {"mean": None, "p99": None}
    return {"mean": float(values.mean()), "p99": float(np.percentile(values, 99))}


def summary(result: Result, eps: Sequence[float]) -> str:
    """Return the figures as a few lines of text, as `Result.summary` says."""
    figures = statistics(result, eps)
    count, successes, path = figures["images"], figures["adversarial"], result.path_text()
    if count == 0:
        return f"0 images, {path}"
    lines = [
        f"{count} images, {successes} adversarial ({successes / count:.1%}), "
        f"{result.seconds:.3g} s, {figures['images_per_second']:.4g} images/s, {path}"
    ]
    if result.engine.get("path") == "torch" and "reason" in result.engine:
        lines.append(f"why through torch: {result.engine['reason']}")
    lines += [f"{name}: {text}" for name, text in accuracy_rows(result, figures)]
    if successes:
        rms = figures["rms_distortion"]["mean"]
        lines.append(
            f"distortion {result.measure}: {distortion_text(result, figures)}; rms: mean {rms:.4f}"
        )
    if result.penalty_distortion is not None and successes:
        penalty = result.penalty_distortion[result.success].astype(np.float64)
        if np.isfinite(penalty).any():
            lines.append(f"penalty minimiser ||r||: mean {np.nanmean(penalty):.4f}")
    lines += [
        f"evaluations: {evaluations_text(figures)}; "
        f"further forwards: mean {figures['forwards']['mean']:.1f}",
        "status: " + result.status_text(),
    ]
    blind = figures["status"].get("no_gradient", 0)
    if blind:
        lines.append(
            f"no gradient at {blind} of the clean images: found from a random direction, "
            "distortions may be far above the smallest"
        )
    return "\n".join(lines)


def accuracy_rows(result: Result, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and texts of the clean accuracy and the share that withstood, where known."""
    rows = []
    if figures["clean_accuracy"] is not None:
        rows.append(("clean accuracy", f"{figures['clean_accuracy']:.1%}"))
    shares = [
        f"{entry['share']:.1%} at {result.measure} <= {entry['eps']:g}"
        for entry in figures["withstood"]
        if entry["share"] is not None
    ]
    if shares:
        rows.append((withstood_name(result), ", ".join(shares)))
    return rows


def withstood_name(result: Result) -> str:
    """Return what the share of the images that withstood the attack is called."""
    if result.targeted:
        return "not taken for the target"
    names = {"given": "robust accuracy", "predicted": "predictions unchanged"}
    return names.get(labels_of(result.record), "withstood")


def distortion_text(result: Result, figures: dict[str, Any]) -> str:
    """Return mean and median over the successes, and over those that needed a change."""
    found, changed = figures["distortion"], figures["distortion_of_changed"]
    text = f"mean {found['mean']:.4f}, median {found['median']:.4f}"
    if not figures["already_adversarial"]:
        return text
    note = already_note(result)
    if changed["mean"] is not None:
        others = f"; without them mean {changed['mean']:.4f}, median {changed['median']:.4f})"
        note = note.removesuffix(")") + others
    return text + note


def evaluations_text(figures: dict[str, Any]) -> str:
    """Return mean and 99th percentile of the evaluations, with the time beside them."""
    mean, images = figures["evaluations"]["mean"], figures["images"]
    text = f"mean {mean:.1f}, p99 {figures['evaluations']['p99']:.0f}"
    return f"{text}, {precise(figures['seconds'] / images)} an image"


def images_per_second(result: Result) -> float:
    """Return the finished images, all but the interrupted ones, per second of wall time."""
    finished = int((result.status != status_code("interrupted")).sum())
    return finished / max(result.seconds, 1e-9)


def already_note(result: Result) -> str:
    """Return a note on a mean distortion, " (N already adversarial count as 0)", or nothing."""
    already = already_count(result)
    return f" ({already} already adversarial count as 0)" if already else ""


def status_code(name: str) -> int:
    """Return the value of a status by name, from the compiled module."""
    return status_codes()[name]


def status_codes() -> dict[str, int]:
    """Return the values of all statuses by name."""
    from .._core import Status

    return {name: int(member.value) for name, member in Status.__members__.items()}


def status_names() -> dict[int, str]:
    """Return the names of all statuses by value."""
    return {code: name for name, code in status_codes().items()}
