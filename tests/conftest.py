"""Networks and images that several tests share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_build import Build, build

from advcore import Layer, Network

Make = Callable[..., Network]

if not os.environ.get("ADVCORE_DATA"):  # empty is unset, as for the package
    os.environ.pop("ADVCORE_DATA", None)


def make_network(
    sizes: tuple[int, ...] = (20, 16, 5),
    activation: str = "sigmoid",
    seed: int = 0,
    gain: float = 3.0,
) -> Network:
    """A random network whose classes all occur among random images; nearly linear at gain 1."""
    rng = np.random.default_rng(seed)
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = i + 2 == len(sizes)
        weight = gain * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        bias = -weight.sum(axis=1) / 2 + 0.3 * rng.standard_normal(outputs)
        layers.append(
            Layer(
                weight.astype(np.float32),
                bias.astype(np.float32),
                "identity" if last else activation,
            )
        )
    return Network(layers)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The engine as users build it, with the programs of the checks and the benchmarks."""
    return build(tmp_path_factory.mktemp("release"), "Release", "", "-DADVCORE_BENCHMARKS=ON")


@pytest.fixture
def random_network() -> Make:
    """`make_network`."""
    return make_network


@pytest.fixture(scope="session")
def random_networks() -> Make:
    """The same, for fixtures of a wider scope."""
    return make_network


@pytest.fixture
def random_images() -> Callable[..., Any]:
    """``(rows, n, seed)`` to images (rows, n) in [0, 1], float32."""

    def make(rows: int, n: int = 20, seed: int = 1) -> Any:
        return np.random.default_rng(seed).random((rows, n), dtype=np.float32)

    return make


@pytest.fixture(scope="session")
def experiments_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tiny experiments keep networks and finished steps, which the tests share."""
    return tmp_path_factory.mktemp("experiments")
