"""The solver on a GPU against the solver on the CPU; skipped where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import _core, data
from advcore.data import random_targets

torch = pytest.importorskip("torch")

_, DEVICES, REASON = _core.cuda_status()
pytestmark = pytest.mark.skipif(
    DEVICES == 0 or not torch.cuda.is_available(), reason=f"no GPU: {REASON}"
)


@pytest.fixture(autouse=True)
def float32_products() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def random_network(n: int, activation: Any, classes: int = 7) -> Any:
    torch.manual_seed(n)
    model = torch.nn.Sequential(
        torch.nn.Linear(n, 32), activation, torch.nn.Linear(32, classes)
    ).eval()
    with torch.no_grad():
        model[0].weight.mul_(4)
        model[0].bias.sub_(model[0].weight.sum(dim=1) / 2)
        model[2].weight.mul_(4)
    return model


def on_gpu(model: Any, images: Any, **options: Any) -> Any:
    """The model as a callable, which is not lowered: its rounds are the host's."""
    model = model.to("cuda")
    return advcore.minimize_distortion(lambda x: 1 * model(x), images, device="cuda", **options)


def assert_agree(result: Any, expected: Any, share: float) -> None:
    # Searches that round differently part at times: the CPU's own two paths, native and torch,
    # are within 1e-3 on 97% of the digits with targets, on 67 to 100% of large random images.
    assert result.engine["solver"].startswith("cuda")
    assert np.array_equal(result.success, expected.success)
    both = result.success & (expected.distortion > 0)
    gap = np.abs(result.distortion[both] / expected.distortion[both] - 1)
    assert abs(result.distortion[both].mean() / expected.distortion[both].mean() - 1) < 0.02
    assert (gap < 1e-3).mean() >= share, np.sort(gap)[::-1][:10]


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.Softplus()])
@pytest.mark.parametrize("n", [1, 5, 33, 784, 3072, 20000, 150528])
def test_any_size(n: int, activation: Any) -> None:
    model = random_network(n, activation)
    images = np.random.default_rng(n).random((40 if n < 10000 else 6, n), dtype=np.float32)
    expected = advcore.minimize_distortion(model, images)
    result = on_gpu(model, images)
    assert_agree(result, expected, 0.9 if n < 10000 else 0.5)


@pytest.mark.parametrize("targeted", [True, False])
def test_digits(targeted: bool) -> None:
    images, labels = data.embedded_digits()
    aim = {"labels": labels}
    if targeted:
        aim = {"targets": random_targets(labels, classes=10, seed=0)}
    network = data.embedded_network()
    expected = advcore.minimize_distortion(network, images, **aim)
    result = on_gpu(network.to_torch(), images, **aim)
    assert_agree(result, expected, 0.94)


@pytest.mark.parametrize("options", [
    {"history": 8}, {"history": 3}, {"effort": "thorough"}, {"max_evaluations": 7},
    {"loss": "cross_entropy", "c_search": "bisection"},
])  # fmt: skip
def test_options(options: dict[str, Any]) -> None:
    model = random_network(50, torch.nn.Tanh())
    images = np.random.default_rng(0).random((64, 50), dtype=np.float32)
    expected = advcore.minimize_distortion(model, images, **options)
    result = on_gpu(model, images, **options)
    assert_agree(result, expected, 0.65 if "c_search" in options else 0.9)


def test_own_bounds_and_starts() -> None:
    model = random_network(50, torch.nn.Tanh())
    rng = np.random.default_rng(0)
    images = rng.random((32, 50), dtype=np.float32)
    bounds = (np.maximum(images - 0.6, 0), np.minimum(images + 0.6, 1))
    starts = np.clip(images[:, None] + rng.normal(0, 0.4, (32, 3, 50)), 0, 1).astype(np.float32)
    starts = np.clip(starts, bounds[0][:, None], bounds[1][:, None])
    options = {"bounds": bounds, "starts": starts}
    expected = advcore.minimize_distortion(model, images, **options)
    result = on_gpu(model, images, **options)
    assert_agree(result, expected, 0.85)


def test_result_does_not_depend_on_slots() -> None:
    # A model whose rows do not see the batch: sums of one row alone.
    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(5, 60, generator=torch.manual_seed(0)))

        def forward(self, x: Any) -> Any:
            return (torch.tanh(3 * x)[:, None] * self.weight).sum(dim=2)

    model = Rows().eval().to("cuda")
    images = np.random.default_rng(0).random((50, 60), dtype=np.float32)
    whole = advcore.minimize_distortion(model, images)
    for size in (1, 7, 64):
        part = advcore.minimize_distortion(model, images, batch_size=size)
        assert np.array_equal(part.adversarial, whole.adversarial)


def test_nan_logits_and_many_classes() -> None:
    model = random_network(20, torch.nn.Tanh(), classes=1000)
    images = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    expected = advcore.minimize_distortion(model, images)
    assert_agree(on_gpu(model, images), expected, 0.85)

    class Broken(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.where(x[:, :1] > 0.5, x[:, :3] / 0 * 0, x[:, :3])

    images[:10, 0], images[10:, 0] = 0.9, 0.1
    model = Broken().eval()
    result = advcore.minimize_distortion(model, images, device="cuda", labels=0)
    assert (result.status[:10] == advcore.Status.non_finite).all()
