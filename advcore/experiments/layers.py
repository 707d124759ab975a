"""Which layer should adversarial examples come from? The comparison that the paper leaves open.

Pools are at the images, at the output of either hidden layer, at all three or at none
(`parts.feedback`). Apart from that the networks are the same. Those of one seed start from the same
initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .parts.directions import interval
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
from .parts.tuning import DECAY, POOLS, SECOND, SETTINGS, trained

if TYPE_CHECKING:
    from .parts.run import Run, Trained

ROWS = (DECAY, *POOLS)
NONE = "no pool"
NAMES = {DECAY: NONE, **{row: row for row in POOLS}}
PLACES = ("images", "hidden 1", "hidden 2")


def run(run: Run) -> Outcome:
    """Train the networks with and without pools, and compare errors and distortions."""
    settings = SETTINGS[run.scale]
    networks, choices = trained(run, settings, ROWS)
    outcome = Outcome(
        "layers",
        "Adversarial examples at each layer",
        "Are adversarial examples of the higher layers' outputs of more use in training than those "
        'of the images? The paper: "significantly more useful", without numbers.',
        settings={
            **asdict(settings),
            "feedback": asdict(Feedback((0,), **dict(settings.pool))),
            "chosen": {NAMES[row]: choice.changes for row, choice in choices.items()},
        },
    )
    main = Table(
        "layers",
        "Errors and distortion by layer of the pool",
        "Errors in percent. Distortion: mean of sqrt(mean r²) over test images, random targets, "
        "default loss: the larger, the harder the network is to attack.",
        corner="network",
        formats={"": ".2f", DISTORTION: ".4f"},
    )
    for row, trained_networks in networks.items():
        main.add(NAMES[row], ERROR, [one.test_error for one in trained_networks])
        main.add(NAMES[row], TRAIN_ERROR, [one.train_error for one in trained_networks])
        main.add(NAMES[row], DISTORTION, distortions(run, settings, trained_networks))
    pairs = difference_table(main)
    pool_networks = {row: networks[row] for row in POOLS}
    outcome.tables = [main, pairs, _growth_table(networks), cost_table("layers", pool_networks)]
    if any(choice.tried for choice in choices.values()):
        outcome.tables.append(tuning_table("layers", settings, choices))
    outcome.figures = [_figure(main), _growth_figure(networks)]
    outcome.headline = ("layers", SECOND, ERROR)
    outcome.remarks = _remarks(main, pairs)
    outcome.finding = _finding(main)
    return outcome


def difference_table(main: Table) -> Table:
    """Subtract the row without a pool from each row, seed by seed.

    The table also has Student's interval of the mean differences.
    """
    table = Table(
        "layers_differences",
        "Paired differences to the network without a pool",
        "Of networks of the same seed: initial weights and order of the batches are theirs in "
        "common. From, to: 95% interval of the mean by Student's t, of several seeds.",
        corner="network",
        formats={
            column: ".4f" if column.startswith(DISTORTION) else ".2f" for column in _columns()
        },
    )
    for row in POOLS:
        for column in (ERROR, DISTORTION):
            gaps = _values(main, row, column) - _values(main, NONE, column)
            low, high = interval(gaps) if len(gaps) > 1 else (math.nan, math.nan)
            table.add(row, column, list(gaps))
            table.add(row, f"{column}: from", low)
            table.add(row, f"{column}: to", high)
    return table


def _columns() -> list[str]:
    return [f"{column}{part}" for column in (ERROR, DISTORTION) for part in ("", ": from", ": to")]


def _values(table: Table, row: str, column: str) -> NDArray[np.float64]:
    cell = table.cell(row, column)
    assert cell is not None
    return np.array([math.nan if value is None else value for value in cell.values])


def _growth_table(networks: Mapping[str, Sequence[Trained]]) -> Table:
    """Tabulate the distortion of a pool's first and last examples at the pool's layer."""
    table = Table(
        "layers_growth",
        "Distortion of the pools' examples at their own layer",
        "Mean of sqrt(mean r²) over the examples of the first filling of the pool and of its last "
        "replacement, whole r, whatever the reach.",
        corner="pool",
        formats={"": ".4f"},
    )
    for row, layers in POOLS.items():
        for place, layer in enumerate(layers):
            name = row if len(layers) == 1 else f"{row}, {PLACES[layer]}"
            curves = [one.facts["rms"][place] for one in networks[row]]
            table.add(name, "first", [curve[0] for curve in curves])
            table.add(name, "last", [curve[-1] for curve in curves])
    return table


def _figure(main: Table) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.5, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    rows = list(NAMES.values())
    for axis, column, label in zip(
        axes,
        (ERROR, DISTORTION),
        ("test error (%)", "mean distortion, sqrt(mean r²)"),
        strict=True,
    ):
        scatter(axis, main, column, rows)
        axis.axhline(_values(main, NONE, column).mean(), color="0.6", lw=0.8, ls=":")
        axis.set_ylabel(label)
    return Figure(
        "layers_errors",
        "Test error and distortion by layer of the pool",
        figure,
        "Points: one network each; bars: their mean. Dotted: the mean without a pool.",
    )


def _growth_figure(networks: Mapping[str, Sequence[Trained]]) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.5, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PLACES))
    for layer, axis in enumerate(axes):
        for row, layers in POOLS.items():
            if layer in layers:
                curves = np.array([one.facts["rms"][layers.index(layer)] for one in networks[row]])
                x = np.linspace(0, 100, curves.shape[1])
                colour = f"C{1 + list(POOLS).index(row)}"
                axis.plot(x, curves.mean(0), color=colour, label=row)
                if len(curves) > 1:
                    axis.fill_between(
                        x, curves.min(0), curves.max(0), color=colour, alpha=0.2, lw=0
                    )
        axis.set(title=PLACES[layer], xlabel="training after the first filling (%)")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("mean distortion, sqrt(mean r²)")
    return Figure(
        "layers_growth",
        "Distortion of new examples at their own layer, in the course of training",
        figure,
        "Lines: mean over the seeds, bands from the smallest to the largest.",
    )


def _remarks(main: Table, pairs: Table) -> list[str]:
    count = len(_values(main, NONE, ERROR))
    lines = []
    for row in POOLS:
        text = f"- {row}: test error {_values(pairs, row, ERROR).mean():+.2f} points"
        low, high = (_values(pairs, row, f"{ERROR}: {end}")[0] for end in ("from", "to"))
        if count > 1:
            verdict = "0 is outside" if low > 0 or high < 0 else "0 is inside"
            text += f" (95% interval {low:+.2f} to {high:+.2f}: {verdict})"
        gain = 100 * (
            _values(main, row, DISTORTION).mean() / _values(main, NONE, DISTORTION).mean() - 1
        )
        lines.append(f"{text}; distortion {gain:+.0f}%.")
    return [
        "\n".join(lines),
        "An interval over seeds holds for networks trained anew on these images; the test set is "
        "the same for all.",
    ]


def _finding(main: Table) -> str:
    mean = {row: _values(main, row, ERROR).mean() for row in NAMES.values()}
    lowest = min(mean, key=lambda row: mean[row])
    hardest = max(NAMES.values(), key=lambda row: _values(main, row, DISTORTION).mean())
    return (
        "Test error: "
        + ", ".join(f"{row} {value:.2f}%" for row, value in mean.items())
        + f". The fewest errors: {lowest}; the hardest to attack: {hardest}."
    )
