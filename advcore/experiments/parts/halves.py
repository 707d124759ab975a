"""The networks of tables 3 and 4: trained on two disjoint halves of the training set."""

from __future__ import annotations

from .attacks import AdversarialSet, adversarial_set
from .run import Run, Trained

# Each row of the paper's tables has a builder and a half. Rows of half 2 also have other initial
# weights.
MODELS = {
    "FC100-100-10": ("fc100_100_10", 1),
    "FC123-456-10": ("fc123_456_10", 1),
    "FC100-100-10'": ("fc100_100_10", 2),
    "SmallCNN": ("small_cnn", 1),
    "SmallCNN'": ("small_cnn", 2),
}
PAPER = tuple(MODELS)[:3]
PENALTY = {"loss": "cross_entropy"}
# Numbers of test images that are attacked, for the fully connected and the convolutional networks.
COUNTS = {"full": (2000, 200), "quick": (200, 20), "tiny": (30, 3)}


def trained_on_halves(run: Run) -> dict[str, list[Trained]]:
    """Train one network a seed for each row.

    All rows of one seed share the split into halves.
    """
    return run.trained_rows(
        {
            name: [
                run.recipe(model, seed + 1000 * (half - 1), half=half, split=seed)
                for seed in run.seeds
            ]
            for name, (model, half) in MODELS.items()
        }
    )


def test_sets(run: Run, name: str, networks: list[Trained], **options: str) -> list[AdversarialSet]:
    """Attack the test images, and return one set a seed."""
    fully_connected, convolutional = COUNTS[run.scale]
    count = convolutional if name.startswith("SmallCNN") else fully_connected
    return [adversarial_set(run, one, split="test", count=count, **options) for one in networks]
