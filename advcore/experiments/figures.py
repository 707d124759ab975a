"""The paper's figures 5-7: adversarial examples as pictures, noise of the same size beside them.

Figures 5 and 6 of the paper show AlexNet and QuocNet. Here the networks of MNIST are shown in the
same form. Figure 7 compares adversarial examples (accuracy 0%) with Gaussian noise (accuracy 51%).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from advcore import report

from .parts.attacks import AdversarialSet, adversarial_set, error_percent
from .parts.digits import gaussian_noise
from .parts.networks import CONVOLUTIONAL, PAPER
from .parts.pictures import noise_grid, predictions, slug
from .parts.tables import Figure, Outcome, Table

if TYPE_CHECKING:
    from .parts.run import Run, Trained

NETWORKS = {
    name: {**PAPER, **CONVOLUTIONAL}[name]
    for name in ("FC10(1e-4)", "FC100-100-10", "FC200-200-10", "AE400-10", "SmallCNN")
}
# Figure 7 a and b show adversarial examples of a linear classifier and of the network with 200 and
# 200 units. Figure 7 c shows noise of stddev 1; the paper does not say which network classified it.
PUBLISHED = {name: {"adversarial": 0.0, "noise 1": 51.0} for name in ("FC10(1e-4)", "FC200-200-10")}
EXAMPLES = ("FC10(1e-4)", "FC100-100-10", "AE400-10", "SmallCNN")
NOISY = ("FC10(1e-4)", "FC200-200-10", "SmallCNN")
TABLE_STDDEVS = (0.1, 0.3, 1.0)
EQUAL = "noise of equal rms"


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment at one scale.

    images : number of test images that are attacked and distorted.
    convolutional : the same number for SmallCNN.
    stddevs : standard deviations of the noise in the curve.
    draws : number of noise samples for every image.
    columns : number of images in a figure.
    """

    images: int
    convolutional: int
    stddevs: tuple[float, ...]
    draws: int = 1
    columns: int = 10

    def count(self, name: str) -> int:
        """Return the number of images for the network `name`."""
        return self.convolutional if name in CONVOLUTIONAL else self.images


CURVE = tuple(round(0.01 * 10 ** (step / 6), 4) for step in range(16))  # 0.01 to 3.2
SETTINGS = {
    "full": Settings(images=2000, convolutional=500, stddevs=CURVE, draws=3),
    "quick": Settings(images=500, convolutional=60, stddevs=CURVE[::2]),
    "tiny": Settings(images=60, convolutional=12, stddevs=CURVE[::5], columns=6),
}


def run(run: Run) -> Outcome:
    """Attack the networks, measure their accuracy under noise, and draw both."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "figures",
        "Adversarial examples and noise (figures 5-7)",
        "What do adversarial examples look like, and is noise of the same size as harmful?",
        settings=asdict(settings)
        | {"targets": "random wrong class, the same for every network", "split": "test"},
    )
    tables = {clip: _table(clip) for clip in (False, True)}
    curves: dict[str, dict[str, NDArray[Any]]] = {}
    for name, (model, decay) in NETWORKS.items():
        networks = run.trained([run.recipe(model, seed, decay=decay) for seed in run.seeds])
        sets = [
            adversarial_set(run, network, split="test", count=settings.count(name))
            for network in networks
        ]
        accuracies = [
            run.step(
                "noise",
                {"network": network.key, "count": settings.count(name), **asdict(settings)},
                lambda network=network, attacked=attacked: _accuracies(  # type: ignore[misc]
                    network, attacked, settings
                ),
            )
            for network, attacked in zip(networks, sets, strict=True)
        ]
        curves[name] = {key: np.stack([one[key] for one in accuracies]) for key in accuracies[0]}
        curves[name]["rms"] = np.array([attacked.mean_rms for attacked in sets])
        for clip, table in tables.items():
            _fill(table, name, curves[name], clip=clip)
        if name in EXAMPLES:
            outcome.figures.append(_examples(name, networks[0], sets[0], settings))
        if name in NOISY:
            outcome.figures.append(_noisy(name, networks[0], sets[0], curves[name], settings))
    outcome.tables += tables.values()
    outcome.figures.append(_curve_figure(curves, settings))
    outcome.remarks += _remarks(curves)
    (name,) = (row for row in PUBLISHED if row.startswith("FC10("))
    outcome.headline = (tables[False].name, name, "noise 1")
    outcome.finding = _finding(curves)
    return outcome


def equal_noise(attacked: AdversarialSet, seed: int) -> NDArray[np.float32]:
    """Add Gaussian noise to each image, scaled to the rms of its own adversarial distortion."""
    noise = np.random.default_rng(seed).standard_normal(attacked.images.shape)
    noise /= np.sqrt(np.square(noise).mean(axis=1, keepdims=True))
    noise *= np.where(attacked.success, attacked.rms, 0.0)[:, None]
    return (attacked.images + noise).astype(np.float32)


def _accuracies(
    network: Trained, attacked: AdversarialSet, settings: Settings
) -> dict[str, NDArray[Any]]:
    """Return accuracies in percent by name, each a scalar or one value a standard deviation.

    "free" noise may leave [0, 1], "clipped" noise may not. Adversarial images and noise of equal
    rms are evaluated where the attack succeeded.
    """
    labels, success = attacked.labels, attacked.success
    draws = range(settings.draws)

    def accuracy(images: NDArray[np.float32], rows: Any = slice(None)) -> float:
        return 100 - error_percent(network, images[rows], labels[rows])

    accuracies: dict[str, Any] = {
        "clean": accuracy(attacked.images),
        "adversarial": accuracy(attacked.adversarial, success),
        "success": 100 * success.mean(),
    }
    equal = [equal_noise(attacked, seed) for seed in draws]
    for kind, clip in (("free", False), ("clipped", True)):
        noisy = [np.clip(images, 0, 1) if clip else images for images in equal]
        accuracies[f"{kind}_equal"] = np.mean([accuracy(images, success) for images in noisy])
        for grid, stddevs in (("table", TABLE_STDDEVS), ("curve", settings.stddevs)):
            accuracies[f"{kind}_{grid}"] = [
                np.mean(
                    [
                        accuracy(gaussian_noise(attacked.images, stddev, seed, clip=clip))
                        for seed in draws
                    ]
                )
                for stddev in stddevs
            ]
    return {key: np.asarray(value, np.float64) for key, value in accuracies.items()}


def _table(clip: bool) -> Table:
    where = "clipped to [0, 1]" if clip else "not clipped"
    return Table(
        "figures_noise_clipped" if clip else "figures_noise",
        f"Accuracy in percent on adversarial examples and on noise, {where}",
        "Adversarial examples: random targets, in [0, 1]. Noise of equal rms: Gaussian, scaled for "
        "each image to the rms of its own adversarial distortion. rms: mean of sqrt(mean r^2) over "
        "the images. The paper gives 51% for noise of stddev 1 without naming the network, nor "
        "whether the noisy images were clipped; it stands here beside both networks of figure 7.",
        corner="network",
        formats={"": ".1f", "rms": ".3f"},
    )


def _fill(table: Table, name: str, values: Mapping[str, NDArray[Any]], *, clip: bool) -> None:
    kind = "clipped" if clip else "free"
    columns = {key: values[key] for key in ("clean", "rms", "adversarial")}
    columns[EQUAL] = values[f"{kind}_equal"]
    for place, stddev in enumerate(TABLE_STDDEVS):
        columns[f"noise {stddev:g}"] = values[f"{kind}_table"][:, place]
    for column, numbers in columns.items():
        table.add(name, column, list(numbers), PUBLISHED.get(name, {}).get(column))


def _example_rows(
    network: Trained, attacked: AdversarialSet, settings: Settings
) -> NDArray[np.int64]:
    """Return the first images that are classified correctly and attacked with success."""
    correct = predictions(network, attacked.images) == attacked.labels
    return np.flatnonzero(correct & attacked.success)[: settings.columns]


def _examples(name: str, network: Trained, attacked: AdversarialSet, settings: Settings) -> Figure:
    """Draw the paper's figures 5 and 6 for the network of the first seed."""
    rows = _example_rows(network, attacked, settings)
    drawing = report.adversarial_figure(
        attacked.images[rows],
        attacked.adversarial[rows],
        predictions(network, attacked.adversarial[rows]),
        attacked.rms[rows],
        labels=attacked.labels[rows],
        measure="distortion, sqrt(mean r²)",
        digits=3,
    )
    return Figure(
        f"adversarial_{slug(name)}",
        f"{name}: original, adversarial, difference x10",
        drawing,
        "The first test images of the sample that the network has right, with random targets. "
        "Above: label, and the class that the network gives the adversarial image.",
    )


def _noisy(
    name: str,
    network: Trained,
    attacked: AdversarialSet,
    values: Mapping[str, NDArray[Any]],
    settings: Settings,
) -> Figure:
    """Draw the paper's figure 7 for the network of the first seed."""
    rows = _example_rows(network, attacked, settings)
    rows_shown = [
        ("original", attacked.images, values["clean"][0]),
        ("adversarial", attacked.adversarial, values["adversarial"][0]),
        ("noise of\nequal rms", equal_noise(attacked, 0), values["free_equal"][0]),
    ]
    for stddev, accuracy in zip(TABLE_STDDEVS, values["free_table"][0], strict=True):
        images_with_noise = gaussian_noise(attacked.images, stddev, 0)
        rows_shown.append((f"noise {stddev:g}", images_with_noise, accuracy))
    return Figure(
        f"noise_{slug(name)}",
        f"{name}: adversarial examples and noise",
        noise_grid(
            network,
            attacked.labels[rows],
            [(label, images[rows], accuracy) for label, images, accuracy in rows_shown],
        ),
        "Above each picture the class that the network gives it, red where that is wrong; on the "
        f"left the accuracy on all {len(attacked.images)} images. Noise is not clipped before it "
        "is classified; the pictures are.",
    )


def _curve_figure(curves: Mapping[str, Mapping[str, NDArray[Any]]], settings: Settings) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(9.5, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, kind, title in zip(
        axes, ("free", "clipped"), ("noise not clipped", "noise clipped to [0, 1]"), strict=True
    ):
        for colour, (name, values) in enumerate(curves.items()):
            line, x = values[f"{kind}_curve"], settings.stddevs
            mean, spread = line.mean(0), line.std(0, ddof=1) if len(line) > 1 else 0 * line[0]
            axis.plot(x, mean, color=f"C{colour}", label=name)
            axis.fill_between(x, mean - spread, mean + spread, color=f"C{colour}", alpha=0.2, lw=0)
            axis.plot(
                values["rms"].mean(), values["adversarial"].mean(), "X", color=f"C{colour}", ms=8
            )
        axis.axhline(10, color="0.6", lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="standard deviation of the distortion", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy (%)")
    axes[0].plot([], [], "X", color="0.4", ms=8, label="adversarial examples")
    axes[0].legend(frameon=False, loc="center left", fontsize="small", bbox_to_anchor=(0, 0.42))
    return Figure(
        "noise_curve",
        "Accuracy against the size of the distortion",
        figure,
        "Lines: Gaussian noise, mean over the seeds, bands of one standard deviation. Crosses: "
        "adversarial examples at their mean rms. Dotted: chance.",
    )


def _finding(curves: Mapping[str, Mapping[str, NDArray[Any]]]) -> str:
    accuracy = max(float(values["adversarial"].mean()) for values in curves.values())
    change = min(
        float(values["free_equal"].mean() - values["clean"].mean()) for values in curves.values()
    )
    return (
        f"Networks see at most {accuracy:.1f}% of the adversarial examples right; noise of the "
        f"same size takes at most {max(-change, 0):.1f} points off their accuracy."
    )


def _remarks(curves: Mapping[str, Mapping[str, NDArray[Any]]]) -> list[str]:
    parts = []
    for name, values in curves.items():
        change = values["free_equal"].mean() - values["clean"].mean() + 0.0
        strong, clipped = (values[f"{kind}_table"][:, -1].mean() for kind in ("free", "clipped"))
        parts.append(
            f"- {name}: adversarial distortions of rms {values['rms'].mean():.3f} leave "
            f"{values['adversarial'].mean():.1f}% right (attack succeeded on "
            f"{values['success'].mean():.1f}%), noise of the same rms changes accuracy by "
            f"{change:+.1f} points; at stddev 1 it is {strong:.1f}%, clipped to [0, 1] "
            f"{clipped:.1f}%."
        )
    for name, published in PUBLISHED.items():
        gaps = {
            kind: abs(curves[name][f"{kind}_table"][:, -1].mean() - published["noise 1"])
            for kind in ("free", "clipped")
        }
        better = "not clipped" if gaps["free"] < gaps["clipped"] else "clipped"
        parts.append(
            f"- {name}: the paper's {published['noise 1']:g}% at stddev 1 is nearer to noise "
            f"that is {better} (off by {gaps['free']:.1f} points not clipped, "
            f"{gaps['clipped']:.1f} clipped)."
        )
    ratios = [round(1 / float(values["rms"].mean())) for values in curves.values()]
    parts.append(
        f"\nNoise of stddev 1 is {min(ratios)} to {max(ratios)} times as large as the adversarial "
        "distortion of the same network."
    )
    return ["\n".join(parts)]
