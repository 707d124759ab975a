"""Random directions around images: against closed forms, and the experiment at a tiny size."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")

import torch

from advcore.experiments import frequency
from advcore.experiments.parts import radial
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Outcome

DIMENSION = 50


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return frequency.run(run)


def two_classes(distance: float) -> tuple[torch.nn.Module, np.ndarray]:
    """A linear classifier and an image at this distance of its boundary, of class 0."""
    model = torch.nn.Linear(DIMENSION, 2)
    normal = np.random.default_rng(1).standard_normal(DIMENSION)
    normal /= np.linalg.norm(normal)
    with torch.no_grad():
        model.weight.copy_(torch.as_tensor(np.stack([-normal, normal])))
        model.bias.zero_()
    return model, (-distance * normal).astype(np.float32)


def test_failures_of_a_linear_classifier_are_the_cap_of_the_sphere() -> None:
    model, image = two_classes(0.5)
    ratios = np.array([0.9, 2.0, 4.0, 8.0, 30.0])
    count = 20_000
    points, rays = radial.failures(
        *(model, image[None], np.array([0]), 0.5 * ratios[None], count), clip=False, seed=3
    )
    expected = np.array([radial.cap_share(ratio, DIMENSION) for ratio in ratios])
    assert points[0, 0] == expected[0] == 0
    error = np.sqrt(expected * (1 - expected) / count)
    assert np.all(np.abs(points[0] - expected) <= 4.5 * error)
    assert np.array_equal(points, rays)  # a half space is not left again
    normal = -image * 1.0  # the shortest distortion ends on the boundary
    planes = radial.polyhedron_shares(
        np.stack([normal, np.zeros_like(normal)])[None], 0.5 * ratios[None], count, seed=3
    )
    assert planes == pytest.approx(points, abs=1e-4)  # rounding on the boundary


def test_rays_remember_and_points_forget() -> None:
    class Shell(torch.nn.Module):
        """Class 1 between the radii 1 and 2, else 0."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            r = x.norm(dim=1)
            inside = ((r > 1) & (r < 2)).float()
            return torch.stack([1 - inside, inside], dim=1)

    radii = np.array([[0.5, 1.5, 2.5]])
    origin = np.zeros((1, 9), np.float32)
    points, rays = radial.failures(Shell(), origin, np.array([0]), radii, 40, clip=False, seed=0)
    assert points.tolist() == [[0, 1, 0]]
    assert rays.tolist() == [[0, 1, 1]]
    points, _ = radial.failures(Shell(), origin, np.array([0]), radii, 40, clip=True, seed=0)
    assert points[0, 1] < 1  # half of the components are cut off


def test_cap_share_against_the_incomplete_beta_function() -> None:
    special = pytest.importorskip("scipy.special")
    for dimension in (2, 3, 10, 784):
        for ratio in (1.0, 1.01, 1.5, 3.0, 10.0, 100.0):
            exact = special.betainc((dimension - 1) / 2, 0.5, 1 - 1 / ratio**2) / 2
            assert radial.cap_share(ratio, dimension) == pytest.approx(exact, rel=1e-4, abs=1e-300)
    assert radial.cap_share(0.5, 10) == 0
    assert radial.cap_share(2.0, 2) == pytest.approx(math.acos(0.5) / math.pi)
    normal = 0.5 * math.erfc(math.sqrt(784) / 16 / math.sqrt(2))
    assert radial.cap_share(16.0, 784) == pytest.approx(normal, rel=0.02)


def test_two_hyperplanes_in_the_plane() -> None:
    distortions = np.array([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]], np.float32)
    radii = np.array([[0.5, 1.5, 10.0]])
    shares = radial.polyhedron_shares(distortions, radii, 40_000, seed=0)[0]
    one, both = math.acos(1 / 1.5) / math.pi, (math.acos(0.1) + math.acos(0.2)) / math.pi
    overlap = (math.acos(0.1) - math.asin(0.2)) / (2 * math.pi)
    assert shares == pytest.approx([0, one, both - overlap], abs=0.01)


def test_interval_of_shares() -> None:
    # independent images that fail or do not: Wilson's interval of 10 in 100 (0.0552, 0.1744)
    shares = np.repeat([0.0, 1.0], [90, 10])
    assert radial.share_interval(shares, 1) == pytest.approx((0.0552, 0.1744), abs=1e-3)
    # 50 directions of the same image tell no more than one
    assert radial.share_interval(shares, 50) == pytest.approx((0.0552, 0.1744), abs=1e-3)
    # none in n: from 0 to z^2 / (n + z^2)
    low, high = radial.share_interval(np.zeros(20), 50)
    assert low == 0
    assert high == pytest.approx(1.96**2 / (1000 + 1.96**2))
    assert radial.share_interval(np.ones(20), 50)[1] == 1


def test_crossing_interpolates_in_the_logarithm() -> None:
    grid = np.array([1.0, 2.0, 4.0, 8.0])
    shares = np.array(
        [[0, 0.2, 0.6, 1.0], [0.7, 0.8, 0.9, 1.0], [0, 0, 0.1, 0.4], [0, 0.5, 0.1, 1]]
    )
    at = radial.crossing(shares, grid, 0.5)
    assert at[0] == pytest.approx(2 * 2**0.75)
    assert at[1:].tolist() == [1, math.inf, 2]


def test_tables_hold_together(run: Run, outcome: Outcome) -> None:
    radius, ratio, quantile, small = outcome.tables
    for table in (radius, ratio):
        shares = {(cell.row, cell.column): cell.mean for cell in table.cells}
        for name in frequency.NETWORKS:
            for column in table.columns:
                for kind in ("", ", clipped"):
                    point = shares[f"{name}, points{kind}", column]
                    assert 0 <= point <= shares[f"{name}, rays{kind}", column] <= 100
            rays = [shares[f"{name}, rays", column] for column in table.columns]
            assert rays == sorted(rays)
        # a linear network: the class is convex, what left it does not come back
        for column in table.columns:
            rays_of_linear = shares["FC10(1e-4), rays", column]
            assert rays_of_linear == shares["FC10(1e-4), points", column]
            planes = shares["FC10(1e-4), nine hyperplanes", column]
            assert planes == pytest.approx(rays_of_linear, abs=8)
    assert {cell.mean for cell in ratio.cells if cell.column == "2" and "(1e-4)" in cell.row} == {0}
    at = quantile.cell("FC10(1e-4), points", "10%")
    assert at is not None
    assert 10 < at.mean < 28 / 1.2816  # other boundaries than the nearest make it sooner
    for row in small.rows:
        cells = {cell.column: cell.mean for cell in small.cells if cell.row == row}
        assert cells["from"] <= cells["share"] <= cells["to"]
        assert cells["failed"] == pytest.approx(cells["share"] * cells["points"] / 100)


def test_shares_of_one_image_by_hand(run: Run) -> None:
    network = run.trained([run.recipe("fc10", 0)])[0]
    settings = frequency.SETTINGS["tiny"]
    count, directions = settings.size("FC10(1e-4)")
    made = radial.direction_shares(
        *(run, network),
        count=count,
        directions=directions,
        radii=settings.radii,
        ratios=settings.ratios,
    )
    images, labels = run.digits.sample("test", count)
    weight, bias = (p.numpy().astype(np.float64) for p in network.model[1].parameters())
    logits = images @ weight.T + bias
    right = logits.argmax(1) == labels
    assert len(made["free d_min"]) == right.sum()
    # distance to the nearest of the nine boundaries, in closed form
    x, y = logits[right], labels[right]
    rows = np.arange(len(y))
    gaps = x[rows, y][:, None] - x
    norms = np.linalg.norm(weight[y][:, None] - weight[None], axis=2)
    norms[rows, y] = 1.0
    gaps[rows, y] = np.inf
    np.testing.assert_allclose(made["free d_min"], (gaps / norms).min(axis=1), rtol=5e-3)
    assert np.all(made["clipped d_min"] >= made["free d_min"] * (1 - 1e-4))


def test_figures_are_drawn(outcome: Outcome, tmp_path: Path) -> None:
    outcome.figures[1].write(tmp_path)
    assert (tmp_path / "frequency_ratio.png").stat().st_size > 10_000
    assert [figure.name for figure in outcome.figures] == ["frequency_radius", "frequency_ratio"]


@pytest.mark.mnist
@needs_data
def test_random_directions_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1)
    network = run.trained([run.recipe("fc10", 0, epochs=1)])[0]
    ratios = np.array([4.0, 30.0])
    made = radial.direction_shares(
        *(run, network), count=60, directions=20, radii=np.array([0.5, 30.0]), ratios=ratios
    )
    assert made["free points ratio"][:, 0].max() == 0
    assert made["free points ratio"][:, 1].mean() > 0.5 * radial.cap_share(30.0, 784)
