"""Single units against random directions of activation space: the paper's section 3, figures 1-4.

The paper shows held-out images that maximise <phi(x), e_i>, a single unit, and <phi(x), v>, a
random combination of units. It finds both sets equally meaningful by eye. Here the same pictures
are drawn, and label purity is measured: the share of the most frequent label among the first k
images. Centred activations are not measured separately. <phi(x) - m, v> differs from <phi(x), v> by
a constant, so that the ranking of the images is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advcore import report

from .parts import networks
from .parts.directions import (
    activations,
    chance_purity,
    difference_interval,
    interval,
    live_units,
    purity,
    sphere,
    superiority,
    top_images,
)
from .parts.pictures import slug, strip
from .parts.tables import Figure, Outcome, Table

if TYPE_CHECKING:
    import torch

    from .parts.run import Run


@dataclass(frozen=True)
class Space:
    """The activations after the first `depth` modules of a network; without one, the pixels."""

    model: str | None
    depth: int = 0
    trained: bool = True


SPACES = {
    "pixels": Space(None),
    "FC100-100-10, hidden 1": Space("fc100_100_10", 3),
    "FC100-100-10, hidden 2": Space("fc100_100_10", 5),
    "FC100-100-10, hidden 2, untrained": Space("fc100_100_10", 5, trained=False),
    "SmallCNN, convolutions": Space("small_cnn", 13),
    "SmallCNN, hidden 2": Space("small_cnn", 17),
    "SmallCNN, hidden 2, untrained": Space("small_cnn", 17, trained=False),
}
SHOWN = "FC100-100-10, hidden 2"
DRAWN = ("FC100-100-10, hidden 2", "SmallCNN, hidden 2", "SmallCNN, convolutions", "pixels")
UNITS, RANDOM = "units", "random directions"
STANDARDISED, POSITIVE = "random, standardised units", "random, weights >= 0"
CHANCE = "random images"
READINGS = (UNITS, RANDOM, STANDARDISED, POSITIVE)


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment at one scale.

    images : number of held-out images.
    convolutional : the same number for SmallCNN.
    directions : number of random directions.
    top : numbers k of images for purity. The first two are in the tables.
    drawn : numbers of directions and of images in a picture.
    """

    images: int
    convolutional: int
    directions: int
    top: tuple[int, ...] = (10, 20, 2, 5, 50, 100, 200)
    drawn: dict[str, int] = field(default_factory=lambda: {"directions": 5, "images": 8})


SETTINGS = {
    "full": Settings(images=10_000, convolutional=10_000, directions=2000),
    "quick": Settings(images=10_000, convolutional=2000, directions=500),
    "tiny": Settings(images=200, convolutional=100, directions=100, top=(10, 20, 5)),
}


def run(run: Run) -> Outcome:
    """Measure the purity of units and of random directions in every space."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "units",
        "Units against random directions (section 3, figures 1-4)",
        "Are the images that excite a single unit more alike than those that excite a random "
        "combination of units?",
        settings=asdict(settings) | {"split": "test", "direction": "uniform on the unit sphere"},
    )
    measurements = {name: _space(run, name, space, settings) for name, space in SPACES.items()}
    outcome.tables += [_purity_table(measurements, settings, place) for place in (0, 1)]
    effect = _effect_table(measurements, settings)
    outcome.tables.append(effect)
    for name in DRAWN:
        outcome.figures.append(_pictures(run, name, measurements[name][0], settings))
    outcome.figures.append(_curves(measurements, settings))
    outcome.remarks += _remarks(measurements, effect)
    outcome.headline = (outcome.tables[0].name, SHOWN, UNITS)
    outcome.finding = _finding(outcome.tables[0])
    return outcome


def _space(run: Run, name: str, space: Space, settings: Settings) -> list[dict[str, NDArray[Any]]]:
    """Measure one space for every seed, the pixels only once."""
    count = settings.convolutional if space.model == "small_cnn" else settings.images
    images, labels = run.digits.sample("test", count)
    shape = asdict(settings) | {"space": name, "count": count}
    if space.model is None:
        return [run.step("units", shape, lambda: _measure(images, labels, settings, 0))]
    results = []
    for seed in run.seeds:
        recipe = run.recipe(space.model, seed)
        if space.trained:
            (network,) = run.trained([recipe])
            model, key = network.model, network.key
        else:
            model, key = networks.build(recipe), f"{space.model}, untrained, seed {seed}"

        def make(model: torch.nn.Module = model, seed: int = seed) -> dict[str, Any]:
            phi = activations(model, space.depth, images)
            return _measure(phi, labels, settings, seed)

        results.append(run.step("units", {**shape, "network": key}, make))
    return results


def _measure(
    phi: NDArray[np.floating[Any]], labels: NDArray[np.int64], settings: Settings, seed: int
) -> dict[str, NDArray[Any]]:
    """Return the purity of every direction (k, M) for each reading, and the images to draw."""
    units = phi.shape[1]
    live_rows = live_units(phi, max(settings.top[:2]))
    basis = np.eye(units)[live_rows]
    v = sphere(settings.directions, units, seed)
    scale = np.zeros(units)
    scale[live_rows] = 1 / phi[:, live_rows].std(axis=0)
    directions = {
        UNITS: basis,
        RANDOM: v,
        STANDARDISED: v * scale,
        POSITIVE: np.abs(v),
    }
    results: dict[str, NDArray[Any]] = {"live": live_rows, "width": np.asarray(units)}
    for reading, rows in directions.items():
        tops = top_images(phi, rows.astype(phi.dtype), max(settings.top))
        results[reading] = np.stack([purity(labels[tops[:, :k]]) for k in settings.top])
        if reading in (UNITS, RANDOM):
            sizes = settings.drawn
            picks = np.random.default_rng(seed).permutation(len(rows))[: sizes["directions"]]
            results[f"{reading}, drawn"] = live_rows[picks] if reading == UNITS else picks + 1
            results[f"{reading}, images"] = tops[picks, : sizes["images"]]
    results[CHANCE] = np.array([[chance_purity(labels, k)] for k in settings.top])
    return results


Measurements = Mapping[str, Sequence[Mapping[str, NDArray[Any]]]]


def _purity_table(measurements: Measurements, settings: Settings, place: int) -> Table:
    k = settings.top[place]
    table = Table(
        f"units_purity_{k}",
        f"Label purity of the first {k} images, percent",
        f"Mean over the directions of the share of the most frequent label among the {k} held-out "
        "images of largest product. Standardised: every unit divided by its standard deviation, "
        "which leaves the rankings of single units as they are. Left out: units that fewer than "
        f"{max(settings.top[:2])} images excite, whose first images would be arbitrary.",
        corner="activations",
        formats={"": ".1f", "left out": ".0f"},
    )
    for name, results in measurements.items():
        for reading in (*READINGS, CHANCE):
            table.add(name, reading, [100 * float(one[reading][place].mean()) for one in results])
        table.add(name, "left out", [float(one["width"] - len(one["live"])) for one in results])
    return table


def _effect_table(measurements: Measurements, settings: Settings) -> Table:
    k = settings.top[0]
    table = Table(
        "units_effect",
        f"Purity of units minus purity of random directions, first {k} images, points",
        "from, to: 95% confidence interval, over networks by Student's t where there are several "
        "(the units of one network are not a sample of networks), else over the directions of the "
        "one. Superiority: probability that a unit is purer than a random direction, ties counted "
        "half; 50% is no difference. Standardised: the random directions of standardised units.",
        corner="activations",
    )
    for name, results in measurements.items():
        for reading, label in ((RANDOM, ""), (STANDARDISED, ", standardised")):
            gaps = np.array([one[UNITS][0].mean() - one[reading][0].mean() for one in results])
            if len(gaps) > 1:
                low, high = interval(gaps)
            else:
                low, high = difference_interval(results[0][UNITS][0], results[0][reading][0])
            table.add(name, f"difference{label}", list(100 * gaps))
            table.add(name, f"from{label}", 100 * low)
            table.add(name, f"to{label}", 100 * high)
            chances = [100 * superiority(one[UNITS][0], one[reading][0]) for one in results]
            table.add(name, f"superiority{label}", chances)
    return table


def _pictures(
    run: Run, name: str, result: Mapping[str, NDArray[Any]], settings: Settings
) -> Figure:
    """Draw the paper's pictures for the network of the first seed."""
    from matplotlib.figure import Figure as Canvas

    count = settings.convolutional if SPACES[name].model == "small_cnn" else settings.images
    images, labels = run.digits.sample("test", count)
    size = settings.drawn
    figure = Canvas(
        figsize=(1.5 * size["images"] + 1.6, 0.75 * size["directions"] + 0.4), layout="constrained"
    )
    sides: Any = figure.subfigures(1, 2, wspace=0.03)
    for side, reading in zip(sides, (UNITS, RANDOM), strict=True):
        rows = []
        for number, tops in zip(
            result[f"{reading}, drawn"], result[f"{reading}, images"], strict=True
        ):
            count_alike = purity(labels[tops][None])[0] * len(tops)
            who = f"unit {number}" if reading == UNITS else f"v {number}"
            rows.append((f"{who}\n{count_alike:.0f} of {len(tops)}", strip(images[tops])))
        axes = report.picture_rows(side, [(label, one[None], "gray") for label, one in rows])
        for axis in axes[:, 0]:
            axis.spines[:].set_visible(False)
            axis.yaxis.label.set(rotation=0, ha="right", va="center")
        side.suptitle(reading)
    return Figure(
        f"units_{slug(name)}",
        f"{name}: images that excite single units and random directions most",
        figure,
        "A row is a direction, drawn by lot; its images in order of falling product. On the left "
        "of a row: how many of its images have the most frequent label.",
    )


def _curves(measurements: Measurements, settings: Settings) -> Figure:
    from matplotlib.figure import Figure as Canvas

    order = np.argsort(settings.top)
    x = np.array(settings.top)[order]
    styles = {UNITS: ("C0", "-"), RANDOM: ("C3", "-"), STANDARDISED: ("C1", "--")}
    styles[POSITIVE], styles[CHANCE] = ("C2", "--"), ("0.5", ":")
    figure = Canvas(figsize=(11, 5.4), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey=True).ravel()
    for axis, (name, results) in zip(axes, measurements.items(), strict=False):
        for reading, (colour, line) in styles.items():
            y = 100 * np.stack([one[reading].mean(axis=1)[order] for one in results])
            axis.plot(x, y.mean(0), line, color=colour, label=reading)
            if len(y) > 1:
                spread = y.std(0, ddof=1)
                lower, upper = y.mean(0) - spread, y.mean(0) + spread
                axis.fill_between(x, lower, upper, color=colour, alpha=0.2, lw=0)
        axis.set(xscale="log", ylim=(0, 102))
        axis.set_xticks(x, [str(k) for k in x])
        axis.minorticks_off()
        axis.set_title(name.replace(", ", ",\n", 1), fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in axes[len(measurements) :]:
        axis.axis("off")
    axes[len(measurements)].legend(
        *axes[0].get_legend_handles_labels(), frameon=False, loc="center"
    )
    figure.supxlabel("first k images", fontsize="medium")
    figure.supylabel("label purity (%)", fontsize="medium")
    return Figure(
        "units_curve",
        "Label purity against the number of images",
        figure,
        "Mean over the directions and networks; bands: one standard deviation over the networks.",
    )


def _finding(table: Table) -> str:
    units, random, chance = (
        cell.mean for reading in (UNITS, RANDOM, CHANCE) if (cell := table.cell(SHOWN, reading))
    )
    return (
        f"Of the images that excite a unit of {SHOWN} most, {units:.0f}% share a label; for random "
        f"directions it is {random:.0f}%, for random images {chance:.0f}%."
    )


def _remarks(measurements: Measurements, effect: Table) -> list[str]:
    lines = []
    for name in effect.rows:
        cells = {cell.column: cell.mean for cell in effect.cells if cell.row == name}
        low, high = cells["from"], cells["to"]
        verdict = "units are purer" if low > 0 else "random directions are purer"
        lines.append(
            f"- {name}: {cells['difference']:+.1f} points (95% {low:+.1f} to {high:+.1f}), "
            f"superiority {cells['superiority']:.0f}%: "
            f"{'no difference is shown' if low <= 0 <= high else verdict}."
        )
    learnt = []
    for name in ("FC100-100-10, hidden 2", "SmallCNN, hidden 2"):
        untrained, trained = (
            100 * np.mean([one[RANDOM][0].mean() for one in measurements[key]])
            for key in (f"{name}, untrained", name)
        )
        learnt.append(f"from {untrained:.0f}% to {trained:.0f}% in {name}")
    return [
        "Purity of units minus that of random directions:\n\n" + "\n".join(lines),
        f"Training raises the purity of random directions {' and '.join(learnt)}. What the "
        "untrained networks and the pixels have is there without training: purity alone does not "
        "show that a direction has a meaning that was learnt. Raw activations weigh units by "
        "their variance in a random direction, standardised units weigh equally.",
    ]
