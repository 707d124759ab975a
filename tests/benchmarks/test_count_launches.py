"""Launches and bytes of an evaluation, and that rounds of the search have no more of them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

torch = pytest.importorskip("torch")
counting = importlib.import_module("count_launches")
machine = importlib.import_module("harness.machine")
resnet = importlib.import_module("harness.resnet")

from advcore.oracles import TorchOracle  # noqa: E402


@pytest.fixture(scope="module")
def counts() -> Any:
    return counting.count()


def test_an_operator_is_a_launch_that_reads_and_writes() -> None:
    x = torch.zeros(6, 5)
    with counting.Launches() as counted:
        y = torch.relu(x)  # 120 bytes in, 120 out
        y.view(30).add_(1)  # in place, the number counts for nothing
        torch.empty_like(x)
        torch.stack([x, x])
    assert dict(counted.launches) == {"relu": 1, "add_": 1, "stack": 1}
    assert dict(counted.bytes) == {"relu": 240, "add_": 240, "stack": 480}


def test_stored_figures_are_those_of_the_code(counts: Any) -> None:
    stored = machine.load("count_launches")
    assert {name: stored[name] for name in counts} == counts


def test_the_exact_network(counts: Any) -> None:
    """Both ways: 53 convolutions and batch norms, 49 ReLUs, 16 additions, and two poolings and a
    product at the ends.
    """
    parameters = sum(parameter.numel() for parameter in resnet.resnet50().parameters())
    assert parameters == 25_557_032  # as torchvision's
    exact = counts["exact"]
    assert exact["launches"] == 2 * (2 * 53 + 49 + 16 + 3)
    assert exact["launches"] == 348
    assert exact["megabytes_an_image"] == 832.0


def test_the_kernel_takes_the_place_of_the_relu(counts: Any) -> None:
    """One launch each way instead of one, six tensors instead of five; the rest is the pooling."""
    exact, smoothed = (counts[name]["by_operator"] for name in ("exact", "smoothed"))
    for ours, theirs in (("forward", "relu_"), ("backward", "threshold_backward")):
        assert smoothed[f"smoothed_relu_{ours}"]["launches"] == exact[theirs]["launches"] == 49
    relu = exact["relu_"]["megabytes"] / 2
    extra = counts["smoothed"]["megabytes_an_image"] - counts["exact"]["megabytes_an_image"]
    assert smoothed["smoothed_relu_forward"]["megabytes"] == pytest.approx(3 * relu, rel=0.01)
    assert counts["smoothed"]["launches"] < 0.5 * counts["smoothed by operators"]["launches"]
    pooled = 64 * 112 * 112 * 4 / 1e6  # input of the pooling
    assert extra < relu + 45 * pooled


@pytest.mark.parametrize("recorded", [False, True])
def test_rounds_without_a_smoothed_row_have_the_launches_of_the_model(
    counts: Any, recorded: bool
) -> None:
    """As of a model on a GPU, whose rounds `forward_rows` evaluates; here on the CPU."""
    model = resnet.resnet50()
    oracle = TorchOracle(model, (3, 32, 32))
    assert oracle.kind == "convolutional"
    x, slots = torch.rand(2, 3 * 32 * 32), torch.arange(2)
    rows = torch.tensor([1]) if recorded else None
    with counting.Launches() as counted:
        logits = oracle.forward_rows(x, None, slots, rows, 2)
        oracle.backward_rows(torch.ones_like(logits))
    gradient = {"ones_like": 2, "mul": 2, "sum": 1}  # how a gradient is taken on the CPU
    more = counted.launches.total() - sum(gradient.values()) - counts["exact"]["launches"]
    assert (more > 0) if recorded else (more == 0)
