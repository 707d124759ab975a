"""The networks of tables 3 and 4: trained on two disjoint halves of the training set."""

from __future__ import annotations

from .attacks import AdversarialSet, adversarial_set
from .run import Run, Trained

# Row of the paper's tables: builder, half. The third one's weights start elsewhere as well.
MODELS = {
    "FC100-100-10": ("fc100_100_10", 1),
    "FC123-456-10": ("fc123_456_10", 1),
    "FC100-100-10'": ("fc100_100_10", 2),
    "SmallCNN": ("small_cnn", 1),
    "SmallCNN'": ("small_cnn", 2),
}
PAPER = tuple(MODELS)[:3]
PENALTY = {"loss": "cross_entropy"}
# Images of the test set that are attacked; on the convolutional networks.
COUNTS = {"full": (2000, 200), "quick": (200, 20), "tiny": (30, 3)}


def trained_on_halves(run: Run) -> dict[str, list[Trained]]:
    """One network a seed for each row; a seed's split into halves is common to all rows."""
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
    """Adversarial examples of the test images, one set a seed."""
    many, few = COUNTS[run.scale]
    count = few if name.startswith("SmallCNN") else many
    return [adversarial_set(run, one, split="test", count=count, **options) for one in networks]
