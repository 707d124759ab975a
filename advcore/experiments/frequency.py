"""How often do adversarial negatives appear? The question that the paper leaves open.

For correctly classified test images and random unit vectors u: the share of points x + d u that are
misclassified, and of rays x + t u, t <= d, that leave the class somewhere, against d, and against
d / d_min with d_min(x) the smallest distortion that the untargeted attack finds. "free": points and
attack may leave [0, 1]; "clipped": points are clipped to [0, 1] and the attack stays inside.
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

from .networks import CONVOLUTIONAL, PAPER
from .radial import cap_share, crossing, measured, share_interval
from .tables import Figure, Outcome, Table

if TYPE_CHECKING:
    from .run import Run

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
Found = dict[str, list[dict[str, NDArray[Any]]]]
"""What `measured` gives, for every network and seed."""


@dataclass(frozen=True)
class Settings:
    """images, directions : of each network, and of SmallCNN (convolutional).

    steps : radii in a factor of two.
    """

    images: int
    directions: int
    convolutional: tuple[int, int]
    steps: int = 2

    def size(self, name: str) -> tuple[int, int]:
        return self.convolutional if name in CONVOLUTIONAL else (self.images, self.directions)

    @property
    def radii(self) -> NDArray[np.float64]:
        """d from 1/4 to 256."""
        return np.asarray(2.0 ** (np.arange(-2 * self.steps, 8 * self.steps + 1) / self.steps))

    @property
    def ratios(self) -> NDArray[np.float64]:
        """d / d_min from 2 to 256."""
        return np.asarray(2.0 ** (np.arange(self.steps, 8 * self.steps + 1) / self.steps))


SETTINGS = {
    "full": Settings(images=500, directions=200, convolutional=(40, 25)),
    "quick": Settings(images=200, directions=50, convolutional=(12, 16)),
    "tiny": Settings(images=20, directions=20, convolutional=(6, 5), steps=1),
}


def run(run: Run) -> Outcome:
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
    found: Found = {}
    for name, (model, decay) in NETWORKS.items():
        networks = run.trained([run.recipe(model, seed, decay=decay) for seed in run.seeds])
        count, directions = settings.size(name)
        found[name] = [
            measured(
                *(run, network),
                count=count,
                directions=directions,
                radii=settings.radii,
                ratios=settings.ratios,
            )
            for network in networks
        ]
    outcome.tables = [
        _share_table(found, "radius", settings.radii, SHOWN_RADII),
        _share_table(found, "ratio", settings.ratios, SHOWN_RATIOS),
        _quantile_table(found, settings),
        _small_table(found, settings),
    ]
    outcome.figures = [_figure(found, settings, which) for which in ("radius", "ratio")]
    outcome.remarks = _remarks(found, settings)
    outcome.finding = _finding(found, settings)
    return outcome


def _rows(found: Found, grid: str) -> Iterator[tuple[str, str, list[NDArray[Any]]]]:
    """Row of a table, kind and the shares (images, radii) of every seed."""
    for name, made in found.items():
        for label, key in READINGS.items():
            yield f"{name}, {label}", key.split()[0], [one[f"{key} {grid}"] for one in made]


def _place(grid: NDArray[np.float64], value: float) -> int:
    return int(np.flatnonzero(np.isclose(grid, value))[0])


def _share_table(
    found: Found, which: str, grid: NDArray[np.float64], shown: Sequence[float]
) -> Table:
    ratio = which == "ratio"
    table = Table(
        f"frequency_{which}",
        f"Share of random directions that fail, percent, by {'d / d_min' if ratio else 'd'}",
        MEANING + ("" if ratio else " d = 28 is noise of standard deviation 1."),
        corner="d / d_min" if ratio else "d",
        formats={"": ".3g"},
    )
    for row, _, made in _rows(found, which):
        for value in shown:
            place = _place(grid, value)
            table.add(row, f"{value:g}", [100 * float(one[:, place].mean()) for one in made])
    if ratio:
        for value in shown:
            table.add(ONE, f"{value:g}", 100 * cap_share(value, PIXELS))
    return table


def _quantile_table(found: Found, settings: Settings) -> Table:
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
    seeds = range(len(next(iter(found.values()))))
    for row, kind, made in _rows(found, "ratio"):
        name = row.split(", ")[0]
        lengths = [float(np.median(found[name][seed][f"{kind} d_min"])) for seed in seeds]
        table.add(row, "d_min", lengths)
        for level in QUANTILES:
            at = [float(np.median(crossing(one, settings.ratios, level))) for one in made]
            if all(map(math.isfinite, at)):
                table.add(row, f"{100 * level:g}%", at)
    z = -NormalDist().inv_cdf(QUANTILES[0])
    table.add(ONE, f"{100 * QUANTILES[0]:g}%", math.sqrt(PIXELS) / z)
    return table


def _small_table(found: Found, settings: Settings) -> Table:
    table = Table(
        "frequency_small",
        "Small shares of random points, not clipped, percent",
        "All networks of a kind together. From, to: Wilson's 95% interval with the effective "
        "number of points, as those of an image fail together; where none failed, for these "
        "images.",
        corner="distance",
        formats={"": ".2g", "points": ".0f", "failed": ".0f"},
    )
    for name, made in found.items():
        directions = settings.size(name)[1]
        shares = np.concatenate([one["free points ratio"] for one in made])
        for value in SHOWN_RATIOS[:4]:
            own = shares[:, _place(settings.ratios, value)]
            row, (low, high) = f"{name}, {value:g} d_min", share_interval(own, directions)
            table.add(row, "points", float(own.size * directions))
            table.add(row, "failed", float(own.sum() * directions))
            table.add(row, "share", 100 * float(own.mean()))
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


def _figure(found: Found, settings: Settings, which: str) -> Figure:
    from matplotlib.figure import Figure as Canvas

    ratio = which == "ratio"
    fine = np.geomspace(settings.ratios[0], settings.ratios[-1], 100)
    closed = [cap_share(value, PIXELS) for value in fine]
    figure = Canvas(figsize=(4.1 * len(found), 4.4), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axis, (name, made) in zip(axes, found.items(), strict=True):
        directions = settings.size(name)[1]
        grid = settings.ratios if ratio else settings.radii
        for label, style in STYLES.items():
            shares = np.concatenate([one[f"{READINGS[label]} {which}"] for one in made])
            mean = shares.mean(axis=0)
            seen = mean > 0
            axis.plot(grid[seen], mean[seen], label=label, **style)
            if label == "points":
                limits = np.array([share_interval(column, directions) for column in shares.T])
                axis.fill_between(grid[seen], *limits[seen].T, color="C0", alpha=0.2, lw=0)
        lengths = np.sort(np.concatenate([one["free d_min"] for one in made]))
        if ratio:
            axis.plot(fine, closed, color="0.4", ls="--", lw=1.2, label=ONE)
        else:
            worst = np.arange(1, len(lengths) + 1) / len(lengths)
            axis.step(lengths, worst, "k", where="post", label="worst direction (attack)")
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
        f"frequency_{which}",
        "Share of failures against the distance"
        + (" over the minimum distortion" if ratio else ""),
        figure,
        MEANING + " Bands: 95% intervals over images and directions. Worst direction: share of the "
        "images with d_min <= d.",
    )


def _finding(found: Found, settings: Settings) -> str:
    ratio = SHOWN_RATIOS[2]
    shares = [
        100
        * np.mean(
            [one["free points ratio"][:, _place(settings.ratios, ratio)].mean() for one in made]
        )
        for made in found.values()
    ]
    return (
        f"At {ratio:g} times the smallest distortion, {min(shares):.2g}% to {max(shares):.2g}% of "
        "random points around an image are misclassified."
    )


def _remarks(found: Found, settings: Settings) -> list[str]:
    value = SHOWN_RATIOS[2]
    one = 100 * cap_share(value, PIXELS)
    lines = []
    for name, made in found.items():
        pooled = {key: np.concatenate([one[key] for one in made]) for key in made[0]}
        at = pooled["free points ratio"]
        tenth, half = (np.median(crossing(at, settings.ratios, level)) for level in QUANTILES)
        shares = {
            label: 100 * pooled[f"{key} ratio"][:, _place(settings.ratios, value)].mean()
            for label, key in READINGS.items()
        }
        lines.append(
            f"- {name}: median d_min {np.median(pooled['free d_min']):.2f} without bounds, "
            f"{np.median(pooled['clipped d_min']):.2f} inside [0, 1]. At {value:g} d_min "
            f"{shares['points']:.2g}% of random points fail, {shares['rays']:.2g}% of rays; nine "
            f"hyperplanes cut off {shares['nine hyperplanes']:.2g}%, one {one:.2g}%. In the "
            f"median image a tenth of the directions fails at {_told(tenth)}, half at "
            f"{_told(half)}. Clipped, {shares['points, clipped']:.2g}% fail at {value:g} d_min."
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


def _told(ratio: float) -> str:
    return f"{ratio:.0f} d_min" if math.isfinite(ratio) else "no distance looked at"
