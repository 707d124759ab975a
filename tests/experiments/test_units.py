"""Units against random directions at a tiny size, and what purity is made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")
import torch
from support.small_experiments import value

from advcore import models
from advcore.experiments import units
from advcore.experiments.parts import directions
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return units.run(run)


def test_purity_of_a_made_up_example() -> None:
    labels = np.array([[3, 3, 1, 3], [0, 1, 2, 3], [5, 5, 2, 2], [7, 7, 7, 7]])
    assert directions.purity(labels).tolist() == [0.75, 0.25, 0.5, 1.0]


def test_purity_of_random_images_against_all_draws() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2])
    draws = [labels[list(rows)] for rows in itertools.combinations(range(len(labels)), 3)]
    exact = np.mean([np.bincount(drawn).max() / 3 for drawn in draws])
    assert directions.chance_purity(labels, 3) == pytest.approx(exact, abs=0.01)
    assert directions.chance_purity(labels, 7) == pytest.approx(3 / 7)


def test_top_images_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    phi, v = rng.random((50, 7)), rng.standard_normal((4, 7))
    expected = np.argsort(-(phi @ v.T), axis=0)[:6].T
    assert np.array_equal(directions.top_images(phi, v, 6), expected)
    centred = directions.top_images(phi - phi.mean(axis=0), v, 6)
    assert np.array_equal(centred, expected)  # centring is no other reading


def test_units_that_few_images_excite_are_not_live() -> None:
    phi = np.zeros((10, 4))
    phi[:, 1] = np.arange(10)
    phi[:3, 2] = 1.0
    phi[:2, 3] = 1.0
    assert directions.live_units(phi, 3).tolist() == [1, 2]


def test_random_directions_are_uniform_on_the_sphere() -> None:
    v = directions.sphere(20_000, 3, 0)
    assert np.linalg.norm(v, axis=1) == pytest.approx(1)
    # Archimedes: every coordinate is uniform on [-1, 1] in three dimensions
    for coordinate in v.T:
        shares = np.histogram(coordinate, bins=10, range=(-1, 1))[0] / len(v)
        assert shares == pytest.approx(0.1, abs=0.01)


def test_intervals_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for count in (2, 5, 10, 40):
        values = rng.standard_normal(count)
        scale = values.std(ddof=1) / np.sqrt(count)
        expected = stats.t.interval(0.95, count - 1, values.mean(), scale)
        assert directions.interval(values) == pytest.approx(expected, abs=2e-3 * scale * 12.7)
    a, b = rng.standard_normal(200), 0.3 + 2 * rng.standard_normal(300)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert directions.difference_interval(a, b) == pytest.approx(tuple(expected), abs=5e-3)
    c = np.round(a[:60], 1), np.round(b[:70], 1)  # with ties
    u = stats.mannwhitneyu(*c).statistic / (60 * 70)
    assert directions.superiority(*c) == pytest.approx(u)


def test_activations_are_those_of_the_layers() -> None:
    model = models.fc100_100_10(seed=0)
    images = np.random.default_rng(0).random((5, 784), dtype=np.float32)
    first, second = (
        layer for layer in model if isinstance(layer, torch.nn.Linear) and layer.out_features == 100
    )
    hidden = images.astype(np.float64)
    for layer in (first, second):
        weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
        hidden = 1 / (1 + np.exp(-(hidden @ weight.T + bias)))
    phi = directions.activations(model, 5, images)
    assert phi.dtype == np.float64
    np.testing.assert_allclose(phi, hidden, rtol=1e-12)
    assert next(model.parameters()).dtype == torch.float32
    logits = directions.activations(models.small_cnn(seed=0), 18, images)
    expected = models.small_cnn(seed=0)(torch.as_tensor(images)).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_spaces_are_hidden_layers() -> None:
    widths = {
        name: directions.activations(
            getattr(models, space.model)(), space.depth, np.zeros((1, 784), np.float32)
        ).shape[1]
        for name, space in units.SPACES.items()
        if space.model is not None
    }
    assert widths == {
        "FC100-100-10, hidden 1": 100,
        "FC100-100-10, hidden 2": 100,
        "FC100-100-10, hidden 2, untrained": 100,
        "SmallCNN, convolutions": 1024,
        "SmallCNN, hidden 2": 200,
        "SmallCNN, hidden 2, untrained": 200,
    }


def test_purity_tables(run: Run, outcome: Outcome) -> None:
    ten, twenty, effect = outcome.tables
    assert ten.rows == twenty.rows == effect.rows == list(units.SPACES)
    for row in ten.rows:
        chance = value(ten, row, units.CHANCE)
        assert chance > value(twenty, row, units.CHANCE) > 10
        for reading in units.READINGS:
            assert chance - 3 < value(ten, row, reading) <= 100
        gap = value(ten, row, units.UNITS) - value(ten, row, units.RANDOM)
        assert value(effect, row, "difference") == pytest.approx(gap)
        assert value(effect, row, "from") < gap < value(effect, row, "to")
    trained, blank = "FC100-100-10, hidden 2", "FC100-100-10, hidden 2, untrained"
    for reading in (units.UNITS, units.RANDOM):
        assert value(ten, trained, reading) > value(ten, blank, reading) + 10


def test_purity_of_the_pixels_by_hand(run: Run, outcome: Outcome) -> None:
    images, labels = run.digits.sample("test", 200)
    found = []
    for pixel in images.T:
        if (pixel > pixel.min()).sum() >= 20:
            first = np.argsort(-pixel, kind="stable")[:10]
            found.append(np.bincount(labels[first]).max() / 10)
    # images of the same value may come in another order
    expected = 100 * np.mean(found)
    assert value(outcome.tables[0], "pixels", units.UNITS) == pytest.approx(expected, abs=2)
    assert value(outcome.tables[0], "pixels", "left out") == 784 - len(found)


def test_pictures_and_files(outcome: Outcome, tmp_path: Path) -> None:
    assert len(outcome.figures) == len(units.DRAWN) + 1
    outcome.figures[0].write(tmp_path)
    assert (tmp_path / "units_fc100_100_10_hidden_2.png").stat().st_size > 10_000
    effect = outcome.tables[2]
    lines = [line for line in outcome.remarks[0].splitlines() if line.startswith("- ")]
    for row, line in zip(effect.rows, lines, strict=True):
        verdict = "no difference is shown"
        if value(effect, row, "from") > 0:
            verdict = "units are purer"
        elif value(effect, row, "to") < 0:
            verdict = "random directions are purer"
        assert line.startswith(f"- {row}: ")
        assert line.endswith(f": {verdict}.")


def test_interval_of_the_effect_is_over_networks() -> None:
    gaps = (0.1, 0.2, 0.3)
    found = [
        {
            units.UNITS: np.array([[0.5 + gap, 0.7 + gap]]),
            units.RANDOM: np.array([[0.5, 0.6, 0.7]]),
            units.STANDARDISED: np.array([[1.0, 1.0]]),
        }
        for gap in gaps
    ]
    table = units._effect_table({"made up": found}, units.SETTINGS["tiny"])
    cell = table.cell("made up", "difference")
    assert cell is not None
    assert cell.values == pytest.approx((10, 20, 30))
    half = 4.303 * 10 / np.sqrt(3)  # Student's t with two degrees of freedom
    assert value(table, "made up", "from") == pytest.approx(20 - half)
    assert value(table, "made up", "to") == pytest.approx(20 + half)
    assert value(table, "made up", "superiority, standardised") == pytest.approx(
        100 * (0.5 / 3) / 2
    )


@pytest.mark.mnist
@needs_data
def test_purity_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1)
    settings = units.SETTINGS["tiny"]
    pixels = units._space(run, "pixels", units.Space(None), settings)[0]
    blank = units.Space("fc100_100_10", 5, trained=False)
    untrained = units._space(run, "untrained", blank, settings)[0]
    for made in (pixels, untrained):
        assert made[units.UNITS].shape == (3, len(made["live"]))
        assert made[units.RANDOM].shape == (3, 100)
        assert made[units.RANDOM][0].mean() > made[units.CHANCE][0] + 0.05
