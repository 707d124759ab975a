"""Adversarial examples beside noise at a tiny size, and the noise itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")

import torch

from advcore.experiments import figures
from advcore.experiments.parts import pictures
from advcore.experiments.parts.attacks import adversarial_set
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return figures.run(run)


def test_equal_noise_has_the_rms_of_each_distortion(run: Run) -> None:
    network = run.trained([run.recipe("fc10", 0)])[0]
    attacked = adversarial_set(run, network, split="test", count=60)
    assert attacked.success.all()
    noise = figures.equal_noise(attacked, 0).astype(np.float64) - attacked.images
    own = attacked.adversarial.astype(np.float64) - attacked.images
    np.testing.assert_allclose(
        np.sqrt((noise**2).mean(axis=1)), np.sqrt((own**2).mean(axis=1)), rtol=1e-3
    )
    assert not np.array_equal(noise, figures.equal_noise(attacked, 1) - attacked.images)
    angles = (noise * own).sum(1) / np.linalg.norm(noise, axis=1) / np.linalg.norm(own, axis=1)
    assert abs(angles.mean()) < 4 / np.sqrt(784 * 60)  # no direction of its own
    failed = replace(attacked, success=np.zeros(60, bool))
    assert np.array_equal(figures.equal_noise(failed, 0), attacked.images)


def test_table_against_the_network_itself(run: Run, outcome: Outcome) -> None:
    network = run.trained([run.recipe("fc100_100_10", 0)])[0]
    attacked = adversarial_set(run, network, split="test", count=60)
    noise = np.random.default_rng(0).standard_normal(attacked.images.shape, dtype=np.float32)
    free = attacked.images + noise
    sets = {
        (0, "clean"): attacked.images,
        (0, "adversarial"): attacked.adversarial,
        (0, "noise 1"): free,
        (1, "noise 1"): free.clip(0, 1),
        (0, figures.EQUAL): figures.equal_noise(attacked, 0),
        (1, figures.EQUAL): figures.equal_noise(attacked, 0).clip(0, 1),
    }
    for (place, column), images in sets.items():
        with torch.inference_mode():
            predicted = network.model(torch.as_tensor(images)).argmax(1).numpy()
        cell = outcome.tables[place].cell("FC100-100-10", column)
        assert cell is not None
        assert cell.mean == pytest.approx(100 * np.mean(predicted == attacked.labels))


def test_adversarial_examples_are_wrong_and_noise_of_their_size_is_not(outcome: Outcome) -> None:
    for table in outcome.tables:
        assert table.rows == list(figures.NETWORKS)
        for row in table.rows:
            cells = {cell.column: cell.mean for cell in table.cells if cell.row == row}
            assert cells["adversarial"] == 0
            assert cells[figures.EQUAL] > cells["clean"] - 10
            assert cells["noise 1"] < cells["noise 0.1"]
    cell = outcome.tables[0].cell("FC10(1e-4)", "noise 1")
    assert cell is not None
    assert cell.published == 51


def test_pictures(outcome: Outcome, tmp_path: Path) -> None:
    names = [figure.name for figure in outcome.figures]
    assert len(set(names)) == len(figures.EXAMPLES) + len(figures.NOISY) + 1
    grid = outcome.figures[names.index("adversarial_fc10_1e_4")]
    axes = grid.drawing.axes
    assert len(axes) == 3 * figures.SETTINGS["tiny"].columns
    before, after, difference = (
        np.asarray(axes[6 * row].images[0].get_array()) for row in range(3)
    )
    scaled = np.clip(0.5 + 5 * (after - before), 0, 1)  # all images together span [0, 1]
    np.testing.assert_allclose(difference, scaled, atol=1e-5)
    grid.write(tmp_path)
    assert (tmp_path / "adversarial_fc10_1e_4.svg").exists()
    noisy = outcome.figures[names.index("noise_fc10_1e_4")].drawing.axes
    labels, shown = noisy[:6], noisy[6:12]
    for label, adversarial in zip(labels, shown, strict=True):
        assert label.title.get_color() == "black"
        assert adversarial.get_title() != label.get_title()
        assert adversarial.title.get_color() == "tab:red"


def test_names_of_files() -> None:
    assert pictures.slug("FC10(1e-4)") == "fc10_1e_4"
    assert pictures.slug("SmallCNN, hidden 2") == "smallcnn_hidden_2"


def test_a_strip_keeps_the_images() -> None:
    images = np.random.default_rng(0).random((3, 16), dtype=np.float32)
    strip = pictures.strip(images, gap=2)
    assert strip.shape == (4, 3 * 4 + 2 * 2)
    np.testing.assert_array_equal(strip[:, 6:10], images[1].reshape(4, 4))
    assert np.all(strip[:, 4:6] == 1)


@pytest.mark.mnist
@needs_data
def test_noise_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1)
    network = run.trained([run.recipe("fc10", 0, epochs=1)])[0]
    attacked = adversarial_set(run, network, split="test", count=60)
    values = figures._accuracies(network, attacked, figures.SETTINGS["tiny"])
    assert values["adversarial"] == 0
    assert values["free_equal"] > values["clean"] - 5
    assert values["free_table"][0] > values["free_table"][-1] > values["clipped_table"][-1]
