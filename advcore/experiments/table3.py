"""Table 3: networks trained on disjoint halves of the training set."""

from __future__ import annotations

from .parts.attacks import mean_penalty
from .parts.halves import COUNTS, MODELS, PENALTY, test_sets, trained_on_halves
from .parts.run import Run
from .parts.tables import Outcome, Table

# Each row has the test error in percent and the average minimum distortion.
PUBLISHED = {
    "FC100-100-10": (2.4, 0.062),
    "FC123-456-10": (2.5, 0.059),
    "FC100-100-10'": (2.1, 0.058),
}


def run(run: Run) -> Outcome:
    """Measure errors and distortions of the networks of table 4."""
    images, convolutional_images = COUNTS[run.scale]
    outcome = Outcome(
        "table3",
        "Table 3: models trained on disjoint halves",
        "The training set is split into halves P1 and P2. Are networks that have seen one half "
        "alone as good, and as easy to deceive?",
        settings={"images": images, "convolutional_images": convolutional_images},
    )
    table = Table(
        "table3",
        "Errors and average minimum distortion",
        "Errors in percent; distortions on test images with random targets. FC100-100-10' has its "
        "own initial weights and was trained on P2, SmallCNN' likewise; all others on P1.",
        corner="model",
        formats={
            "": ".2f",
            "trained on half": ".0f",
            "distortion, paper's loss": ".4f",
            "distortion, default loss": ".4f",
        },
    )
    for name, networks in trained_on_halves(run).items():
        published = PUBLISHED.get(name, (None, None))
        table.add(name, "trained on half", [MODELS[name][1]] * len(networks))
        table.add(name, "training error", [one.train_error for one in networks])
        table.add(name, "test error", [one.test_error for one in networks], published[0])
        penalty = test_sets(run, name, networks, **PENALTY)
        table.add(
            name,
            "distortion, paper's loss",
            [mean_penalty(examples) for examples in penalty],
            published[1],
        )
        margin = test_sets(run, name, networks)
        table.add(name, "distortion, default loss", [examples.mean_rms for examples in margin])
    outcome.tables = [table]
    outcome.headline = ("table3", "FC100-100-10", "distortion, paper's loss")
    outcome.finding = _finding(table)
    return outcome


def _finding(table: Table) -> str:
    means = {
        column: [cell.mean for row in PUBLISHED if (cell := table.cell(row, column)) is not None]
        for column in ("test error", "distortion, paper's loss")
    }
    errors, distortions = means.values()
    return (
        f"With half the images the errors are {min(errors):.1f}% to {max(errors):.1f}%, the "
        f"distortions {min(distortions):.3f} to {max(distortions):.3f}."
    )
