"""Table 5 at a tiny size."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")

import torch
from support.small_experiments import matrix_of, value
from torch import nn

from advcore import data
from advcore.experiments import table5
from advcore.experiments.parts.attacks import adversarial_set
from advcore.experiments.parts.lipschitz import (
    bounds,
    layers_of,
    response,
)
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome
from advcore.models import pretrained
from advcore.models.pretrained import Expand


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return table5.run(run)


def test_table5_has_the_norms_of_the_trained_networks(run: Run, outcome: Outcome) -> None:
    tables = {table.name: table for table in outcome.tables}
    for name, (model, decay) in table5.MNIST.items():
        network = run.trained([run.recipe(model, 0, decay=decay)])[0].model
        dense = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        table = tables["table5_" + table5_slug(name)]
        for index, layer in enumerate(dense, 1):
            row = f"fc{index}, {layer.in_features}×{layer.out_features}"
            norm = np.linalg.norm(layer.weight.double().numpy(), 2)
            assert value(table, row, "Lipschitz constant") == pytest.approx(norm, rel=1e-9)
        product = math.prod(value(table, row, "Lipschitz constant") for row in table.rows)
        assert value(tables["table5_networks"], name, "bound") == pytest.approx(product, rel=1e-9)
        for row in table.rows:
            assert value(table, row, "largest growth") <= value(table, row, "product so far")
    assert tables["table5_fc100_100_10"].rows[1::2] == ["sigmoid1", "sigmoid2"]
    convolutions = [row for row in tables["table5_smallcnn"].rows if row.startswith("conv")]
    assert len(convolutions) == 4
    for row in convolutions:
        norm = value(tables["table5_smallcnn"], row, "Lipschitz constant")
        assert 1 < value(tables["table5_smallcnn"], row, "Fourier bound") / norm < 1.2


def test_table5_bounds_hold_for_the_adversarial_examples(run: Run, outcome: Outcome) -> None:
    networks = outcome.tables[-1]
    assert networks.rows == list(table5.MNIST)
    for name, (model, decay) in table5.MNIST.items():
        network = run.trained([run.recipe(model, 0, decay=decay)])[0]
        count = 12 if name == "SmallCNN" else 60
        made = adversarial_set(run, network, split="test", count=count)
        kept = made.success & (made.rms > 0)
        x, moved, targets = (a[kept] for a in (made.images, made.adversarial, made.targets))
        before, after = (network.model(torch.from_numpy(part)).numpy() for part in (x, moved))
        ratios = np.linalg.norm(after - before, axis=1) / np.linalg.norm(moved - x, axis=1)
        grown = value(networks, name, "growth, adversarial")
        assert grown == pytest.approx(ratios.max(), rel=1e-4)
        bound = value(networks, name, "bound")
        assert grown < bound
        assert value(networks, name, "Jacobian") < bound
        assert value(networks, name, "growth, noise") < grown
        assert value(networks, name, "distortion found") == pytest.approx(
            made.rms[kept].mean(), rel=1e-5
        )
        leads = before.max(1) - before[np.arange(len(x)), targets]
        excluded = leads / (math.sqrt(2) * bound * 28)
        assert (excluded < made.rms[kept]).all()
        assert value(networks, name, "distortion excluded") == pytest.approx(
            excluded.mean(), rel=1e-4
        )


def test_table5_says_what_it_leaves_out_and_is_written(outcome: Outcome, tmp_path: Path) -> None:
    text = "\n".join(outcome.remarks)
    assert "**AlexNet** is not part of the scale 'tiny'" in text
    assert "conv1 2.75" in text
    assert "second hand" in text
    assert not any(table.compared for table in outcome.tables)
    assert [figure.name for figure in outcome.figures] == ["table5_growth"]
    outcome.write(tmp_path)
    assert Outcome.read(tmp_path / "table5.json").tables == outcome.tables
    assert (tmp_path / "table5_growth.png").stat().st_size > 10_000


def tiny_imagenet() -> nn.Sequential:
    """Five convolutions and three dense layers, as AlexNet, and an `Expand`."""
    torch.manual_seed(0)
    channels = [3, 4, 4, 4, 4, 4]
    convolutions = [
        nn.Conv2d(a, b, 3, stride=2 if a == 3 else 1, padding=1)
        for a, b in itertools.pairwise(channels)
    ]
    network = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*convolutions, nn.MaxPool2d(3, 2)),
            expand=Expand(4, 2, 2),
            tail=nn.Sequential(
                *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 50), nn.ReLU()),
                *(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1000)),
            ),
        )
    )
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):  # else the biases decide alone
            nn.init.zeros_(part.bias)
            nn.init.normal_(part.weight, std=2 / math.sqrt(part.weight[0].numel()))
    return network.eval().requires_grad_(False)


def test_table5_with_networks_of_imagenet(
    run: Run, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> nn.Sequential:
        raise pretrained.Unavailable("no such host")

    def pictures(side: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        assert side == 16
        rng = np.random.default_rng(0)
        return rng.random((5, 3, side, side), dtype=np.float32), np.arange(5)

    def runner_up(labels: NDArray[np.int64], *, classes: int, seed: int) -> NDArray[np.int64]:
        if classes == 10:
            return random_targets(labels, classes=classes, seed=seed)
        images = torch.from_numpy(pictures(16)[0][: len(labels)])
        return tiny_imagenet()(images).argsort(1)[:, -2].numpy()

    random_targets = data.random_targets  # of 1,000 classes it would hardly find one to reach
    monkeypatch.setattr(data, "random_targets", runner_up)
    names = (table5.ALEXNET, table5.SQUEEZENET)
    settings = table5.Settings(60, 12, 2, names, 3, 1e-4)
    monkeypatch.setitem(table5.SETTINGS, "tiny", settings)
    monkeypatch.setattr(pretrained, "imagenet_samples", pictures)
    monkeypatch.setattr(
        table5,
        "IMAGENET",
        {table5.ALEXNET: (tiny_imagenet, 16, "tiny"), table5.SQUEEZENET: (absent, 16, "absent")},
    )
    found = table5.run(run)
    table = found.tables[0]
    assert table.name == "table5_alexnet"
    told = {cell.row.partition(",")[0]: cell.published for cell in table.cells if cell.published}
    assert told == table5.PUBLISHED
    stride = next(row for row in table.rows if row.startswith("conv1"))
    assert stride == "conv1, 3×3×3×4, stride 2"
    weight = tiny_imagenet().get_submodule("features.0")
    expected = np.linalg.norm(matrix_of(weight.double(), (3, 16, 16)), 2)
    assert value(table, stride, "Lipschitz constant") == pytest.approx(expected, rel=1e-6)
    assert value(table, "pool1, 3×3, stride 2", "Lipschitz constant") == 2
    assert value(table, "expand, 4×3×3×4", "sqrt(a² + b²)") > value(
        table, "expand, 4×3×3×4", "Lipschitz constant"
    )
    networks = found.tables[-1]
    bound = value(networks, table5.ALEXNET, "bound")
    assert value(networks, table5.ALEXNET, "max-pooling as 1") == pytest.approx(bound / 2)
    assert value(networks, table5.ALEXNET, "growth, adversarial") < bound
    text = "\n".join(found.remarks)
    fourier = value(table, stride, "Fourier bound")
    assert f"{fourier / 2:.3g} instead of {fourier:.3g} for conv1 of AlexNet" in text
    assert "SqueezeNet 1.0** is left out: its weights are not to be had here (no such host)" in text
    assert "AlexNet 2." in text
    assert "**Concatenation.**" in text


def test_table5_without_pictures(
    run: Run, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = table5.Settings(60, 12, 2, (table5.ALEXNET,), 0, 1e-4)
    monkeypatch.setitem(table5.SETTINGS, "tiny", settings)
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    monkeypatch.setattr(table5, "IMAGENET", {table5.ALEXNET: (tiny_imagenet, 16, "tiny")})
    found = table5.run(run)
    assert found.tables[0].cell("fc1, 4×50", "largest growth") is None
    networks = found.tables[-1]
    assert networks.cell(table5.ALEXNET, "growth, adversarial") is None
    assert value(networks, table5.ALEXNET, "bound") > 0


@pytest.mark.mnist
@needs_data
def test_bounds_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1, dataset="mnist", workers=1)
    network = run.trained([run.recipe("fc100_100_10", 0, epochs=1, batch_size=256)])[0]
    made = adversarial_set(run, network, split="test", count=50)
    assert made.success.all()
    kept = made.rms > 0  # an image may be taken for its target as it is
    assert kept.sum() > 40
    layers = layers_of(network.model, (784,))  # type: ignore[arg-type]
    known = bounds(layers, tolerance=1e-6)
    seen = response(
        network.model,  # type: ignore[arg-type]
        *(made.images[kept], made.adversarial[kept], made.targets[kept]),
        bound=float(known.product[-1]),
        jacobians=5,
    )
    assert (seen.excluded < seen.found).all()
    assert (seen.grown <= known.product[:, None]).all()
    assert seen.jacobian.max() > seen.noise[-1].max()


def table5_slug(name: str) -> str:
    return name.lower().replace("-", "_")
