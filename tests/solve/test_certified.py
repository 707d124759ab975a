"""Small ReLU networks against minima certified by branch and bound (tools/certify_relu.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.backends import Backend
from support.certified import CONFIDENCE, LARGE, LARGE_MNIST, SMALL, SMALL_MNIST, Certified, load
from support.exact_affine import nearest

import advcore
from advcore import Network

WANTED = {SMALL: 60, LARGE: 40, SMALL_MNIST: 60, LARGE_MNIST: 40}
GAPS = {
    "default": {
        SMALL: (2e-4, 0.8),
        LARGE: (4e-4, 0.8),
        SMALL_MNIST: (2.5e-3, 0.65),
        LARGE_MNIST: (2.5e-3, 0.45),
    },
    "thorough": {
        SMALL: (1e-4, 0.85),
        LARGE: (2e-4, 0.8),
        SMALL_MNIST: (2e-3, 0.75),
        LARGE_MNIST: (1.5e-3, 0.55),
    },
}
"""Mean relative gap, and the share of the images within 1e-4. The means are made by a few images
that end in another basin, 0.1 to 4% above the minimum."""


@pytest.fixture(scope="module", params=list(WANTED))
def certified(request: pytest.FixtureRequest) -> Certified:
    return load(request.param)


def test_the_certificates_are_tight_and_enough(certified: Certified) -> None:
    assert len(certified.x) >= WANTED[certified.name]
    assert (certified.lower > 0.01).all()
    assert (certified.lower <= certified.upper).all()
    assert (certified.upper <= certified.lower * (1 + 1e-5)).all()
    assert (certified.x >= 0).all()
    assert (certified.x <= 1).all()
    assert (certified.network.forward(certified.x).argmax(axis=1) != certified.target).all()


def region_minimum(network: Network, x0: Any, target: int, point: Any) -> Any:
    """Smallest distortion of x0 (n,) in the linear region of ``point``; None: no answer there."""
    A, c, rows, limits = np.eye(len(x0)), np.zeros(len(x0)), [], []
    for layer in network.layers:
        weight, bias = layer.weight.astype(np.float64), layer.bias.astype(np.float64)
        A, c = weight @ A, weight @ c + bias
        if layer.activation == "relu":
            on = A @ point + c > 0
            sign = np.where(on, 1.0, -1.0)
            rows.append(sign[:, None] * A)
            limits.append(sign * c)
            A, c = on[:, None] * A, on * c
    others = np.delete(np.arange(len(c)), target)
    a = np.concatenate([*rows, A[target] - A[others]])
    b = np.concatenate([*limits, c[target] - c[others] - CONFIDENCE])
    exists = np.linalg.norm(a, axis=1) > 1e-12  # of a unit that nothing reaches
    r = nearest(a[exists], (a @ x0 + b)[exists], -x0, 1 - x0)
    return None if r is None else np.linalg.norm(r)


def test_no_linear_region_is_below_the_lower_bounds(certified: Certified) -> None:
    """Minima in the regions around the results, by another solver than the certificates'."""
    rng, best = np.random.default_rng(0), []
    network, (x, target, lower, upper) = certified.network, (v[:12] for v in certified[2:])
    result = advcore.minimize_distortion(network, x, target, effort="thorough")
    for row, x0 in enumerate(x.astype(np.float64)):
        r = result.adversarial[row] - x0
        noise = rng.standard_normal((10, len(x0))) * np.linalg.norm(r) / 50
        near = np.clip(
            x0 + np.concatenate([[r], r * (1 + 0.1 * rng.random((10, 1))) + noise]), 0, 1
        )
        found = [region_minimum(network, x0, int(target[row]), point) for point in near]
        found = [value for value in found if value is not None]
        assert min(found) >= lower[row] * (1 - 1e-7)
        best.append(min(found) / upper[row] - 1)
    assert (np.array(best) < 1e-6).mean() >= 0.7


@pytest.mark.backends("smooths")
def test_gap_to_the_certified_minimum(backend: Backend, certified: Certified) -> None:
    result = backend.attack(certified.network, certified.x, certified.target)
    assert result.success.all()
    assert (result.distortion >= certified.lower * (1 - 1e-5)).all()
    gap = result.distortion / certified.upper - 1
    assert result.evaluations.mean() <= 50
    mean, share = GAPS["default"][certified.name]
    assert (gap < 1e-4).mean() >= share
    assert gap.mean() < mean


def test_mean_gap_of_the_networks_of_the_package_s_digits() -> None:
    gaps = []
    for name in (SMALL, LARGE):
        network, x, target, _, upper = load(name)[1:6]
        gaps.append(advcore.minimize_distortion(network, x, target).distortion / upper - 1)
    gap = np.concatenate(gaps)
    assert gap.mean() < 2.5e-4
    assert (gap < 1e-4).mean() >= 0.85


@pytest.mark.backends("smooths", "fast")
@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_other_efforts(backend: Backend, certified: Certified, effort: str) -> None:
    result = backend.attack(certified.network, certified.x, certified.target, effort=effort)
    assert result.success.all()
    assert (result.distortion >= certified.lower * (1 - 1e-5)).all()
    if effort == "thorough":
        mean, share = GAPS[effort][certified.name]
        gap = result.distortion / certified.upper - 1
        assert (gap < 1e-4).mean() >= share
        assert gap.mean() < mean
