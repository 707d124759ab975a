"""Modules that hide their activations are searched as the graph of their operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.oracles import TorchOracle
from advcore.solve import choose

torch = pytest.importorskip("torch")
nn = torch.nn
functional = torch.nn.functional

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.torch\.jit\.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # of torch.compile
]
SHAPE = (1, 8, 8)


class Residual(nn.Module):
    """A residual network with pooling, an activation in place and a leaky one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 5)
        self.eval()

    def block(self, h: Any) -> Any:
        return torch.relu_(h + self.norm(self.second(h)))

    def forward(self, x: Any) -> Any:
        h = functional.leaky_relu(self.first(x), 0.1)
        h = functional.max_pool2d(self.block(h), 3, 2, 1)
        return self.head(h.flatten(1))


class Checkpointed(Residual):
    def block(self, h: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(super().block, h, use_reentrant=False)


def exported(module: Any) -> Any:
    rows = {0: torch.export.Dim.AUTO}
    program = torch.export.export(
        module, (torch.rand(2, *SHAPE),), dynamic_shapes=(rows,), strict=False
    )
    return program.module()


def compiled(module: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(module, backend="eager")


DRESSES: dict[str, Callable[[Any], Any]] = {
    "scripted": lambda module: torch.jit.trace(module, torch.rand(2, *SHAPE)),
    "exported": exported,
    "checkpointed": lambda module: Checkpointed(),
    "compiled": compiled,
}


@pytest.mark.parametrize("name", DRESSES)
def test_hidden_activations_are_smoothed_as_those_of_the_module(name: str) -> None:
    module = Residual()
    plain, dressed = TorchOracle(module, SHAPE), TorchOracle(DRESSES[name](module), SHAPE)
    assert dressed.kind == plain.kind == "convolutional"
    x = np.random.default_rng(0).random((3, 64), dtype=np.float32)
    slots, recorded = np.arange(3, dtype=np.int32), np.ones(3, bool)
    dlogits = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    values = []
    for oracle in (plain, dressed):
        exact = oracle.forward(x, slots=slots, record_scales=recorded)
        smoothing = np.array([0.5, 0, 0.2], np.float32)
        smoothed = oracle.forward(x, smoothing, slots)
        values.append((exact, smoothed, oracle.backward(dlogits)))
    for a, b in zip(*values, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(values[0][0][0], values[0][1][0])
    np.testing.assert_array_equal(values[0][0][1], values[0][1][1])


@pytest.mark.parametrize("name", DRESSES)
def test_the_results_are_those_of_the_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "GRAPH_WEIGHTS", 0)  # through torch
    module = Residual()
    x = np.random.default_rng(2).random((6, *SHAPE), dtype=np.float32)
    targets = (module(torch.tensor(x)).argmax(1).numpy() + 1) % 5
    expected = advcore.minimize_distortion(lambda rows: module(rows), x, targets)
    found = advcore.minimize_distortion(DRESSES[name](module), x, targets)
    assert found.engine["smoothed"] == (
        "2 piecewise linear, 1 max-pooling; searched is the graph of the operations"
    )
    # A compiled module rounds differently.
    assert np.abs(found.evaluations - expected.evaluations).max() <= 2
    np.testing.assert_allclose(found.distortion, expected.distortion, rtol=1e-3)


def test_a_model_of_which_all_is_seen_is_searched_as_it_is() -> None:
    oracle = TorchOracle(Residual(), SHAPE)
    assert oracle._searched is None
    assert oracle.unread is None


def test_a_model_that_cannot_be_read_says_why() -> None:
    module = Residual()

    def branching(x: Any) -> Any:
        return module(x) if float(x.detach().sum()) > -1 else -module(x)

    oracle = TorchOracle(branching, SHAPE)
    assert oracle.kind == "convolutional"
    assert "reads a value of a tensor" in str(oracle.unread)
    assert "the operations could not be read: the operation aten._local_" in oracle.smoothed


@pytest.mark.parametrize("batch_size", [None, 1])
def test_values_read_outside_of_torch_are_found(batch_size: int | None) -> None:
    """They are constants of the record, so that the graph is right for the recorded image alone."""
    module = Checkpointed()

    def scaled(x: Any) -> Any:
        return module(x / float(np.abs(x.detach().numpy()).max()))

    image = np.random.default_rng(0).random((1, 64), dtype=np.float32)
    oracle = TorchOracle(scaled, SHAPE, sample=image, batch_size=batch_size)
    assert oracle.graph is None
    assert "other logits" in str(oracle.unread)
