"""Feeding adversarial examples back into training, section 4.2 of the paper.

A network with 100 and 100 hidden sigmoids is trained by weight decay alone, with dropout, with a
pool of adversarial examples of the images, and with a pool for every layer (`parts.feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from .parts.feedback import Feedback
from .parts.feedback_report import (
    DISTORTION,
    ERROR,
    TRAIN_ERROR,
    cost_table,
    distortions,
    scatter,
    tuning_table,
)
from .parts.tables import Figure, Outcome, Table
from .parts.tuning import (
    ALL,
    DECAY,
    DROPOUT,
    INPUT,
    PAPER_DECAY,
    SETTINGS,
    Choice,
    Settings,
    trained,
)

if TYPE_CHECKING:
    from .parts.run import Run

# The values are test errors in percent. The paper says "below 1.2%" for the last.
PUBLISHED = {DECAY: 1.6, DROPOUT: 1.3, ALL: 1.2}
ROWS = (PAPER_DECAY, DECAY, DROPOUT, INPUT, ALL)


def run(run: Run) -> Outcome:
    """Train the networks with each method, and compare errors and distortions."""
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
    for row, trained_networks in networks.items():
        main.add(row, ERROR, [one.test_error for one in trained_networks], PUBLISHED.get(row))
        main.add(row, TRAIN_ERROR, [one.train_error for one in trained_networks])
        main.add(row, DISTORTION, distortions(run, settings, trained_networks))
    outcome.tables = [main, cost_table("training", {row: networks[row] for row in (INPUT, ALL)})]
    if any(choice.tried for choice in choices.values()):
        outcome.tables.append(tuning_table("training", settings, choices))
    outcome.figures = [_figure(main)]
    outcome.headline = ("training", ALL, ERROR)
    outcome.remarks = _remarks(main, outcome.tables[1], settings, choices)
    outcome.finding = _finding(main)
    return outcome


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
