"""Times of the parts of a run, for comparing two commits on one machine (pytest-benchmark).

    OMP_NUM_THREADS=1 pytest benchmarks/bench_micro.py -W default --benchmark-save=before
    OMP_NUM_THREADS=1 pytest benchmarks/bench_micro.py -W default --benchmark-compare='*before*'

The embedded network FC100-100-10 and its digits, one thread. Every part checks its result first.
What the project claims comes from `bench_speed.py`, which runs rivals beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import advcore
from advcore import data, reference
from advcore.data import random_targets
from advcore.reference.oracles import NumpyNetwork
from advcore.solve.native import NATIVE_SLOTS

torch.set_num_threads(1)
digits, labels = data.embedded_digits()
digits, labels = digits[:200], labels[:200]
targets = random_targets(labels, classes=10, seed=0)
network = data.embedded_network()
module = network.to_torch()


def through_torch(x: torch.Tensor) -> torch.Tensor:
    """The network's logits. A function that does more than call a module is not lowered."""
    return 1 * torch.as_tensor(module(x))


MODELS = {"network": network, "lowered module": module, "torch": through_torch}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("count", [1, 200])
def test_minimize_distortion(benchmark: Any, model: str, count: int) -> None:
    result = benchmark(
        advcore.minimize_distortion, MODELS[model], digits[:count], targets[:count], threads=1
    )
    assert result.success.all()


@pytest.mark.parametrize("effort", ["fast", "thorough"])
def test_effort(benchmark: Any, effort: str) -> None:
    result = benchmark(
        advcore.minimize_distortion, network, digits, targets, threads=1, effort=effort
    )
    assert result.success.all()


def test_forward(benchmark: Any) -> None:
    x = digits[:NATIVE_SLOTS].reshape(NATIVE_SLOTS, -1)
    logits = benchmark(network.forward, x)
    with torch.inference_mode():
        np.testing.assert_allclose(logits, module(torch.from_numpy(x)), rtol=1e-4, atol=1e-4)


def test_forward_and_backward(benchmark: Any) -> None:
    x = digits[:NATIVE_SLOTS].reshape(NATIVE_SLOTS, -1)
    seed = np.eye(10, dtype=np.float32)[targets[:NATIVE_SLOTS]]

    def both() -> Any:
        network.forward(x)
        return network.backward(seed)

    leaf = torch.from_numpy(x.copy()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(leaf), leaf, torch.from_numpy(seed))
    np.testing.assert_allclose(benchmark(both), gradient, rtol=1e-4, atol=1e-4)


def test_lowering(benchmark: Any) -> None:
    lowered = benchmark(advcore.Network.from_torch, module, digits.shape[1:])
    assert lowered.classes == 10


def test_scipy_loop_on_one_image(benchmark: Any) -> None:
    oracle = NumpyNetwork(network)
    result = benchmark.pedantic(
        reference.minimize_distortion, (oracle, digits[:1], targets[:1]), rounds=3
    )
    assert result.success.all()
