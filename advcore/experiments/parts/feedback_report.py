"""Tables and points that the experiments `training` and `layers` both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .attacks import adversarial_set
from .tables import Table
from .tuning import Choice, Settings

if TYPE_CHECKING:
    from .run import Run, Trained

ERROR, TRAIN_ERROR, DISTORTION = "test error", "training error", "distortion"


def distortions(run: Run, settings: Settings, networks: Sequence[Trained]) -> list[float]:
    """Return the mean distortion of test images for random targets, one value a network."""
    return [
        adversarial_set(run, one, split="test", count=settings.images).mean_rms for one in networks
    ]


def cost_table(name: str, networks: Mapping[str, Sequence[Trained]]) -> Table:
    """Tabulate the cost of the attacks, summed over the pools of a network."""
    table = Table(
        f"{name}_cost",
        "What the attacks cost",
        "One network, trained on one thread. Share: time in the attacks over that of the training. "
        "Evaluations: forward and backward passes of one example.",
        corner="network",
        formats={"": ".1f", "attacks": ".0f", "success %": ".2f"},
    )
    for row, trained_networks in networks.items():
        facts = [one.facts for one in trained_networks]
        count = [sum(fact["attacks"]) for fact in facts]
        table.add(row, "seconds", [fact["training_seconds"] for fact in facts])
        table.add(row, "share of attacks %", [attack_share(fact) for fact in facts])
        table.add(row, "attacks", count)
        for column, key in (("evaluations", "evaluations"), ("success %", "success")):
            sums = [np.dot(fact[key], fact["attacks"]) for fact in facts]
            table.add(row, column, [s / n for s, n in zip(sums, count, strict=True)])
    return table


def attack_share(facts: Mapping[str, Any]) -> float:
    """Return the percentage of the training time that the attacks took."""
    return 100 * float(sum(facts["attack_seconds"])) / float(facts["training_seconds"])


def scatter(axis: Any, table: Table, column: str, rows: Sequence[str]) -> None:
    """Draw a point a seed and a bar at their mean for every row."""
    for place, row in enumerate(rows):
        cell = table.cell(row, column)
        if cell is None or not cell.known:
            continue
        offsets = np.linspace(-0.16, 0.16, len(cell.known)) if len(cell.known) > 1 else [0.0]
        axis.plot(place + np.asarray(offsets), cell.known, "o", color=f"C{place}", ms=5, alpha=0.8)
        axis.hlines(cell.mean, place - 0.3, place + 0.3, color=f"C{place}", lw=2)
    axis.set_xticks(range(len(rows)), [row.replace(" of ", "\nof ", 1) for row in rows])
    axis.tick_params(axis="x", labelsize="small", labelrotation=20)
    axis.set_xlim(-0.6, len(rows) - 0.4)
    axis.grid(axis="y", alpha=0.3)


def tuning_table(name: str, settings: Settings, choices: Mapping[str, Choice]) -> Table:
    """Tabulate the errors of all settings that were tried for each row."""
    table = Table(
        f"{name}_tuning",
        "Settings that were tried",
        f"Errors in percent of the last {settings.validation:,} training images, which these "
        "networks, one seed each, were not trained on. The best one was then trained on all "
        "images. Networks with pools have the weight decay that was best alone.",
        corner="setting",
        formats={"": ".2f"},
    )
    for row, choice in choices.items():
        for text, error in choice.tried.items():
            table.add(f"{row}: {text}", "error on held-out images", error)
    return table
