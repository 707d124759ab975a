"""How often do adversarial negatives appear? The question that the paper leaves open.

The experiment takes correctly classified test images x and random unit vectors u. It measures the
share of points x + d u that are misclassified, and of rays x + t u, t <= d, that leave the class
somewhere. Both are shown against d and against d / d_min; d_min(x) is the smallest distortion that
the untargeted attack finds. "free" points and attacks may leave [0, 1]. "clipped" points are
clipped to [0, 1] and the attack stays inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advcore.models import PIXELS

from .parts.networks import CONVOLUTIONAL, PAPER
from .parts.radial import cap_share, crossing, direction_shares, share_interval
from .parts.tables import Figure, Outcome, Table

if TYPE_CHECKING:
    from .parts.run import Run

NETWORKS = {
    name: {**PAPER, **CONVOLUTIONAL}[name] for name in ("FC10(1e-4)", "FC100-100-10", "SmallCNN")
}
READINGS = {
    "points": "free points",
    "rays": "free rays",
    "nine hyperplanes": "free hyperplanes",
    "points, clipped": "clipped points",
    "rays, clipped": "clipped rays",
}
ONE = "one hyperplane, closed form"
QUANTILES = (0.1, 0.5)
SHOWN_RADII = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SHOWN_RATIOS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
MEANING = (
    "Points: x + d u is misclassified. Rays: some x + t u with t <= d is, of the radii that were "
    "looked at. Nine hyperplanes: x + d u is beyond one of those through the adversarial examples "
    "of the other classes, orthogonal to their distortions. Clipped: to [0, 1] before it is "
    "classified, with d the length before; d_min is then that of the attack inside [0, 1], else "
    "of the attack without bounds."
)
Measurements = dict[str, list[dict[str, NDArray[Any]]]]
"""The results of `direction_shares` by network, one entry a seed."""


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment at one scale.

    images, directions : number of images of each network, and of directions of each image.
    convolutional : the same two numbers for SmallCNN.
    steps : number of radii in a factor of two.
    """

    images: int
    directions: int
    convolutional: tuple[int, int]
    steps: int = 2

    def size(self, name: str) -> tuple[int, int]:
        """Return the numbers of images and of directions for the network `name`."""
        return self.convolutional if name in CONVOLUTIONAL else (self.images, self.directions)

    @property
    def radii(self) -> NDArray[np.float64]:
        """The distances d, from 1/4 to 256."""
        return np.asarray(2.0 ** (np.arange(-2 * self.steps, 8 * self.steps + 1) / self.steps))

    @property
    def ratios(self) -> NDArray[np.float64]:
        """The ratios d / d_min, from 2 to 256."""
        return np.asarray(2.0 ** (np.arange(self.steps, 8 * self.steps + 1) / self.steps))


SETTINGS = {
    "full": Settings(images=500, directions=200, convolutional=(40, 25)),
    "quick": Settings(images=200, directions=50, convolutional=(12, 16)),
    "tiny": Settings(images=20, directions=20, convolutional=(6, 5), steps=1),
}


def run(run: Run) -> Outcome:
    """Measure the shares of failures for every network, and tabulate and draw them."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "frequency",
        "How often do adversarial negatives appear?",
        "What share of random directions, and of random points at distance d, is misclassified, "
        "beside the smallest distortion that the attack finds?",
        settings=asdict(settings)
        | {"radii": list(settings.radii), "radii over d_min": list(settings.ratios)}
        | {"split": "test", "attack": "untargeted, default effort"},
    )
    measurements: Measurements = {}
    for name, (model, decay) in NETWORKS.items():
        networks = run.trained([run.recipe(model, seed, decay=decay) for seed in run.seeds])
        count, directions = settings.size(name)
        measurements[name] = [
            direction_shares(
                run,
                network,
                count=count,
                directions=directions,
                radii=settings.radii,
                ratios=settings.ratios,
            )
            for network in networks
        ]
    outcome.tables = [
        _share_table(measurements, "radius", settings.radii, SHOWN_RADII),
        _share_table(measurements, "ratio", settings.ratios, SHOWN_RATIOS),
        _quantile_table(measurements, settings),
        _small_table(measurements, settings),
    ]
    outcome.figures = [_figure(measurements, settings, grid) for grid in ("radius", "ratio")]
    outcome.remarks = _remarks(measurements, settings)
    outcome.finding = _finding(measurements, settings)
    return outcome


def _rows(measurements: Measurements, grid: str) -> Iterator[tuple[str, str, list[NDArray[Any]]]]:
    """Yield the name of a table's row, its kind and the shares (images, radii) of every seed."""
    for name, results in measurements.items():
        for label, key in READINGS.items():
            yield (
                f"{name}, {label}",
                key.split()[0],
                [result[f"{key} {grid}"] for result in results],
            )


def _place(grid: NDArray[np.float64], value: float) -> int:
    return int(np.flatnonzero(np.isclose(grid, value))[0])


def _share_table(
    measurements: Measurements, grid_name: str, grid: NDArray[np.float64], columns: Sequence[float]
) -> Table:
    ratio = grid_name == "ratio"
    table = Table(
        f"frequency_{grid_name}",
        f"Share of random directions that fail, percent, by {'d / d_min' if ratio else 'd'}",
        MEANING + ("" if ratio else " d = 28 is noise of standard deviation 1."),
        corner="d / d_min" if ratio else "d",
        formats={"": ".3g"},
    )
    for row, _, shares in _rows(measurements, grid_name):
        for value in columns:
            place = _place(grid, value)
            table.add(row, f"{value:g}", [100 * float(one[:, place].mean()) for one in shares])
    if ratio:
        for value in columns:
            table.add(ONE, f"{value:g}", 100 * cap_share(value, PIXELS))
    return table


def _quantile_table(measurements: Measurements, settings: Settings) -> Table:
    table = Table(
        "frequency_quantile",
        "First distance at which a share of the random directions fails, over d_min",
        "Median over the images of the first d / d_min at which that share of an image's points or "
        "rays fails; and of d_min. Empty: half of the images do not reach it up to "
        f"{settings.ratios[-1]:g}. One hyperplane: sqrt(784) / z_q; it never cuts off half of a "
        "sphere.",
        corner="share",
        formats={"": ".1f", "d_min": ".2f"},
    )
    seeds = range(len(next(iter(measurements.values()))))
    for row, kind, shares in _rows(measurements, "ratio"):
        name = row.split(", ")[0]
        lengths = [float(np.median(measurements[name][seed][f"{kind} d_min"])) for seed in seeds]
        table.add(row, "d_min", lengths)
        for level in QUANTILES:
            ratios = [float(np.median(crossing(one, settings.ratios, level))) for one in shares]
            if all(map(math.isfinite, ratios)):
                table.add(row, f"{100 * level:g}%", ratios)
    z = -NormalDist().inv_cdf(QUANTILES[0])
    table.add(ONE, f"{100 * QUANTILES[0]:g}%", math.sqrt(PIXELS) / z)
    return table


def _small_table(measurements: Measurements, settings: Settings) -> Table:
    table = Table(
        "frequency_small",
        "Small shares of random points, not clipped, percent",
        "All networks of a kind together. From, to: Wilson's 95% interval with the effective "
        "number of points, as those of an image fail together; where none failed, for these "
        "images.",
        corner="distance",
        formats={"": ".2g", "points": ".0f", "failed": ".0f"},
    )
    for name, results in measurements.items():
        directions = settings.size(name)[1]
        shares = np.concatenate([one["free points ratio"] for one in results])
        for value in SHOWN_RATIOS[:4]:
            column = shares[:, _place(settings.ratios, value)]
            row, (low, high) = f"{name}, {value:g} d_min", share_interval(column, directions)
            table.add(row, "points", float(column.size * directions))
            table.add(row, "failed", float(column.sum() * directions))
            table.add(row, "share", 100 * float(column.mean()))
            table.add(row, "from", 100 * low)
            table.add(row, "to", 100 * high)
            table.add(row, ONE, 100 * cap_share(value, PIXELS))
    return table


STYLES: dict[str, dict[str, Any]] = {
    "points": {"color": "C0", "lw": 3, "alpha": 0.6},
    "rays": {"color": "C3", "lw": 1.2},
    "nine hyperplanes": {"color": "C2", "ls": "--"},
    "points, clipped": {"color": "C0", "ls": ":"},
}


def _figure(measurements: Measurements, settings: Settings, grid_name: str) -> Figure:
    from matplotlib.figure import Figure as Canvas

    ratio = grid_name == "ratio"
    curve_ratios = np.geomspace(settings.ratios[0], settings.ratios[-1], 100)
    closed_form = [cap_share(value, PIXELS) for value in curve_ratios]
    figure = Canvas(figsize=(4.1 * len(measurements), 4.4), layout="constrained")
    axes = figure.subplots(1, len(measurements), sharey=True, squeeze=False)[0]
    for axis, (name, results) in zip(axes, measurements.items(), strict=True):
        directions = settings.size(name)[1]
        grid = settings.ratios if ratio else settings.radii
        for label, style in STYLES.items():
            shares = np.concatenate([one[f"{READINGS[label]} {grid_name}"] for one in results])
            mean = shares.mean(axis=0)
            positive = mean > 0
            axis.plot(grid[positive], mean[positive], label=label, **style)
            if label == "points":
                limits = np.array([share_interval(column, directions) for column in shares.T])
                axis.fill_between(grid[positive], *limits[positive].T, color="C0", alpha=0.2, lw=0)
        lengths = np.sort(np.concatenate([one["free d_min"] for one in results]))
        if ratio:
            axis.plot(curve_ratios, closed_form, color="0.4", ls="--", lw=1.2, label=ONE)
        else:
            ranks = np.arange(1, len(lengths) + 1) / len(lengths)
            axis.step(lengths, ranks, "k", where="post", label="worst direction (attack)")
            upper = axis.secondary_xaxis(
                "top", functions=(lambda d: d / math.sqrt(PIXELS), lambda s: s * math.sqrt(PIXELS))
            )
            upper.set_xlabel("standard deviation of the noise, d / √784", fontsize="small")
        axis.set(xscale="log", yscale="log", ylim=(3e-6, 1.5), title=name)
        axis.set_xlabel("d / d_min" if ratio else "distance d")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share that is misclassified")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=5)
    return Figure(
        f"frequency_{grid_name}",
        "Share of failures against the distance"
        + (" over the minimum distortion" if ratio else ""),
        figure,
        MEANING + " Bands: 95% intervals over images and directions. Worst direction: share of the "
        "images with d_min <= d.",
    )


def _finding(measurements: Measurements, settings: Settings) -> str:
    ratio = SHOWN_RATIOS[2]
    shares = [
        100
        * np.mean(
            [one["free points ratio"][:, _place(settings.ratios, ratio)].mean() for one in results]
        )
        for results in measurements.values()
    ]
    return (
        f"At {ratio:g} times the smallest distortion, {min(shares):.2g}% to {max(shares):.2g}% of "
        "random points around an image are misclassified."
    )


def _remarks(measurements: Measurements, settings: Settings) -> list[str]:
    value = SHOWN_RATIOS[2]
    one = 100 * cap_share(value, PIXELS)
    lines = []
    for name, results in measurements.items():
        arrays = {key: np.concatenate([one[key] for one in results]) for key in results[0]}
        point_shares = arrays["free points ratio"]
        tenth, half = (
            np.median(crossing(point_shares, settings.ratios, level)) for level in QUANTILES
        )
        shares = {
            label: 100 * arrays[f"{key} ratio"][:, _place(settings.ratios, value)].mean()
            for label, key in READINGS.items()
        }
        lines.append(
            f"- {name}: median d_min {np.median(arrays['free d_min']):.2f} without bounds, "
            f"{np.median(arrays['clipped d_min']):.2f} inside [0, 1]. At {value:g} d_min "
            f"{shares['points']:.2g}% of random points fail, {shares['rays']:.2g}% of rays; nine "
            f"hyperplanes cut off {shares['nine hyperplanes']:.2g}%, one {one:.2g}%. In the "
            f"median image a tenth of the directions fails at {_ratio_text(tenth)}, half at "
            f"{_ratio_text(half)}. Clipped, {shares['points, clipped']:.2g}% fail at {value:g} "
            "d_min."
        )
    return [
        "\n".join(lines),
        "The closer the nine hyperplanes, fixed by the adversarial examples alone, come to the "
        "share of points, the less there is to explain beyond boundaries that are flat over such "
        "distances: a random direction of length d moves by about d / sqrt(784) along a given "
        "normal. They are not exact for FC10 either: an adversarial example of a target has to "
        "beat all classes, its distortion need not be orthogonal to a boundary.",
        "Clipped noise is no random direction: on the black background only its brighter half is "
        "left, so that all images move the same way.",
    ]


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.0f} d_min" if math.isfinite(ratio) else "no distance looked at"
