"""The checks of a diagnosis that look at images, outputs and gradients."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..network import Network
from ..oracles import NumpyOracle, TorchOracle
from ..oracles.gradient_check import gradients, ratios
from ..oracles.logits import batched, margins, row_differences, softmax_output
from ..oracles.module_of import module_of
from .findings import Finding, finding

Floats = NDArray[np.float32]

ROWS = 64
"""Images of a forward."""
ULP = 2.0**-25
"""Share of the other classes below which a softmax is 1 in float32."""
NOISE = 1e-4
"""Change of the logits, relative to the largest, that is more than rounding."""
AGREES = (0.5, 2.0)
"""Quotients of a change and what the gradient says that pass, at the median image."""
STANDARD = {
    3: {
        "ImageNet's mean and deviation": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "CIFAR-10's mean and deviation": ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]),
    },
    1: {"MNIST's mean and deviation": ([0.1307], [0.3081])},
}
"""Usual normalisations by the number of channels."""
GAIN = 0.2
"""Accuracy that another preprocessing must gain to be told."""
LEAST = 0.5
"""Accuracy below which nothing is right."""


@dataclass
class Subject:
    """A model and images that are looked at.

    Attributes
    ----------
    model : object
        As it came; of a module in training mode a copy in evaluation mode.
    images : (N, n) float32, and ``shape``, that of one image for the model.
    labels : (N,) int64, or None
    bounds : pair of (n,) or (N, n) float32
    findings : list of Finding
    measured : dict of str to str
    """

    model: Any
    images: Floats
    shape: tuple[int, ...]
    labels: NDArray[np.int64] | None
    bounds: tuple[Floats, Floats]
    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.module = None if isinstance(self.model, Network) else module_of(self.model).inner
        if self.module is not None:
            self._look_at_mode(self.module)
        self.oracle = _oracle(self.model, self.shape, self.images[:1])
        self.logits = self.forward(self.images)

    def forward(self, x: Floats) -> Floats:
        """Return the logits (M, K) of images (M, n)."""
        return batched(lambda part: self.oracle.forward(part, grad=False), x.copy(), ROWS)

    def add(self, name: str, evidence: str) -> None:
        """Add a finding."""
        self.findings.append(finding(name, evidence))

    def accuracy(self, x: Floats) -> float:
        """Return the share of images that get their label."""
        return float((self.forward(x).argmax(axis=1) == self.labels).mean())

    def _look_at_mode(self, module: Any) -> None:
        names = [name or "the module" for name, part in module.named_modules() if part.training]
        self.measured["mode"] = f"{len(names)} parts in training mode"
        if not names:
            return
        self.add("training_mode", f"{len(names)} parts are in training mode, first {names[0]}")
        if self.model is module:
            self.model = self.module = copy.deepcopy(module).eval()


def _oracle(model: Any, shape: tuple[int, ...], sample: Floats) -> Any:
    """Return the model's oracle, without the trials that would refuse it."""
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "forward") and hasattr(model, "backward"):
        return NumpyOracle(model, shape, sample)
    called = model if callable(model) else module_of(model).module
    with warnings.catch_warnings():  # What it warns of is a finding.
        warnings.simplefilter("ignore")
        return TorchOracle(called, shape, sample=sample, survey=False)


def check_images(images: NDArray[Any], bounds: Any) -> list[Finding]:
    """Look at the values of images (N, ...), before a model does."""
    values = np.asarray(validate.to_numpy(images))
    low, high = float(values.min()), float(values.max())
    least, most = float(np.min(bounds[0])), float(np.max(bounds[1]))
    if note := validate.normalised_note(values):
        return [finding("normalised_images", note.partition(";")[0])]
    if low < least or high > most:
        outside = f"values from {low:.4g} to {high:.4g}, outside {least:g} to {most:g}"
        return [finding("image_range", outside)]
    return []


def check_outputs(subject: Subject) -> None:
    """Look at the logits: finite, repeatable, alone as in a batch, no probabilities, saturated."""
    logits, add = subject.logits, subject.add
    scale = float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0)) or 1.0
    again = float(row_differences(subject.forward(subject.images), logits).max(initial=0.0))
    subject.measured["repeated"] = f"logits differ by {again:.3g}, of {scale:.3g}"
    if np.isnan(logits).any():
        rows = int(np.isnan(logits).any(axis=1).sum())
        add("non_finite_output", f"{rows} of {len(logits)} images give NaN")
    if again > NOISE * scale:
        add("random_output", f"two forwards differ by {again:.3g}, of {scale:.3g}")
    elif len(logits) > 1:
        alone = float(row_differences(subject.forward(subject.images[:1]), logits[:1]).max())
        subject.measured["alone"] = f"logits of an image alone differ by {alone:.3g}"
        if alone > NOISE * scale:
            add("batch_dependence", f"an image alone has logits that differ by {alone:.3g}")
    if softmax_output(logits):
        ones = int((logits.max(axis=1) == 1).sum())
        add("probabilities", f"rows lie in [0, 1] and sum to 1; {ones} of {len(logits)} hold a 1")
        return
    top = np.sort(np.where(np.isnan(logits), -np.inf, logits).astype(np.float64), axis=1)
    with np.errstate(invalid="ignore"):
        others = np.exp(np.minimum(top[:, :-1] - top[:, -1:], 0)).sum(axis=1)
    saturated = float((others < ULP).mean())
    gap = float(np.median(top[:, -1] - top[:, -2]))
    subject.measured["softmax"] = f"is 1 in float32 for {saturated:.0%}; median gap {gap:.3g}"
    if saturated > 0.5:
        add(
            "saturated_softmax",
            f"the softmax is 1 in float32 for {saturated:.0%} of the images: the largest logit is "
            f"{gap:.3g} above the next (median)",
        )


def check_preprocessing(subject: Subject) -> None:
    """Compare the accuracy with that of other preprocessing."""
    if subject.labels is None:
        return
    plain = subject.accuracy(subject.images)
    subject.measured["accuracy"] = f"{plain:.1%} of {len(subject.images)} images"
    found = {}
    for name, change in _preprocessing(subject.shape).items():
        try:
            found[name] = subject.accuracy(change(subject.images))
        except (ValueError, TypeError):
            continue
    best = max(found, key=lambda name: found[name], default=None)
    if best is not None and found[best] >= max(plain + GAIN, LEAST):
        subject.add(
            "normalisation",
            f"accuracy is {plain:.1%} for the images as they are, and {found[best]:.1%} {best}",
        )
    elif plain < LEAST:
        subject.add("low_accuracy", f"{plain:.1%} of the images get their label")


def _preprocessing(shape: tuple[int, ...]) -> dict[str, Callable[[Floats], Floats]]:
    """Return usual changes of images (N, n), by words that follow "accuracy"."""
    channels = shape[0] if len(shape) == 3 else 1
    changes: dict[str, Callable[[Floats], Floats]] = {
        "times 255": lambda x: x * np.float32(255),
        "divided by 255": lambda x: x / np.float32(255),
        "mapped to [-1, 1]": lambda x: 2 * x - 1,
        "with black and white exchanged": lambda x: 1 - x,
    }

    def by_channel(values: list[float]) -> Floats:
        return np.repeat(np.array(values, np.float32), int(np.prod(shape)) // channels)

    for name, (mean, std) in STANDARD.get(channels, {}).items():
        center, spread = by_channel(mean), by_channel(std)
        changes[f"normalised by {name}"] = lambda x, m=center, s=spread: (x - m) / s  # type: ignore[misc]
    if channels == 3:
        changes["with the channels reversed"] = lambda x: np.ascontiguousarray(
            x.reshape(-1, *shape)[:, ::-1].reshape(x.shape)
        )
    return changes


def check_gradients(subject: Subject) -> None:
    """Look at the gradient: finite, not zero, and in agreement with differences of forwards."""
    x = subject.images
    logits, weights, gradient = gradients(subject.oracle, x.copy())
    finite = np.isfinite(gradient).all(axis=1)
    zero = finite & ~gradient.any(axis=1)
    if not finite.all():
        rows = int((~finite).sum())
        subject.add("non_finite_gradient", f"it has NaN or infinity at {rows} of {len(x)} images")
    if zero.any():
        subject.add("zero_gradient", f"it is exactly zero at {int(zero.sum())} of {len(x)} images")
    kept = finite & ~zero
    subject.measured["gradient"] = f"finite and not zero at {int(kept.sum())} of {len(x)} images"
    if not kept.any():
        return
    low, high = (np.broadcast_to(bound, x.shape)[kept] for bound in subject.bounds)
    found = ratios(
        subject.oracle, x[kept], (low, high), logits[kept], weights[kept], gradient[kept], ROWS
    )
    distance = np.where(np.isfinite(found), np.abs(found - 1), np.inf)
    best = np.take_along_axis(found, distance.argmin(axis=0)[None], axis=0)[0]
    best = best[np.isfinite(best)]
    if not len(best):
        return
    median = float(np.median(best))
    subject.measured["differences"] = f"{median:.3g} times what the gradient says (median)"
    if not AGREES[0] <= median <= AGREES[1]:
        subject.add(
            "gradient_disagrees",
            f"along the gradient the logits change by {median:.3g} times what it says, at the "
            f"median of {len(best)} images",
        )


def check_precision(subject: Subject) -> None:
    """Compare a module of half precision with its copy in float32."""
    if subject.module is None:
        return
    kinds = {str(part.dtype) for part in subject.module.parameters() if part.is_floating_point()}
    subject.measured["precision"] = ", ".join(sorted(kinds)).replace("torch.", "") or "no weights"
    halves = sorted(kinds & {"torch.float16", "torch.bfloat16"})
    if not halves or subject.model is not subject.module:
        return
    exact = _oracle(copy.deepcopy(subject.module).float(), subject.shape, subject.images[:1])
    other = batched(lambda part: exact.forward(part, grad=False), subject.images.copy(), ROWS)
    gap = float(np.median(row_differences(subject.logits, other)))
    labels = subject.logits.argmax(axis=1).astype(np.int32)
    margin = float(np.median(np.abs(margins(subject.logits, labels, True)[0])))
    subject.add(
        "half_precision",
        f"weights are {halves[0].removeprefix('torch.')}: logits are {gap:.2g} from those of "
        f"float32 (median), the median margin is {margin:.3g}",
    )
