"""The Python around a run of a native network on a GPU, with a stand-in for the device."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest

from advcore import _core
from advcore.data import embedded_network
from advcore.errors import DeviceError
from advcore.network import Layer, Network
from advcore.options import Options, Progress
from advcore.oracles import TorchOracle, memory
from advcore.solve.backends import EngineInfo, NetworkVerifier
from advcore.solve.job import Job, RunMonitor
from advcore.solve.native import NativeBackend
from advcore.solve.params import Facts, engine_params

torch = pytest.importorskip("torch")
cuda = pytest.importorskip("advcore.solve.cuda_rounds")
cuda_network = pytest.importorskip("advcore.solve.cuda_native")

from support.simulated_gpu import StandInPlan  # noqa: E402
from support.simulated_gpu import StandInQueue as StandIn  # noqa: E402


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> StandInPlan:
    out = StandInPlan()
    monkeypatch.setattr(_core, "CudaQueue", StandIn)
    monkeypatch.setattr(StandIn, "fails_in", -1)
    monkeypatch.setattr(cuda_network, "stream", lambda device: 0)
    monkeypatch.setattr(cuda_network, "_plan", lambda *_: (out, torch.zeros(1)))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return out


def problem(count: int = 40) -> tuple[Network, Job]:
    rng = np.random.default_rng(0)
    layers = [
        Layer(rng.normal(0, 1, (b, a)), rng.normal(0, 0.3, b), kind)
        for a, b, kind in ((12, 16, "softplus"), (16, 4, "identity"))
    ]
    network = Network(layers)
    StandIn.network = Network(layers)
    images = rng.random((count, 12), dtype=np.float32)
    labels = network.forward(images).argmax(axis=1).astype(np.int32)
    facts = Facts(n=12, classes=4, kind=network.kind, targeted=False, required_margin=1e-3)
    params = engine_params(Options(), facts)
    zeros, ones = np.zeros(12, np.float32), np.ones(12, np.float32)
    return network, Job(params, images, labels, zeros, ones, None)


def monitor_of(job: Job, callback: Any = None, limit: float | None = None) -> RunMonitor:
    return RunMonitor(len(job.images), limit, callback, time.perf_counter())


def run(
    network: Network, job: Job, slots: int = 7, callback: Any = None, limit: float | None = None
) -> tuple[Any, BaseException | None, EngineInfo]:
    info = EngineInfo("native", "cpu", "base", "a test")
    oracle = TorchOracle(network.to_torch(), (12,))
    backend = cuda_network.NativeCudaBackend(network, oracle, info, slots)
    results, error = backend.run(job, monitor_of(job, callback, limit))
    return results, error, info


def test_same_results_as_the_native_run(plan: StandInPlan) -> None:
    network, job = problem()
    info = EngineInfo("native", "cpu", "base", "a test")
    native = NativeBackend(network, NetworkVerifier(network), info, threads=1)
    expected, _ = native.run(job, monitor_of(job))
    seen: list[Progress] = []
    result, error, info = run(network, job, callback=seen.append)
    assert error is None
    assert result["success"].all()
    for name, values in expected.items():
        assert np.array_equal(result[name], values, equal_nan=values.dtype.kind == "f"), name
    assert [p.finished for p in seen] == sorted(p.finished for p in seen)
    assert any(0 < p.finished < 40 for p in seen)
    assert (info.kernels, info.fillings, info.round_seconds) == ("propagate", 1, 0.5)
    assert info.rounds == StandIn.latest.rounds


def test_what_the_kernels_are_told(plan: StandInPlan) -> None:
    network, job = problem()
    run(network, job)
    queue, given = StandIn.latest, plan.given
    assert queue.added == [(b"code", "propagate", (1, 1, 1), 128, 0, (b"12345678",))]
    assert (queue.slots, queue.capacity) == (7, 40)
    assert (given["slots"], given["rows"], given["count"]) == (7, 1, 2)
    assert given["confidence"] == job.params.confidence
    assert all(given[name] for name in ("problems", "vectors", "weights", "temperatures", "scales"))


@pytest.mark.parametrize("how", ["callback", "limit"])
def test_a_stop_delivers_what_there_is(plan: StandInPlan, how: str) -> None:
    network, job = problem()
    result, error, _ = (
        run(network, job, callback=lambda p: True)
        if how == "callback"
        else run(network, job, limit=0)
    )
    assert error is None
    stopped = result["status"] == _core.Status.interrupted
    assert stopped.sum() > 0
    clean = ~result["success"] & ~stopped  # a stopped search leaves where it stood
    assert np.array_equal(result["adversarial"][clean], job.images[clean])


def test_an_error_of_the_callback_and_of_the_device(plan: StandInPlan) -> None:
    network, job = problem()

    def broken(progress: Progress) -> None:
        raise KeyError("mine")

    result, error, _ = run(network, job, callback=broken)
    assert isinstance(error, KeyError)
    assert (result["status"] == _core.Status.interrupted).any()
    StandIn.fails_in = 45
    result, error, _ = run(network, job)
    assert isinstance(error, DeviceError)
    assert "unspecified launch failure" in str(error)
    done = result["status"] != _core.Status.interrupted
    assert 0 < done.sum() < len(done)


def test_images_and_slots_that_memory_allows(
    plan: StandInPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job = problem()
    needed = _core.cuda_arena_bytes(job.params, False, 8, 40)
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(0.8 * needed / cuda.SHARE))
    device = torch.device("cpu")
    slots, images, block = cuda.arena(job.params, False, 8, device, 40)
    assert 1 <= slots <= images <= 40
    assert images < 40
    assert block.numel() == _core.cuda_arena_bytes(job.params, False, slots, images)


def test_no_gpu_is_said() -> None:
    if _core.cuda_status()[1]:
        pytest.skip("there is a GPU")
    assert "no CUDA engine" in cuda_network.unavailable(embedded_network(), torch.device("cuda"))


@pytest.mark.parametrize("setting", [("allow_tf32", True), ("fp32_precision", "tf32")])
def test_products_in_float32_whatever_torch_is_set_to(setting: tuple[str, Any]) -> None:
    products: Any = torch.backends.cuda.matmul
    name, value = setting
    if not hasattr(products, name):
        pytest.skip(f"this torch has no {name}")
    before = getattr(products, name)
    try:
        setattr(products, name, value)
        with cuda_network.float32_products():
            inside = products.fp32_precision if hasattr(products, "fp32_precision") else None
            assert inside in (None, "ieee")
            if inside is None:
                assert products.allow_tf32 is False
        assert getattr(products, name) == value
    finally:
        setattr(products, name, before)


def test_what_the_kernels_lack_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("advcore.kernels.activation", exc_type=ImportError)
    monkeypatch.setattr(_core, "cuda_status", lambda: (True, 1, ""))
    monkeypatch.setattr(_core, "cuda_queue_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    network, device = embedded_network(), torch.device("cuda")
    monkeypatch.setattr(cuda_network.metadata, "version", lambda name: "3.5.1")
    why = cuda_network.unavailable(network, device)
    assert why == "triton 3.5.1 is installed, the kernels need 3.6"
    monkeypatch.setattr(cuda_network.metadata, "version", lambda name: "3.10.0+git")
    assert cuda_network.unavailable(network, device) is None
    monkeypatch.setattr(kernels, "KERNEL_ACTIVATIONS", ("identity",))
    assert "no kernel for the activation sigmoid" in cuda_network.unavailable(network, device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "need 8.0" in cuda_network.unavailable(network, device)
