"""Feeding adversarial examples back into training, section 4.2 of the paper.

A network with 100 and 100 hidden sigmoids: by weight decay alone, with dropout, with a pool of
adversarial examples of the images, and with a pool for every layer (`feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .attacks import adversarial_set
from .feedback import Feedback
from .tables import Figure, Outcome, Table
from .tuning import (
    ALL,
    DECAY,
    DROPOUT,
    INPUT,
    PAPER_DECAY,
    SETTINGS,
    Choice,
    Settings,
    trained,
    tuning_table,
)

if TYPE_CHECKING:
    from .run import Run, Trained

# Test error in percent; the last is "below 1.2%".
PUBLISHED = {DECAY: 1.6, DROPOUT: 1.3, ALL: 1.2}
ROWS = (PAPER_DECAY, DECAY, DROPOUT, INPUT, ALL)
ERROR, TRAIN_ERROR, DISTORTION = "test error", "training error", "distortion"


def distortions(run: Run, settings: Settings, networks: Sequence[Trained]) -> list[float]:
    """Mean distortion of test images toward random targets, a value a network."""
    return [
        adversarial_set(run, one, split="test", count=settings.images).mean_rms for one in networks
    ]


def run(run: Run) -> Outcome:
    settings = SETTINGS[run.scale]
    networks, choices = trained(run, settings, ROWS)
    outcome = Outcome(
        "training",
        "Feeding adversarial examples back into training",
        "Does a pool of adversarial examples, of which a random part is continuously replaced by "
        "new ones, make a 784-100-100-10 network better than weight decay and dropout do?",
        settings={
            **asdict(settings),
            "feedback": asdict(Feedback((0,), **dict(settings.pool))),
            "chosen": {row: choice.changes for row, choice in choices.items()},
        },
    )
    main = Table(
        "training",
        "Errors, and how hard the networks are to attack",
        'Errors in percent; published: 1.6, 1.3, and "below 1.2" with pools for every layer. '
        "Distortion: mean of sqrt(mean r²) over test images, random targets, default loss.",
        corner="network",
        formats={"": ".2f", DISTORTION: ".4f"},
    )
    for row, made in networks.items():
        main.add(row, ERROR, [one.test_error for one in made], PUBLISHED.get(row))
        main.add(row, TRAIN_ERROR, [one.train_error for one in made])
        main.add(row, DISTORTION, distortions(run, settings, made))
    outcome.tables = [main, cost_table("training", {row: networks[row] for row in (INPUT, ALL)})]
    if any(choice.tried for choice in choices.values()):
        outcome.tables.append(tuning_table("training", settings, choices))
    outcome.figures = [_figure(main)]
    outcome.headline = ("training", ALL, ERROR)
    outcome.remarks = _remarks(main, outcome.tables[1], settings, choices)
    outcome.finding = _finding(main)
    return outcome


def cost_table(name: str, networks: Mapping[str, Sequence[Trained]]) -> Table:
    """What the attacks took; sums over the pools of a network."""
    table = Table(
        f"{name}_cost",
        "What the attacks cost",
        "One network, trained on one thread. Share: time in the attacks over that of the training. "
        "Evaluations: forward and backward passes of one example.",
        corner="network",
        formats={"": ".1f", "attacks": ".0f", "success %": ".2f"},
    )
    for row, made in networks.items():
        facts = [one.facts for one in made]
        count = [sum(fact["attacks"]) for fact in facts]
        table.add(row, "seconds", [fact["training_seconds"] for fact in facts])
        table.add(row, "share of attacks %", [attack_share(fact) for fact in facts])
        table.add(row, "attacks", count)
        for column, key in (("evaluations", "evaluations"), ("success %", "success")):
            sums = [np.dot(fact[key], fact["attacks"]) for fact in facts]
            table.add(row, column, [s / n for s, n in zip(sums, count, strict=True)])
    return table


def attack_share(facts: Mapping[str, Any]) -> float:
    """Percent of the training time that the attacks took."""
    return 100 * float(sum(facts["attack_seconds"])) / float(facts["training_seconds"])


def scatter(axis: Any, table: Table, column: str, rows: Sequence[str]) -> None:
    """A point a seed beside each other, and a bar at their mean, for every row."""
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


def _figure(main: Table) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.5, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    scatter(axes[0], main, ERROR, ROWS)
    for place, row in enumerate(ROWS):
        if row in PUBLISHED:
            axes[0].plot(place, PUBLISHED[row], "_", color="0.2", ms=26, mew=1.5, ls="")
    axes[0].plot([], [], "_", color="0.2", ms=14, mew=1.5, label="published")
    axes[0].legend(frameon=False, fontsize="small")
    axes[0].set(ylabel="test error (%)")
    scatter(axes[1], main, DISTORTION, ROWS)
    axes[1].set(ylabel="mean distortion, sqrt(mean r²)")
    return Figure(
        "training_errors",
        "Test error and distortion by training",
        figure,
        "Points: one network each; bars: their mean.",
    )


def _remarks(
    main: Table, cost: Table, settings: Settings, choices: Mapping[str, Choice]
) -> list[str]:
    error = {row: _mean(main, row, ERROR) for row in ROWS}
    remarks = [
        "Test error less that of weight decay alone, in points: "
        + ", ".join(f"{row} {error[row] - error[DECAY]:+.2f}" for row in (DROPOUT, INPUT, ALL))
        + "; the paper: "
        + ", ".join(f"{row} {PUBLISHED[row] - PUBLISHED[DECAY]:+.1f}" for row in (DROPOUT, ALL))
        + ". The standard deviation over the seeds stands in the table.",
    ]
    shares = ", ".join(
        f"{_mean(cost, row, 'share of attacks %'):.0f}% ({row})" for row in cost.rows
    )
    remarks.append(f"The attacks take {shares} of the training time.")
    reach = {row: dict(choices[row].changes["feedback"])["reach"] for row in (INPUT, ALL)}
    if any(value < 1 for value in reach.values()):
        remarks.append(
            "The paper feeds back the adversarial examples themselves, reach 1. Here the examples "
            "lie at this part of the way: "
            + ", ".join(f"{value:g} ({row})" for row, value in reach.items())
            + (
                ", the best on the held-out images of those tried."
                if len(settings.pools) > 1
                else "."
            )
        )
    return remarks


def _mean(table: Table, row: str, column: str) -> float:
    cell = table.cell(row, column)
    assert cell is not None
    return cell.mean


def _finding(main: Table) -> str:
    error = {row: _mean(main, row, ERROR) for row in ROWS}
    return (
        f"Pools for every layer: {error[ALL]:.2f}% test errors, a pool of images alone "
        f"{error[INPUT]:.2f}%, dropout {error[DROPOUT]:.2f}%, weight decay {error[DECAY]:.2f}%; "
        f"distortion {_mean(main, DECAY, DISTORTION):.3f} becomes "
        f"{_mean(main, INPUT, DISTORTION):.3f} with a pool of images, "
        f"{_mean(main, ALL, DISTORTION):.3f} with all."
    )
