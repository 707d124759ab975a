"""Pools of adversarial examples, training with them, and the two experiments at a tiny size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")

import torch

from advcore import models
from advcore.experiments import layers
from advcore.experiments import training as experiment
from advcore.experiments.parts import feedback, make, networks, tuning
from advcore.experiments.parts.digits import Digits
from advcore.experiments.parts.feedback import Feedback, Feeder, Pool
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome, Table
from advcore.models import training

SMALL = Feedback((0, 1, 2), size=120, share=0.1, every=3, warmup=2, batch=16)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits.load("embedded")
    return torch.as_tensor(data.train_images), torch.as_tensor(data.train_labels)


@pytest.fixture(scope="module")
def network(digits: tuple[torch.Tensor, torch.Tensor]) -> torch.nn.Sequential:
    """A little trained: 784-100-100-10 that sees most digits right."""
    model = models.fc100_100_10(seed=0)
    training.train(model, *digits, epochs=8, batch_size=32, learning_rate=1e-2)
    return model


def filled(
    network: torch.nn.Sequential,
    digits: tuple[torch.Tensor, torch.Tensor],
    layer: int,
    settings: Feedback,
) -> Pool:
    pool = Pool(network, *digits, layer, settings, seed=0)
    pool.replace(settings.size)
    return pool


def outputs(network: torch.nn.Sequential, layer: int, images: torch.Tensor) -> torch.Tensor:
    """Output of a hidden layer, from the weights themselves."""
    linear = [part for part in network if isinstance(part, torch.nn.Linear)]
    with torch.no_grad():
        for part in linear[:layer]:
            images = torch.sigmoid(images @ part.weight.T + part.bias)
    return images


def logits(network: torch.nn.Sequential, layer: int, h: torch.Tensor) -> torch.Tensor:
    """The layers above that output, from the weights themselves."""
    linear = [part for part in network if isinstance(part, torch.nn.Linear)][layer:]
    with torch.no_grad():
        for part in linear[:-1]:
            h = torch.sigmoid(h @ part.weight.T + part.bias)
        return h @ linear[-1].weight.T + linear[-1].bias


@pytest.mark.parametrize("dropout", [None, (0.1, 0.1, 0.1)])
def test_the_split_at_every_layer(
    dropout: tuple[float, ...] | None, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = models.fully_connected([7, 5, 10], dropout=dropout, seed=3).eval()
    for layer in range(3):
        below, above = feedback.split(model, layer)
        h = below(digits[0][:9])
        torch.testing.assert_close(h, outputs(model, layer, digits[0][:9]))
        torch.testing.assert_close(above(h), logits(model, layer, h))
        assert len(below) + len(above) == len(model)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        feedback.split(model, 3)


@pytest.mark.parametrize("targets", ["random", "untargeted"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_examples_deceive_the_layers_above_and_keep_their_labels(
    network: torch.nn.Sequential,
    digits: tuple[torch.Tensor, torch.Tensor],
    layer: int,
    targets: str,
) -> None:
    pool = filled(network, digits, layer, replace(SMALL, targets=targets))
    h = outputs(network, layer, digits[0][pool.rows])
    assert torch.equal(pool.labels, digits[1][pool.rows])
    assert len(pool.rows.unique()) > 80  # 120 of 800 drawn at random
    assert pool.values.shape == h.shape
    assert pool.successes == pool.attacks == 120
    assert pool.values.min() >= 0
    assert pool.values.max() <= 1
    wrong = logits(network, layer, pool.values).argmax(1) != pool.labels
    # a target may be what the network saw before; then the label was wrong already
    assert wrong.all()
    right = logits(network, layer, h).argmax(1) == pool.labels
    assert right.float().mean() > 0.9
    r = (pool.values - h).square().mean(1).sqrt()
    assert pool.rms == [pytest.approx(float(r.mean()), rel=1e-3)]
    assert r[right].min() > 0


def test_reach_scales_the_change_and_a_kept_change_is_the_difference(
    network: torch.nn.Sequential, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    whole = filled(network, digits, 1, SMALL)
    half = filled(network, digits, 1, replace(SMALL, reach=0.5))
    beyond = filled(network, digits, 0, replace(SMALL, reach=3.0))
    kept = filled(network, digits, 1, replace(SMALL, stored="change"))
    h = outputs(network, 1, digits[0][whole.rows])
    assert torch.equal(half.rows, whole.rows)
    torch.testing.assert_close(half.values, (h + whole.values) / 2)
    torch.testing.assert_close(kept.values, whole.values - h)
    assert beyond.values.min() == 0
    assert beyond.values.max() <= 1
    assert (logits(network, 1, half.values).argmax(1) == half.labels).float().mean() > 0.8


def test_replacement_changes_the_asked_share_alone(
    network: torch.nn.Sequential, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pool = filled(network, digits, 2, SMALL)
    before = pool.values.clone(), pool.rows.clone(), pool.labels.clone()
    places = pool.replace(12)
    assert len(set(places)) == 12
    others = np.setdiff1d(np.arange(120), places)
    for old, new in zip(before, (pool.values, pool.rows, pool.labels), strict=True):
        assert torch.equal(old[others], new[others])
    assert (before[0][places] != pool.values[places]).any(1).all()
    assert torch.equal(pool.labels, digits[1][pool.rows])
    assert pool.attacks == 132


def test_when_the_pools_are_filled_and_renewed(
    network: torch.nn.Sequential, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    pools = [Pool(network, *digits, layer, SMALL, seed=0) for layer in SMALL.layers]
    feeder = Feeder(pools, SMALL)
    counts = []
    for _ in range(10):
        objective = feeder()
        counts.append([pool.attacks for pool in pools])
        assert (float(objective.detach()) > 0) == (len(counts) > SMALL.warmup)
    expected = [0, 0, 120, 120, 120, 132, 132, 132, 144, 144]
    assert counts == [[value] * 3 for value in expected]
    assert [len(pool.rms) for pool in pools] == [3, 3, 3]


@pytest.mark.parametrize("stored", ["example", "change"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_pool_trains_the_layers_above_alone(
    network: torch.nn.Sequential,
    digits: tuple[torch.Tensor, torch.Tensor],
    layer: int,
    stored: str,
) -> None:
    pool = filled(network, digits, layer, replace(SMALL, stored=stored))
    network.zero_grad(set_to_none=True)
    pool.loss().backward()
    linear = [part for part in network if isinstance(part, torch.nn.Linear)]
    for place, part in enumerate(linear):
        if place < layer:
            assert part.weight.grad is None
        else:
            assert part.weight.grad is not None
            assert part.weight.grad.abs().max() > 0
    network.zero_grad(set_to_none=True)


def test_the_loss_is_the_cross_entropy_of_examples_of_the_pool(
    network: torch.nn.Sequential, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    losses = {}
    for stored in ("example", "change"):
        pool = filled(network, digits, 1, replace(SMALL, stored=stored))
        state = pool.random.bit_generator.state
        losses[stored] = float(pool.loss().detach())
        pool.random.bit_generator.state = state
        picked = pool.random.integers(120, size=16)
        h = pool.values[picked]
        if stored == "change":
            h = h + outputs(network, 1, digits[0][pool.rows[picked]])
        z = logits(network, 1, h).double()
        chosen = z.logsumexp(1) - z[torch.arange(16), pool.labels[picked]]
        assert losses[stored] == pytest.approx(float(chosen.mean()), rel=1e-5)
    # nothing below has moved: both readings are one
    assert losses["example"] == pytest.approx(losses["change"], rel=1e-5)


def test_training_is_reproducible_and_the_pools_take_part() -> None:
    # before it has learned anything, the network has classes that no image reaches
    pool = replace(SMALL, warmup=100)
    wanted = networks.recipe("tiny", "embedded", "fc100_100_10", 0, epochs=5, feedback=pool.pairs())
    weights, facts = [], []
    for recipe in (wanted, wanted, replace(wanted, feedback=replace(pool, weight=0).pairs())):
        model, made = make.train(recipe)
        weights.append(torch.cat([w.flatten() for w in model.parameters()]))
        facts.append(made)
    plain, _ = make.train(replace(wanted, feedback=None))
    assert torch.equal(weights[0], weights[1])
    assert facts[0]["rms"] == facts[1]["rms"]
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(weights[2], torch.cat([w.flatten() for w in plain.parameters()]))
    steps = 5 * 25  # 800 images in batches of 32
    attacks = 120 + 12 * len(range(pool.warmup + pool.every, steps, pool.every))
    assert facts[0]["attacks"] == [attacks] * 3
    assert facts[0]["success"] == [100.0] * 3
    assert all(facts[0][name] > 0 for name in ("training_seconds", "seconds"))


@pytest.mark.parametrize(
    "wrong", [{"targets": "any"}, {"stored": "both"}, {"share": 0.0}, {"layers": ()}, {"every": 0}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"targets|stored|share"):
        replace(SMALL, **wrong)


@pytest.fixture(scope="module")
def run(experiments_folder: Path) -> Run:
    return Run(experiments_folder, scale="tiny", seeds=2, dataset="embedded")


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return experiment.run(run)


@pytest.fixture(scope="module")
def compared(run: Run) -> Outcome:
    return layers.run(run)


def value(table: Table, row: str, column: str) -> list[float]:
    cell = table.cell(row, column)
    assert cell is not None
    return cell.known


def test_the_best_setting_on_held_out_images_is_taken(run: Run) -> None:
    settings = tuning.SETTINGS["tiny"]
    choice = tuning.choose(run, settings, tuning.DECAY)
    data, errors = Digits.load("embedded"), {}
    for decay in settings.decays:
        recipe = run.recipe("fc100_100_10", 0, epochs=6, decay=(decay,) * 3, validation=100)
        (one,) = run.trained([recipe])
        with torch.inference_mode():
            seen = one.model(torch.as_tensor(data.train_images[-100:])).argmax(1).numpy()
        errors[decay] = 100 * float(np.mean(seen != data.train_labels[-100:]))
    assert list(choice.tried.values()) == pytest.approx(list(errors.values()))
    best = min(errors, key=lambda decay: errors[decay])
    assert choice.changes["decay"] == (best,) * 3
    pooled = tuning.choose(run, settings, tuning.ALL)
    assert pooled.tried == {}  # one setting: nothing to choose
    assert pooled.changes["decay"] == (best,) * 3
    assert dict(pooled.changes["feedback"])["layers"] == (0, 1, 2)


def test_training_table_against_the_networks(run: Run, outcome: Outcome) -> None:
    main, cost, tried = outcome.tables
    assert main.rows == list(experiment.ROWS)
    assert main.cell(tuning.ALL, "test error").published == 1.2
    made, _ = tuning.trained(run, tuning.SETTINGS["tiny"], experiment.ROWS)
    data = Digits.load("embedded")
    images, labels = torch.as_tensor(data.test_images), torch.as_tensor(data.test_labels)
    for row, ones in made.items():
        with torch.inference_mode():
            wrong = [(one.model(images).argmax(1) != labels).sum().item() for one in ones]
        assert value(main, row, "test error") == pytest.approx([count / 2 for count in wrong])
    share = value(cost, tuning.ALL, "share of attacks %")
    assert all(0 < one < 100 for one in share)
    # 150 steps: filled after 50, 20 of 200 replaced after 70, 90, 110 and 130; a pool a layer
    assert value(cost, tuning.INPUT, "attacks") == [280, 280]
    assert value(cost, tuning.ALL, "attacks") == [840, 840]
    assert tried.rows == [f"{tuning.DECAY}: lambda {decay:g}" for decay in (1e-4, 1e-2)]


def test_layers_table_shares_the_networks_and_pairs_the_seeds(
    outcome: Outcome, compared: Outcome
) -> None:
    main, pairs = compared.tables[:2]
    for ours, theirs in ((layers.NONE, tuning.DECAY), (tuning.INPUT,) * 2, (tuning.ALL,) * 2):
        for column in ("test error", "distortion"):
            assert value(main, ours, column) == value(outcome.tables[0], theirs, column)
    for row in tuning.POOLS:
        a, b = value(main, row, "distortion"), value(main, layers.NONE, "distortion")
        gaps = np.subtract(a, b)
        assert value(pairs, row, "distortion") == pytest.approx(list(gaps))
        half = 12.706 * abs(gaps[0] - gaps[1]) / 2  # Student's t with one degree of freedom
        (low,), (high,) = (value(pairs, row, f"distortion: {end}") for end in ("from", "to"))
        assert (low, high) == pytest.approx((gaps.mean() - half, gaps.mean() + half), abs=1e-9)


def test_what_is_written(outcome: Outcome, compared: Outcome, tmp_path: Path) -> None:
    for made in (outcome, compared):
        made.write(tmp_path / made.name)
        assert Outcome.read(tmp_path / made.name / f"{made.name}.json").summary == made.finding
        assert all((tmp_path / made.name / f"{one.name}.png").exists() for one in made.figures)
    growth = compared.tables[2]
    assert len(growth.rows) == 6
    axes = compared.figures[1].drawing.axes
    assert [len(axis.lines) for axis in axes] == [2, 2, 2]
    assert axes[1].lines[0].get_ydata()[-1] == pytest.approx(
        np.mean(value(growth, tuning.FIRST, "last"))
    )


def test_one_seed_has_no_interval(experiments_folder: Path) -> None:
    single = layers.run(Run(experiments_folder, scale="tiny", seeds=1, dataset="embedded"))
    cell = single.tables[1].cell(tuning.FIRST, "test error: from")
    assert cell is not None
    assert cell.values == (None,)
    assert "95%" not in single.remarks[0]


@pytest.mark.mnist
@needs_data
def test_pools_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1)
    pool = Feedback((0, 1, 2), size=500, warmup=100, reach=0.5, weight=0.3)
    changes = {"epochs": 1, "batch_size": 128, "decay": (1e-3,) * 3}
    (made,) = run.trained([run.recipe("fc100_100_10", 0, feedback=pool.pairs(), **changes)])
    assert made.test_error < 8
    assert made.facts["attacks"] == [500 + 50 * 3] * 3  # 469 steps
    assert made.facts["success"] == [100.0] * 3
