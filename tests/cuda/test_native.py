"""Native networks on a GPU against the CPU's engine; skipped where there is no GPU.

Products are float32's to about 2^-21 (three TF32 products each): searches that round differently
part at times, as the CPU's native and torch paths do on 3% of the digits.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import _core, data
from advcore.data import random_targets
from advcore.network import Layer, Network

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from advcore.kernels.activation import KERNEL_ACTIVATIONS  # noqa: E402

_, DEVICES, REASON = _core.cuda_status()
pytestmark = pytest.mark.skipif(
    DEVICES == 0 or not torch.cuda.is_available(), reason=f"no GPU: {REASON}"
)


def random_network(sizes: tuple[int, ...], activation: str, scale: float = 3.0) -> Network:
    rng = np.random.default_rng(sum(sizes))
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        weight = rng.normal(0, scale / np.sqrt(a), (b, a))
        kind = activation if i + 2 < len(sizes) else "identity"
        layers.append(Layer(weight, -weight.sum(axis=1) / 2 + rng.normal(0, 0.1, b), kind))
    return Network(layers)


def assert_agree(result: Any, expected: Any, share: float) -> None:
    assert result.engine["path"] == "native"
    assert str(result.engine["device"]).startswith("cuda")
    assert (result.success == expected.success).mean() >= 0.97
    both = result.success & expected.success & (expected.distortion > 0)
    if not both.any():
        return
    gap = np.abs(result.distortion[both] / expected.distortion[both] - 1)
    assert abs(result.distortion[both].mean() / expected.distortion[both].mean() - 1) < 0.02
    assert (gap < 1e-3).mean() >= share, np.sort(gap)[::-1][:10]


@pytest.mark.parametrize("activation", KERNEL_ACTIVATIONS)
def test_activations(activation: str) -> None:
    network = random_network((50, 40, 30, 7), activation)
    images = np.random.default_rng(0).random((200, 50), dtype=np.float32)
    expected = advcore.minimize_distortion(network, images)
    assert_agree(advcore.minimize_distortion(network, images, device="cuda"), expected, 0.85)


@pytest.mark.parametrize("sizes", [
    (1, 3, 2), (5, 17, 130, 3), (784, 10), (784, 300, 100, 10), (784, 512, 512, 10),
    (3072, 1000, 1000, 10), (20, 33, 1000), (20000, 16, 5),
])  # fmt: skip
def test_shapes(sizes: tuple[int, ...]) -> None:
    network = random_network(sizes, "tanh")
    count = 100 if sizes[0] < 10000 else 6
    images = np.random.default_rng(0).random((count, sizes[0]), dtype=np.float32)
    expected = advcore.minimize_distortion(network, images)
    share = 0.85 if sizes[0] < 10000 else 0.5
    assert_agree(advcore.minimize_distortion(network, images, device="cuda"), expected, share)


@pytest.mark.parametrize("targeted", [True, False])
def test_digits(targeted: bool) -> None:
    images, labels = data.embedded_digits()
    aim = {"labels": labels}
    if targeted:
        aim = {"targets": random_targets(labels, classes=10, seed=0)}
    network = data.embedded_network()
    expected = advcore.minimize_distortion(network, images, **aim)
    for model in (network, network.to_torch().to("cuda")):
        result = advcore.minimize_distortion(model, images, device="cuda", **aim)
        assert_agree(result, expected, 0.9)


@pytest.mark.parametrize("options", [
    {"history": 8}, {"effort": "thorough"}, {"effort": "fast"}, {"max_evaluations": 7},
    {"loss": "cross_entropy", "c_search": "bisection"}, {"levels": 256},
])  # fmt: skip
def test_options(options: dict[str, Any]) -> None:
    network = random_network((50, 32, 7), "relu")
    images = np.random.default_rng(0).random((64, 50), dtype=np.float32)
    if "levels" in options:
        images = np.rint(images * 255).astype(np.float32) / np.float32(255)
    expected = advcore.minimize_distortion(network, images, **options)
    result = advcore.minimize_distortion(network, images, device="cuda", **options)
    assert_agree(result, expected, 0.6)


def test_own_bounds_and_starts() -> None:
    network = random_network((50, 32, 7), "tanh")
    rng = np.random.default_rng(0)
    images = rng.random((32, 50), dtype=np.float32)
    bounds = (np.maximum(images - 0.6, 0), np.minimum(images + 0.6, 1))
    starts = np.clip(images[:, None] + rng.normal(0, 0.4, (32, 3, 50)), 0, 1).astype(np.float32)
    starts = np.clip(starts, bounds[0][:, None], bounds[1][:, None])
    options = {"bounds": bounds, "starts": starts}
    expected = advcore.minimize_distortion(network, images, **options)
    result = advcore.minimize_distortion(network, images, device="cuda", **options)
    assert_agree(result, expected, 0.8)


@pytest.mark.parametrize("sizes", [(60, 50, 10), (60, 700, 10)])
def test_results_do_not_depend_on_slots_or_order(sizes: tuple[int, ...]) -> None:
    network = random_network(sizes, "relu")
    images = np.random.default_rng(0).random((300, sizes[0]), dtype=np.float32)
    whole = advcore.minimize_distortion(network, images, device="cuda")
    for size in (1, 7, 64):
        few = images[: 20 * size]
        part = advcore.minimize_distortion(network, few, device="cuda", batch_size=size)
        assert np.array_equal(part.adversarial, whole.adversarial[: len(few)])
    back = advcore.minimize_distortion(network, images[::-1].copy(), device="cuda")
    assert np.array_equal(back.adversarial[::-1], whole.adversarial)


def test_more_images_than_the_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from advcore.oracles import memory
    from advcore.solve import cuda_rounds as cuda

    network = random_network((60, 50, 10), "tanh")
    images = np.random.default_rng(0).random((1000, 60), dtype=np.float32)
    whole = advcore.minimize_distortion(network, images, device="cuda", batch_size=32)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(3e5 / cuda.SHARE))
    parts = advcore.minimize_distortion(network, images, device="cuda", batch_size=32)
    assert whole.engine["fillings"] == 1
    assert int(parts.engine["fillings"]) > 2
    assert np.array_equal(parts.adversarial, whole.adversarial)
    assert np.array_equal(parts.status, whole.status)


def test_a_time_limit_and_a_callback() -> None:
    network = random_network((784, 500, 500, 10), "relu")
    images = np.random.default_rng(0).random((20000, 784), dtype=np.float32)
    advcore.minimize_distortion(network, images[:10], device="cuda")
    result = advcore.minimize_distortion(network, images, device="cuda", time_limit=0.01)
    stopped = result.status == advcore.Status.interrupted
    assert stopped.any()
    assert np.array_equal(result.adversarial[~result.success], images[~result.success])
    seen: list[Any] = []
    advcore.minimize_distortion(network, images[:4000], device="cuda", callback=seen.append)
    assert seen[-1].finished == 4000
    assert [p.finished for p in seen] == sorted(p.finished for p in seen)


def test_logits_that_are_not_finite() -> None:
    network = random_network((20, 30, 5), "softplus")
    layers = [*network.layers[:-1], Layer(network.layers[-1].weight * 1e38, np.zeros(5))]
    images = np.random.default_rng(0).random((10, 20), dtype=np.float32)
    labels = np.zeros(10, np.int64)
    expected = advcore.minimize_distortion(Network(layers), images, labels=labels)
    result = advcore.minimize_distortion(Network(layers), images, labels=labels, device="cuda")
    assert np.array_equal(result.success, expected.success)


def test_images_of_the_device_and_of_the_host_give_the_same() -> None:
    network = random_network((60, 50, 10), "tanh")
    images = np.random.default_rng(0).random((50, 60), dtype=np.float32)
    model = network.to_torch().to("cuda")
    host = advcore.minimize_distortion(model, images)
    device = advcore.minimize_distortion(model, torch.from_numpy(images).to("cuda"))
    assert device.adversarial.device.type == "cuda"
    assert np.array_equal(device.adversarial.cpu().numpy(), host.adversarial)


@pytest.fixture(params=["allow_tf32", "fp32_precision"])
def tf32_products(request: pytest.FixtureRequest) -> Any:
    products = torch.backends.cuda.matmul
    if not hasattr(products, request.param):
        pytest.skip(f"this torch has no {request.param}")
    before = getattr(products, request.param)
    setattr(products, request.param, True if request.param == "allow_tf32" else "tf32")
    yield
    setattr(products, request.param, before)


def test_the_verification_is_in_float32(tf32_products: None) -> None:
    network = data.embedded_network()
    images, labels = data.embedded_digits()
    targets = random_targets(labels, classes=10, seed=0)[:200]
    result = advcore.minimize_distortion(network, images[:200], targets, device="cuda")
    predicted = network.forward(result.adversarial.reshape(200, -1)).argmax(axis=1)
    assert (predicted == targets)[result.success].all()
    assert result.success.mean() > 0.99
