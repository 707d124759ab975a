"""Tables 1 to 4 of the paper at a tiny size, and the numbers they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")
from support.small_experiments import value

from advcore import data, models
from advcore.experiments import table1, table2, table3, table4
from advcore.experiments.parts import halves
from advcore.experiments.parts.attacks import AdversarialSet, adversarial_set, mean_penalty
from advcore.experiments.parts.networks import CONVOLUTIONAL, PAPER
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome, Table
from advcore.experiments.parts.transfer import cross_errors, published_rows
from advcore.models import training

ALL = [*PAPER, *CONVOLUTIONAL]


@pytest.fixture(scope="module")
def first(run: Run) -> Outcome:
    return table1.run(run)


def test_table1_has_every_model_and_both_distortions(first: Outcome) -> None:
    main, cost, targets, readings, decay = first.tables
    assert main.rows == ALL
    for row in PAPER:
        cell = main.cell(row, table1.PENALTY)
        assert cell is not None
        assert cell.published == table1.PUBLISHED[row][2]
        assert value(cost, row, "success, default %") == 100
        assert value(cost, row, table1._EXCESS) > 0
        best, average, worst = (value(targets, row, c) for c in ("best", "average", "worst"))
        assert best < average < worst
    # a heavier penalty: more errors, and a larger distortion
    assert value(decay, "FC10(1)", "training error") > value(main, "FC10(1)", "training error")
    assert value(decay, "FC10(1)", table1.PENALTY) > value(main, "FC10(1)", table1.PENALTY)
    thorough = value(readings, "default loss, effort thorough", "distortion")
    assert thorough <= value(readings, "default loss", "distortion") * (1 + 1e-3)
    squared = value(readings, "paper's penalty, c |r|^2", "distortion")
    unsquared = value(readings, "paper's penalty, c |r|", "distortion")
    assert unsquared == pytest.approx(squared, rel=0.05)


def test_table1_error_rates_are_those_of_the_networks(run: Run, first: Outcome) -> None:
    main = first.tables[0]
    trained = run.trained([run.recipe("fc100_100_10", seed) for seed in run.seeds])
    for seed, network in enumerate(trained):
        predicted = network.model(_tensor(run.digits.test_images)).argmax(1).numpy()
        error = 100 * np.mean(predicted != run.digits.test_labels)
        cell = main.cell("FC100-100-10", "test error")
        assert cell is not None
        assert cell.values[seed] == pytest.approx(error)
    assert trained[0].train_error < 1


def test_table1_average_target_is_the_mean_over_all_runs(run: Run) -> None:
    network = run.trained([run.recipe("fc10", 0)])[0]
    distortion = table1.every_target(run, network, 10)
    assert distortion.shape == (10, 9)
    _, labels = run.digits.sample("train", 10)
    one = adversarial_set(run, network, split="train", count=10, targets=3)
    assert set(one.labels) == set(labels) - {3}
    for image, rms in enumerate(one.rms):
        row = np.flatnonzero(labels != 3)[image]
        column = 3 - (labels[row] < 3)
        assert distortion[row, column] == rms


def test_penalty_minimiser_counts_clean_adversarial_images_as_zero() -> None:
    made = _set(
        rms=np.array([0.0, 0.1, np.inf], np.float32),
        penalty_rms=np.array([np.nan, 0.2, np.nan], np.float32),
        success=np.array([True, True, False]),
    )
    assert mean_penalty(made) == pytest.approx(0.1)


def test_table2_own_examples_always_deceive(run: Run, first: Outcome) -> None:
    outcome = table2.run(run)
    for table in outcome.tables[:3]:
        for row in ALL:
            # a targeted example counts as deceived unless the target is the label: always
            assert value(table, row, row) == 100
    main = outcome.tables[0]
    assert main.cell("noise 0.3", "AE400-10").published == 3.1  # type: ignore[union-attr]
    assert main.cell("FC10(1e-2)", "FC10(1)").published == 35.2  # type: ignore[union-attr]
    # the linear models are nearly the same one: what deceives one deceives the other
    assert value(main, "FC10(1e-2)", "FC10(1e-4)") > 50


def test_tables3_and_4_use_disjoint_halves(run: Run) -> None:
    third, fourth = table3.run(run), table4.run(run)
    assert third.tables[0].rows == list(halves.MODELS)
    assert value(third.tables[0], "FC100-100-10'", "trained on half") == 2
    networks = halves.trained_on_halves(run)
    for trained in networks.values():
        assert max(one.train_error for one in trained) < 40  # none has stayed on a plateau
    for seed in run.seeds:
        one = networks["FC100-100-10"][seed].recipe
        other = networks["FC100-100-10'"][seed].recipe
        assert (one.half, other.half, one.split, other.split) == (1, 2, seed, seed)
        assert one.seed != other.seed
        rows = [
            {image.tobytes() for image in run.digits.training_part(half, seed)[0]}
            for half in (1, 2)
        ]
        assert len(rows[0]) == len(rows[1]) == 400
        assert not rows[0] & rows[1]
    table = fourth.tables[0]
    assert value(table, "FC123-456-10", "FC123-456-10") == 100
    assert table.cell("scaled to 0.1: FC100-100-10", "FC123-456-10").published == 98  # type: ignore[union-attr]
    assert value(table, table4.SCALED + "FC100-100-10", "FC123-456-10") >= value(
        table, "FC100-100-10", "FC123-456-10"
    )


def test_cross_errors_equal_a_count_by_hand(run: Run) -> None:
    run = Run(run.out, scale="tiny", seeds=2, dataset="embedded")
    networks = {
        name: run.trained([run.recipe(model, seed) for seed in run.seeds])
        for name, model in (("a", "fc10"), ("b", "fc100_100_10"))
    }
    sets = {"a": [adversarial_set(run, one, split="test", count=25) for one in networks["a"]]}
    table = Table("t", "t")
    cross_errors(table, networks, sets, {("a", "b"): 7.0}, scale_to=0.2)
    cell = table.cell("a", "b")
    assert cell is not None
    assert cell.published == 7.0
    assert len(cell.values) == 2
    for seed in run.seeds:
        made = sets["a"][seed]
        wrong = 0
        for clean, found, label in zip(made.images, made.adversarial, made.labels, strict=True):
            r = found - clean
            moved = clean if not r.any() else clean + 0.2 * 28 * r / np.linalg.norm(r)
            logits = networks["b"][seed].model(_tensor(moved[None].astype(np.float32)))
            wrong += int(logits.argmax()) != label
        assert cell.values[seed] == pytest.approx(100 * wrong / len(made.images))


def test_scaled_distortions_have_the_root_mean_square_asked_for() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((4, 784), dtype=np.float32)
    made = _set(images=images, adversarial=images + 0.01 * rng.standard_normal((4, 784)))
    moved = made.scaled(0.1) - images
    np.testing.assert_allclose(np.sqrt((moved**2).mean(1)), 0.1, rtol=1e-4)
    clipped = made.scaled(0.1, clip=True)
    assert clipped.min() >= 0
    assert clipped.max() <= 1


def test_published_rows_keep_their_places() -> None:
    assert published_rows({"r": (1, 2)}, ("a", "b")) == {("r", "a"): 1, ("r", "b"): 2}


def test_autoencoder_reconstructs_and_its_codes_are_sparse() -> None:
    torch = pytest.importorskip("torch")
    images, _ = data.embedded_digits()
    encoder = models.autoencoder400_10()[1]
    history = training.train_autoencoder(encoder, images, epochs=6, batch_size=32)
    assert history[-1] < history[0] / 2
    with torch.no_grad():
        mean = float(encoder(_tensor(images)).sigmoid().mean())
    assert 0.02 < mean < 0.15  # `activity` is 0.05


def test_autoencoder_network_keeps_its_code(run: Run) -> None:
    network = run.trained([run.recipe("autoencoder400_10", 0)])[0]
    encoder = models.autoencoder400_10(seed=0)[1]
    training.train_autoencoder(
        encoder,
        run.digits.train_images,
        epochs=network.recipe.codes_epochs,
        batch_size=network.recipe.batch_size,
        seed=0,
    )
    stored = network.model.get_parameter("1.weight")
    np.testing.assert_allclose(stored.numpy(), encoder.weight.detach().numpy(), atol=1e-3)


@pytest.mark.mnist
@needs_data
def test_table1_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1, dataset="mnist")
    recipe = run.recipe("fc10", 0, epochs=1)
    network = run.trained([recipe])[0]
    assert network.test_error < 12
    made = adversarial_set(run, network, split="test", count=50)
    assert made.success.all()
    assert 0.03 < made.mean_rms < 0.2


def _tensor(array: np.ndarray) -> object:
    import torch

    return torch.as_tensor(array)


def _set(**given: object) -> AdversarialSet:
    """A set of three images; what is not given is zero."""
    count = len(next(iter(given.values())))  # type: ignore[arg-type]
    contents: dict[str, object] = {
        "images": np.zeros((count, 784), np.float32),
        "labels": np.zeros(count, np.int64),
        "targets": np.ones(count, np.int64),
        "adversarial": np.zeros((count, 784), np.float32),
        "success": np.ones(count, bool),
        "rms": np.zeros(count, np.float32),
        "penalty_rms": np.full(count, np.nan, np.float32),
        "evaluations": np.zeros(count, np.int32),
        **given,
    }
    return AdversarialSet(**contents)  # type: ignore[arg-type]
