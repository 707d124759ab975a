"""Numbers of rows that a model gets: few for compiled ones, one with ``deterministic``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.small_models import Model

import advcore
from advcore.oracles import NumpyOracle, TorchOracle, memory, torch_oracle
from advcore.oracles.batches import BatchRule, BatchSizes, few_sizes

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute", "ignore::DeprecationWarning")
IMAGES = np.random.default_rng(0).random((40, 1, 6, 6), dtype=np.float32)
X = IMAGES.reshape(40, -1)


class Network(torch.nn.Module):
    """A small convolutional network that notes the rows of every call."""

    def __init__(self, activation: Any = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.last = torch.nn.Linear(144, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2)
        self.activation = activation
        self.rows: set[int] = set()
        self.eval()

    def forward(self, x: Any) -> Any:
        """Logits (B, 5) of images (B, 1, 6, 6)."""
        if not torch.compiler.is_compiling():
            self.rows.add(len(x))
        return self.last(self.activation(self.convolution(x)).flatten(1))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 24, 73, 1000, 1024])
def test_six_sizes_at_most(most: int) -> None:
    sizes = few_sizes(most)
    assert len(sizes.sizes) <= 6
    assert sizes.sizes == tuple(sorted(set(sizes.sizes)))
    assert (sizes.sizes[0], sizes.most) == (1, most)
    for rows in range(1, most + 1):
        smaller = [size for size in sizes.sizes if size < sizes.padded(rows)]
        assert sizes.padded(rows) >= rows > max(smaller, default=0)
        assert sizes.fitting(rows) <= rows
        assert sizes.up_to(rows).most == sizes.fitting(rows)
    assert BatchSizes((8,), True).fitting(3) == 8


def compiled(model: Any) -> tuple[Any, list[int]]:
    """The model compiled anew for each shape, and the rows of each graph that was compiled."""
    rows: list[int] = []

    def note(graph: Any, inputs: Any) -> Any:
        rows.append(next(len(value) for value in inputs if value.shape[1:] == (1, 6, 6)))
        return graph.forward

    torch.compiler.reset()
    return torch.compile(model, backend=note, dynamic=False), rows


@pytest.mark.parametrize("levels", [None, 16])
@pytest.mark.parametrize("targeted", [True, False])
def test_a_compiled_model_is_compiled_six_times_at_most(targeted: bool, levels: int | None) -> None:
    network = Network(torch.nn.functional.silu)  # nothing to smooth, so that it is searched itself
    model, rows = compiled(network)
    targets = None
    if targeted:
        with torch.no_grad():
            targets = (network(torch.tensor(IMAGES)).argmax(1).numpy() + 1) % 5
    result = advcore.minimize_distortion(model, IMAGES, targets, levels=levels)
    assert result.success.all()
    assert result.engine["batches"] == "1, 3, 10, 20, 30, 40"
    assert len(rows) == len(set(rows)) <= 6
    assert set(rows) <= {1, 3, 10, 20, 30, 40}
    assert len(rows) > 3  # of a tail with fewer and fewer images


def test_a_compiled_model_never_gets_more_than_batch_size() -> None:
    model, rows = compiled(Network(torch.nn.functional.silu))
    advcore.minimize_distortion(model, IMAGES, batch_size=16)
    assert max(rows) == 16
    assert len(rows) <= 6


def test_few_sizes_are_for_models_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, counted = Network(), Network()
    exact = advcore.minimize_distortion(lambda x: 1 * plain(x), IMAGES)
    assert "batches" not in exact.engine
    assert len(plain.rows) > 6
    monkeypatch.setattr(torch_oracle, "is_compiled", lambda model: True)
    found = advcore.minimize_distortion(lambda x: 1 * counted(x), IMAGES)
    assert counted.rows <= {1, 3, 10, 20, 30, 40}
    assert found.success.all()
    assert found.distortion.mean() == pytest.approx(exact.distortion.mean(), rel=0.01)


def test_in_place_compilation_is_seen() -> None:
    model, wrapped = Network(), torch.nn.Sequential(torch.compile(Network()))
    assert not torch_oracle.is_compiled(model)
    assert torch_oracle.is_compiled(wrapped)
    assert torch_oracle.is_compiled(torch.compile(lambda x: model(x)))
    model.compile()
    assert torch_oracle.is_compiled(model)


def test_padding_leaves_rows_as_they_are() -> None:
    """Logits, gradients and smoothing scales, through the arrays of both devices."""
    plain = TorchOracle(Network(), (1, 6, 6), sample=X)
    rule = BatchRule(16, True)
    oracle = TorchOracle(Network(), (1, 6, 6), sample=X, batch_rule=rule)
    assert oracle.kind == plain.kind == "convolutional"
    x = X[:5].copy()
    slots, record = np.arange(5, dtype=np.int32), np.ones(5, np.bool_)
    seeds = np.random.default_rng(1).standard_normal((5, 5), dtype=np.float32)
    for smoothing in (np.zeros(5, np.float32), np.linspace(0, 1, 5, dtype=np.float32)):
        ours, theirs = (o.forward(x, smoothing, slots, record) for o in (oracle, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        gradients = oracle.backward(seeds), plain.backward(seeds)
        np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-5)
    oracle.forward(x, smoothing, slots, record)
    first = oracle.backward(seeds[:3])  # the others need none
    assert first.shape == (3, 36)
    np.testing.assert_allclose(first, gradients[0][:3], rtol=1e-5, atol=1e-5)
    tensors = (torch.from_numpy(a.copy()) for a in (x, smoothing, slots.astype(np.int64)))
    logits = oracle.forward_rows(*tensors, torch.arange(5), 5)
    np.testing.assert_allclose(logits, ours, rtol=1e-5, atol=1e-5)
    assert oracle.backward_rows(torch.from_numpy(seeds)).shape == (5, 36)


def test_a_padded_row_that_gives_nan_leaves_no_trace() -> None:
    class Root(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.cat([x.sqrt(), -x.sqrt()], dim=1)  # no gradient at 0

    rule = BatchRule(4, True)
    oracle = TorchOracle(Root().eval(), (1,), batch_rule=rule)
    oracle.forward(np.array([[0.25], [0.0]], np.float32))
    gradient = oracle.backward(np.array([[1, 0], [0, 0]], np.float32))
    assert gradient[0] == 1


def test_memory_bounds_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = TorchOracle(Network(), (1, 6, 6))

    def sizes(is_fixed: bool, rows: int) -> tuple[int, ...]:
        monkeypatch.setattr(oracle, "saved_bytes", memory.BACKWARD_BYTES // rows)
        return BatchRule(64, is_fixed, True).sizes(oracle).sizes

    assert sizes(True, 100) == (64,)
    assert sizes(True, 31) == (16,)
    assert sizes(False, 100) == few_sizes(64).sizes
    assert sizes(False, 31) == few_sizes(31).sizes
    assert sizes(False, 1) == (1,)


def test_a_numpy_model_gets_one_size() -> None:
    model = Model()
    rows: set[int] = set()
    forward = model.forward
    model.forward = lambda x: (rows.add(len(x)), forward(x))[1]  # type: ignore[method-assign]
    oracle = NumpyOracle(model, (6,), batch_rule=BatchRule(8, True))
    x = np.random.default_rng(0).random((3, 6), dtype=np.float32)
    np.testing.assert_array_equal(oracle.forward(x), forward(x).astype(np.float32))
    assert oracle.backward(np.ones((2, 3), np.float32)).shape == (2, 6)
    assert rows == {8}


def test_smaller_batches_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_oracle, "is_compiled", lambda model: True)
    network = Network(torch.nn.functional.silu)
    allowed = [40]

    def hungry(x: Any) -> Any:
        if len(x) > allowed[0]:
            raise MemoryError
        return network(x)

    def starve(progress: Any) -> None:
        if allowed[0] == 40:
            network.rows.clear()
        allowed[0] = 12

    result = advcore.minimize_distortion(hungry, IMAGES, callback=starve)
    assert result.success.all()
    assert network.rows == {1, 3, 10}
