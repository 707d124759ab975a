"""What a diagnosis says."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from typing import Any

LEVELS = ("error", "warning", "note")
"""Levels of a finding: figures of an attack are wrong, may be wrong, or need care."""


@dataclass(frozen=True)
class Finding:
    """A fault that was seen.

    Attributes
    ----------
    name : str
        One of `NAMES`.
    level : str
        One of `LEVELS`.
    evidence : str
        What was measured.
    engine : str
        What an attack does about it by itself.
    remedy : str
        What you can do.
    """

    name: str
    level: str
    evidence: str
    engine: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """Findings about a model and images, the gravest first, and what was measured.

    Attributes
    ----------
    findings : list of Finding
    measured : dict of str to str
        What each check has measured, also where it found nothing.
    """

    findings: list[Finding]
    measured: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Names of the findings."""
        return [finding.name for finding in self.findings]

    def text(self) -> str:
        """Return findings and measurements as lines of text."""
        lines = []
        for finding in self.findings:
            lines += [
                f"{finding.level}: {finding.name}: {finding.evidence}",
                f"  by itself: {finding.engine}",
                f"  remedy: {finding.remedy}",
            ]
        if not self.findings:
            lines.append("nothing was found")
        return "\n".join([*lines, *(f"{name}: {text}" for name, text in self.measured.items())])

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {"findings": [asdict(each) for each in self.findings], "measured": self.measured}

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


_ACTIONS = {
    "image_range": (
        "error",
        "it refuses images outside the bounds",
        "divide by 255, or pass bounds= as the model takes them",
    ),
    "normalised_images": (
        "warning",
        "it warns; distortions are in units of the normalised values",
        "pass images in [0, 1] and put the normalisation into the model: "
        "advcore.models.preprocess(model, mean, std)",
    ),
    "normalisation": (
        "error",
        "nothing: it attacks the model as it is",
        "put the preprocessing that fits into the model: advcore.models.preprocess",
    ),
    "low_accuracy": (
        "warning",
        "it warns where most images have another class than labels says",
        "check the order of the classes, the preprocessing and the weights",
    ),
    "training_mode": ("error", "it refuses the model", "call model.eval()"),
    "random_output": (
        "error",
        "it refuses the model, or asks for a margin above the noise",
        "take the mean over fixed draws: advcore.models.averaged(model)",
    ),
    "batch_dependence": (
        "error",
        "results are verified in batches of their own, where they may fail",
        "use evaluation mode, or batch_size=1",
    ),
    "probabilities": ("error", "it refuses the model", "pass the model without its softmax"),
    "non_finite_output": (
        "error",
        "images end with the status non_finite",
        "look for overflow, log(0) or 0/0 in the model",
    ),
    "saturated_softmax": (
        "note",
        "its loss is the margin of the logits, which does not saturate",
        'keep loss="margin"; attacks on the cross-entropy see no gradient here',
    ),
    "zero_gradient": (
        "error",
        "it goes in random directions, with the status no_gradient, and warns",
        "give quantisation or steps a straight-through gradient, or attack the network before them",
    ),
    "non_finite_gradient": (
        "error",
        "images end with the status non_finite where they cannot avoid it",
        "look for square roots, logarithms or norms at 0",
    ),
    "gradient_disagrees": (
        "error",
        "of a NumPy model it refuses a wrong sign or factor; else it warns, or does not see it",
        "correct backward; of a network with a gradient of its own making attack the one before it",
    ),
    "half_precision": (
        "warning",
        "it adds the rounding of the logits to the margin that it asks for",
        "attack a copy in float32: copy.deepcopy(model).float()",
    ),
    "refused": ("error", "it refuses the model or the images", "as the message says"),
    "masked_gradient": (
        "error",
        "nothing: it follows the gradient",
        "do not trust robustness that an attack by gradients shows here; find what hides the "
        "gradient, or attack by forwards alone",
    ),
}
NAMES = tuple(_ACTIONS)
"""Names of all findings."""


def finding(name: str, evidence: str) -> Finding:
    """Return the finding of that name with its evidence."""
    level, engine, remedy = _ACTIONS[name]
    return Finding(name, level, evidence, engine, remedy)
