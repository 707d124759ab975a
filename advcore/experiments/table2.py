"""Table 2: do adversarial examples of one network deceive networks of another kind?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .parts.attacks import AdversarialSet, adversarial_set
from .parts.networks import CONVOLUTIONAL, PAPER
from .parts.run import Run, Trained
from .parts.tables import Outcome, Table
from .parts.transfer import (
    Published,
    cross_errors,
    mean_off_diagonal,
    noise_errors,
    published_rows,
    trained_rows,
)

NOISE = (0.0, 0.1, 0.3)
# Rows are the networks that the examples were made for. Columns, in the same order, are the
# networks that classify them. Values are error rates in percent.
PUBLISHED = published_rows(
    {
        "FC10(1e-4)": (100, 11.7, 22.7, 2, 3.9, 2.7),
        "FC10(1e-2)": (87.1, 100, 35.2, 35.9, 27.3, 9.8),
        "FC10(1)": (71.9, 76.2, 100, 48.1, 47, 34.4),
        "FC100-100-10": (28.9, 13.7, 21.1, 100, 6.6, 2),
        "FC200-200-10": (38.2, 14, 23.8, 20.3, 100, 2.7),
        "AE400-10": (23.4, 16, 24.8, 9.4, 6.6, 100),
        "noise 0.1": (5.0, 10.1, 18.3, 0, 0, 0.8),
        "noise 0.3": (15.6, 11.3, 22.7, 5, 4.3, 3.1),
    },
    tuple(PAPER),
)
PENALTY = {"loss": "cross_entropy"}


@dataclass(frozen=True)
class Settings:
    """Numbers of images attacked for every network, and for the convolutional one."""

    images: int
    convolutional_images: int


SETTINGS = {"full": Settings(2000, 200), "quick": Settings(200, 20), "tiny": Settings(30, 3)}


def run(run: Run) -> Outcome:
    """Measure the cross error rates of the six models and of a convolutional one."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "table2",
        "Table 2: other models, the same examples",
        "Adversarial examples are made for one network (row) and shown to another (column): how "
        "often is that one wrong as well?",
        settings=asdict(settings),
    )
    networks = trained_rows(
        run,
        {
            name: (model, {"decay": decay})
            for name, (model, decay) in {**PAPER, **CONVOLUTIONAL}.items()
        },
    )
    penalty = _matrix(
        "table2",
        "The paper's loss, training images",
        "Percent of the adversarial examples that the column's network takes for another class "
        "than their label; cross-entropy, random targets. Noise rows: the same images with "
        "Gaussian noise, which leaves [0, 1] unless it says clipped.",
    )
    sets = _sets(run, networks, settings, split="train", **PENALTY)
    cross_errors(penalty, networks, sets, PUBLISHED)
    _noise(run, penalty, networks, settings, "train", PUBLISHED)
    margin = _matrix(
        "table2_margin",
        "The default loss, training images",
        "The same with the examples of smallest distortion: they lie on the decision boundary of "
        "their own network.",
    )
    cross_errors(margin, networks, _sets(run, networks, settings, split="train"), {})
    test = _matrix(
        "table2_test",
        "The paper's loss, test images",
        "The same as the first table on images that no network was trained on.",
    )
    cross_errors(test, networks, _sets(run, networks, settings, split="test", **PENALTY), {})
    _noise(run, test, networks, settings, "test", {})
    scaled = _matrix(
        "table2_scaled",
        "Brought to the same size",
        "The first table's examples with every distortion scaled to sqrt(mean r^2) = 0.1, not "
        "clipped: compare with noise of that standard deviation.",
    )
    cross_errors(scaled, networks, sets, {}, scale_to=0.1)
    outcome.tables = [penalty, margin, test, scaled]
    outcome.remarks = _remarks(penalty, margin, scaled)
    outcome.headline = ("table2", "FC100-100-10", "FC200-200-10")
    rows = list(PAPER)
    outcome.finding = (
        "Examples made for one network deceive another one in "
        f"{mean_off_diagonal(penalty, rows, rows):.1f}% of the cases, and in "
        f"{mean_off_diagonal(scaled, rows, rows):.1f}% when brought to 0.1."
    )
    return outcome


def _matrix(name: str, title: str, caption: str) -> Table:
    return Table(name, title, caption, corner="examples of")


def _sets(
    run: Run, networks: Mapping[str, list[Trained]], settings: Settings, **options: Any
) -> dict[str, list[AdversarialSet]]:
    return {
        name: [
            adversarial_set(run, one, count=_count(name, settings), **options) for one in trained
        ]
        for name, trained in networks.items()
    }


def _count(name: str, settings: Settings) -> int:
    return settings.convolutional_images if name in CONVOLUTIONAL else settings.images


def _noise(
    run: Run,
    table: Table,
    networks: Mapping[str, list[Trained]],
    settings: Settings,
    split: str,
    published: Published,
) -> None:
    images, labels = run.digits.sample(split, settings.images)
    for stddev in NOISE:
        noise_errors(table, networks, images, labels, stddev, published)
    noise_errors(table, networks, images, labels, NOISE[-1], {}, clip=True)


def _remarks(penalty: Table, margin: Table, scaled: Table) -> list[str]:
    rows = list(PAPER)
    published = [PUBLISHED[row, column] for row in rows for column in rows if row != column]
    return [
        "Mean error of a network on another one's examples, over the paper's six models: "
        f"{mean_off_diagonal(penalty, rows, rows):.1f}% with the paper's loss (published: "
        f"{sum(published) / len(published):.1f}%), "
        f"{mean_off_diagonal(margin, rows, rows):.1f}% with the default loss, "
        f"{mean_off_diagonal(scaled, rows, rows):.1f}% when every distortion is "
        "brought to 0.1.",
    ]
