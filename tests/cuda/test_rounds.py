"""The Python rounds of the CUDA engine, on the CPU: a stand-in behind the interface of pointers."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

import numpy as np
import pytest

from advcore import _core
from advcore.errors import DeviceError, ModelRaised
from advcore.options import Options
from advcore.solve.backends import EngineInfo
from advcore.solve.job import Job, RunMonitor
from advcore.solve.params import Facts, engine_params
from advcore.solve.rounds import OracleBackend

torch = pytest.importorskip("torch")
cuda = pytest.importorskip("advcore.solve.cuda_rounds")
oracles = pytest.importorskip("advcore.oracles")

from support.simulated_gpu import LAUNCH_FAILURE  # noqa: E402
from support.simulated_gpu import StandInSession as StandIn  # noqa: E402


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    monkeypatch.setattr(_core, "CudaSession", StandIn)
    monkeypatch.setattr(StandIn, "fails_in", -1)
    monkeypatch.setattr(cuda, "stream", lambda device: 0)
    monkeypatch.setattr(cuda, "busy", lambda device: False)
    monkeypatch.setattr(oracles.memory, "free_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return StandIn


def problem(activation: Any, outputs: int = 4, count: int = 30) -> tuple[Any, Job]:
    torch.manual_seed(0)
    layers = (torch.nn.Linear(12, 16), activation, torch.nn.Linear(16, outputs))
    model = torch.nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(3)
    oracle = oracles.TorchOracle(model, (12,))
    rng = np.random.default_rng(0)
    images = rng.random((count, 12), dtype=np.float32)
    labels = oracle.forward(images, grad=False).argmax(axis=1).astype(np.int32)
    facts = Facts(
        n=12, classes=oracle.classes, kind=oracle.kind, targeted=False, required_margin=1e-3
    )
    params = engine_params(Options(), facts)
    zeros, ones = np.zeros(12, np.float32), np.ones(12, np.float32)
    return oracle, Job(params, images, labels, zeros, ones, None)


def run(oracle: Any, job: Job, slots: int, on_gpu: bool = False) -> Any:
    """Results of the rounds with the solver on the CPU, or on the stand-in of a GPU."""
    kind = cuda.OracleCudaBackend if on_gpu else OracleBackend
    backend = kind(oracle, EngineInfo("torch", "cpu", "base", "a test"), slots)
    return backend.run(job, RunMonitor(len(job.images), None, None, time.perf_counter()))


@pytest.mark.parametrize("outputs", [4, 1])
@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.Softplus()])
def test_same_results_as_the_session_of_the_cpu(
    stand_in: type[StandIn], activation: Any, outputs: int
) -> None:
    oracle, job = problem(activation, outputs)
    expected, error = run(oracle, job, 7)
    assert error is None
    assert expected["success"].any()
    result, error = run(oracle, job, 7, on_gpu=True)
    assert error is None
    assert np.array_equal(result["success"], expected["success"])
    both = result["success"]
    gap = np.abs(result["distortion"][both] / expected["distortion"][both] - 1)
    assert (gap < 1e-3).mean() >= 0.9  # torch's products round with the rows of the batch


def test_rounds_without_a_smoothed_row_run_the_exact_model(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, job = problem(torch.nn.ReLU())
    rounds: list[tuple[bool, bool]] = []  # whether k is passed, and whether the model runs as it is
    evaluate, forward = oracle._evaluate, oracle.forward_rows

    def evaluate_under(x: Any, mode: Any, *rest: Any) -> Any:
        rounds[-1] = (rounds[-1][0], mode is None)
        return evaluate(x, mode, *rest)

    def forward_rows(x: Any, smoothing: Any, *rest: Any) -> Any:
        rounds.append((smoothing is not None, False))
        return forward(x, smoothing, *rest)

    monkeypatch.setattr(oracle, "_evaluate", evaluate_under)
    monkeypatch.setattr(oracle, "forward_rows", forward_rows)
    _, error = run(oracle, job, 1, on_gpu=True)
    assert error is None
    recording = len(job.images)  # the first round of an image, which is exact
    assert rounds.count((False, False)) == recording
    assert rounds.count((False, True)) > recording
    assert rounds.count((True, False)) > recording
    assert (True, True) not in rounds


@pytest.mark.parametrize("activation", [torch.nn.Tanh(), torch.nn.ReLU()])
def test_padded_batches_are_those_of_the_cpu(stand_in: type[StandIn], activation: Any) -> None:
    """Every round has 8 rows on either device, so that all bits are the same."""
    oracle, job = problem(activation)
    oracle.batches = oracles.batches.BatchSizes((8,), True)
    expected, error = run(oracle, job, 7)
    assert error is None
    assert expected["success"].any()
    result, error = run(oracle, job, 7, on_gpu=True)
    assert error is None
    for name, values in expected.items():
        np.testing.assert_array_equal(result[name], values, err_msg=name)


def test_a_failed_launch_keeps_what_was_finished(stand_in: type[StandIn]) -> None:
    oracle, job = problem(torch.nn.Tanh())
    whole, _ = run(oracle, job, 4, on_gpu=True)
    stand_in.fails_in = 60
    result, error = run(oracle, job, 4, on_gpu=True)
    assert isinstance(error, DeviceError)
    assert LAUNCH_FAILURE in str(error)
    assert "restart" in str(error)
    kept = result["status"] != _core.Status.interrupted
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(result["adversarial"][kept], whole["adversarial"][kept])
    assert np.array_equal(result["adversarial"][~kept], job.images[~kept])


def test_a_failure_of_the_device_is_not_the_models(stand_in: type[StandIn]) -> None:
    oracle, job = problem(torch.nn.Tanh())

    class Broken(stand_in):  # type: ignore[misc, valid-type]
        def interrupt(self) -> None:
            raise RuntimeError(LAUNCH_FAILURE)

    def first_heard_of_here(*_: Any) -> None:  # launches are asynchronous
        raise ModelRaised("the model raised AcceleratorError")

    _core.CudaSession = Broken  # type: ignore[assignment, misc]
    oracle.forward_rows = first_heard_of_here
    _, error = run(oracle, job, 4, on_gpu=True)
    assert isinstance(error, DeviceError)
    assert LAUNCH_FAILURE in str(error)
    _core.CudaSession = stand_in  # type: ignore[assignment, misc]
    _, error = run(oracle, job, 4, on_gpu=True)
    assert isinstance(error, ModelRaised)


def test_ctrl_c_is_heard_while_the_device_is_waited_for(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, job = problem(torch.nn.Tanh())
    looks = iter([True])  # the first one

    def busy(device: Any) -> bool:
        if next(looks, None) is None:
            return False
        raise KeyboardInterrupt

    monkeypatch.setattr(cuda, "busy", busy)
    results, error = run(oracle, job, 4, on_gpu=True)
    assert isinstance(error, KeyboardInterrupt)
    assert (results["status"] == _core.Status.interrupted).all()


def test_a_slow_model_is_no_hang(stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    _, job = problem(torch.nn.Tanh())
    session = cuda.CudaSession(job, 4, torch.device("cpu"))
    monkeypatch.setattr(cuda, "HANG_SECONDS", 0.05)
    limits: list[float] = []

    def wait(device: Any, limit: float | None) -> float:
        limits.append(limit)
        return 0.5

    monkeypatch.setattr(cuda, "wait", wait)
    session.refill()
    session.interrupt()
    assert limits == [None, pytest.approx(0.5 * cuda.SLOW_FACTOR)]


def test_the_arena_takes_what_there_is(
    stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, job = problem(torch.nn.Tanh())
    one = _core.cuda_arena_bytes(job.params, False, 1)
    assert one > 4 * 12 * 24
    monkeypatch.setattr(
        oracles.memory, "free_bytes", lambda device: math.ceil(6 * one / cuda.SHARE)
    )
    assert 1 < cuda.CudaSession(job, 30, oracle.device).slots < 10

    def full(*shape: int, **options: Any) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(cuda.torch, "empty", full)
    with pytest.raises(DeviceError, match=f"{one} bytes"):
        cuda.CudaSession(job, 30, oracle.device)


def test_the_reason_for_no_cuda_is_named() -> None:
    built, devices, reason = _core.cuda_status()
    if devices:
        pytest.skip("there is a GPU")
    assert reason
    _, job = problem(torch.nn.Tanh())
    with pytest.raises(RuntimeError, match="CUDA" if built else "no CUDA"):
        _core.CudaSession(job.core, 4, device=0, arena=0, stream=0)
