"""Networks and images that several tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.backends import BACKENDS, Backend
from support.native_build import Build, build
from support.networks import make_network

from advcore import Network

Make = Callable[..., Network]

if not os.environ.get("ADVCORE_DATA"):  # Empty is unset, as for the package.
    os.environ.pop("ADVCORE_DATA", None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each back end of this machine that has what its mark ``backends`` names.

    Back ends that this machine lacks are skipped visibly in test_backends.py, once each.
    """
    if "backend" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("backends")
    flags = mark.args if mark else ()
    backends = [b for b in BACKENDS if not b.missing() and all(getattr(b, name) for name in flags)]
    metafunc.parametrize("backend", backends, ids=[b.name for b in backends], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, every_backend: None) -> Backend:
    """A back end of `support.backends`."""
    backend: Backend = request.param
    return backend


@pytest.fixture(scope="session")
def every_backend() -> Iterator[None]:
    """End the processes of the back ends after the last test."""
    yield
    for each in BACKENDS:
        each.close()


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The engine as users build it, with the programs of the checks and the benchmarks."""
    return build(tmp_path_factory.mktemp("release"), "Release", "", "-DADVCORE_BENCHMARKS=ON")


@pytest.fixture
def random_network() -> Make:
    """The function `make_network`."""
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
    """Folder in which tiny experiments keep networks and finished steps, which the tests share."""
    return tmp_path_factory.mktemp("experiments")
