"""What a call does where a GPU fails: on a simulated device with a failure at each place."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.data import embedded_digits, embedded_network, random_targets
from advcore.errors import DeviceError, NoAnswer
from advcore.network import Network
from advcore.oracles import TorchOracle

torch = pytest.importorskip("torch")

from support.simulated_gpu import (  # noqa: E402
    DEVICE,
    StandInQueue,
    StandInSession,
    simulated_gpu,
)

from advcore.solve import cuda_native, cuda_rounds, gpu, gpu_record, gpu_test  # noqa: E402


@pytest.fixture(autouse=True)
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the record, in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ADVCORE_GPU", raising=False)
    monkeypatch.setattr(cuda_native, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(gpu_test, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(cuda_rounds, "HANG_SECONDS", 0.1)
    return tmp_path / "advcore" / "gpu.json"


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    images, labels = embedded_digits()
    return images[:24].reshape(24, -1), random_targets(labels, classes=10, seed=0)[:24]


def as_callable(network: Network) -> Any:
    """The network as a function of torch, which is not lowered."""
    module = network.to_torch()
    return lambda x: 1 * module(x)


def attack(model: Any, digits: Any, **options: Any) -> tuple[Any, list[str]]:
    """Result on the simulated GPU, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = advcore.minimize_distortion(model, *digits, device="cuda", **options)
    assert all(issubclass(each.category, RuntimeWarning) for each in caught), caught
    return result, [str(each.message) for each in caught]


def states(record: Path) -> list[str]:
    return [entry["state"] for entry in json.loads(record.read_text()).values()]


def assert_same(result: Any, digits: Any) -> None:
    """The result is that of the CPU but for rounding."""
    expected = advcore.minimize_distortion(embedded_network(), *digits)
    assert np.array_equal(result.success, expected.success)
    gap = np.abs(result.distortion / expected.distortion - 1)
    assert (gap < 1e-3).mean() >= 0.8  # searches that round differently part at times
    assert result.distortion.mean() == pytest.approx(expected.distortion.mean(), rel=0.02)


def test_nothing_fails(record: Path, digits: Any) -> None:
    with simulated_gpu():
        result, warned = attack(embedded_network(), digits)
        assert not warned
        assert (result.engine["path"], result.engine["kernels"]) == ("native", "propagate")
        assert StandInQueue.latest.closed
        assert_same(result, digits)
        result, warned = attack(as_callable(embedded_network()), digits)
        assert not warned
        assert (result.engine["path"], result.engine["solver"]) == ("torch", "cuda:0")
        assert_same(result, digits)
    assert states(record) == ["ok"]


@pytest.mark.parametrize("what", ["load", "capture", "launch", "wrong"])
def test_a_native_run_that_fails_goes_on_through_torch(what: str, digits: Any) -> None:
    network = embedded_network()
    with simulated_gpu(f"native {what}"):
        result, warned = attack(network, digits)
        assert len(warned) == 1
        named = {"wrong": "wrong results", "launch": "719"}.get(what, what[:3])
        assert named in warned[0]
        assert "native network on cuda:0 failed" in warned[0]
        assert "ADVCORE_GPU" in warned[0]
        assert (result.engine["path"], result.engine["solver"]) == ("torch", "cuda:0")
        assert_same(result, digits)
        result, warned = attack(network, digits)  # it is not tried again
        assert not warned
        assert result.engine["path"] == "torch"


@pytest.mark.parametrize("failure", ["capability", "solver launch", "solver wrong"])
@pytest.mark.parametrize("kind", ["network", "callable"])
def test_a_gpu_that_cannot_run_the_solver(failure: str, kind: str, digits: Any) -> None:
    network = embedded_network()
    model = network if kind == "network" else as_callable(network)
    with simulated_gpu(failure):
        for first in (True, False):
            result, warned = attack(model, digits)
            assert len(warned) == first
            if first:
                cause = {"capability": "7.5", "solver launch": "719"}.get(failure, "wrong results")
                assert cause in warned[0]
                assert "ADVCORE_GPU" in warned[0]
            path = "native" if kind == "network" else "torch"
            assert result.engine["path"] == path
            assert str(result.engine["solver"]).startswith("cpu (")
            assert_same(result, digits)


def test_a_solver_that_fails_after_its_test(digits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_gpu(), monkeypatch.context() as patch:
        attack(embedded_network(), digits)
        patch.setattr(StandInSession, "fails_in", 2)
        result, warned = attack(as_callable(embedded_network()), digits)
        assert len(warned) == 1
        assert "solver on cuda:0 failed" in warned[0]
        assert str(result.engine["solver"]).startswith("cpu")
        assert_same(result, digits)


def test_what_was_delivered_before_a_failure_is_kept(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_gpu(), monkeypatch.context() as patch:
        attack(embedded_network(), digits)
        patch.setattr(StandInSession, "fails_in", 60)
        with pytest.raises(DeviceError, match="restart") as raised:
            attack(as_callable(embedded_network()), digits, batch_size=4)
    done = raised.value.result.status != advcore.Status.interrupted
    assert 0 < done.sum() < len(done)


def test_a_native_run_that_hangs(digits: Any) -> None:
    with simulated_gpu("native hang"):
        with pytest.raises(NoAnswer, match="restart the process") as raised:
            attack(embedded_network(), digits)
        assert StandInQueue.latest.abandoned
    assert (raised.value.result.status == advcore.Status.interrupted).all()
    assert not raised.value.result.success.any()


def test_a_solver_that_hangs_is_known_to_the_next_process(record: Path, digits: Any) -> None:
    model = as_callable(embedded_network())
    with simulated_gpu("solver hang"):
        with pytest.raises(NoAnswer, match="restart the process"):
            attack(model, digits)
        assert StandInSession.abandoned == 1
    assert states(record) == ["failed"]
    with simulated_gpu():  # another process
        result, warned = attack(model, digits)
        assert len(warned) == 1
        assert "has not answered" in warned[0]
        assert str(result.engine["solver"]).startswith("cpu")
        assert_same(result, digits)


def test_no_retreat_to_a_device_that_is_lost(
    record: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for failure in ("solver launch", "native launch"):  # in the solver's test, and after it
        with simulated_gpu(failure), monkeypatch.context() as patch:
            patch.setattr(gpu_record, "answers", lambda device: False)
            with pytest.raises(DeviceError, match="restart"):
                attack(embedded_network(), digits)
        assert states(record) == ["failed" if failure == "solver launch" else "ok"]
        record.unlink()


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_crash_in_the_test_is_known_to_the_next_process(
    record: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = as_callable(embedded_network())
    monkeypatch.setattr(gpu_record, "PROMPT_SECONDS", 0)

    def crash(device: Any) -> None:
        assert states(record) == ["running"]
        raise Killed

    with simulated_gpu(), monkeypatch.context() as patch:
        patch.setattr(gpu_test, "self_test", crash)
        with pytest.raises(Killed):
            attack(model, digits)
    content = json.loads(record.read_text())
    (entry,) = content.values()
    with simulated_gpu():  # this process lives, so that the test may still run
        result, warned = attack(model, digits)
        assert not warned
    (key,) = content
    for change in ({"process": 2**22 + 1}, {"time": time.time() - 100}, {"process": "?"}):
        record.write_text(json.dumps({key: entry | change}))
        with simulated_gpu():
            result, warned = attack(model, digits)
            assert len(warned) == 1
            assert "in the middle of its test" in warned[0]
            assert str(record) in warned[0]
            assert str(result.engine["solver"]).startswith("cpu")
        assert states(record) == ["running"]


@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"a": 1}'])
def test_a_record_that_cannot_be_read_is_none(record: Path, content: str | None) -> None:
    if content is not None:
        record.parent.mkdir()
        record.write_text(content)
    assert gpu_record.read() == {}


def test_a_test_without_memory_says_nothing_about_the_next(
    record: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with simulated_gpu(), monkeypatch.context() as patch:
        patch.setattr(gpu_test, "_on_device", full)
        _, warned = attack(as_callable(embedded_network()), digits)
        assert len(warned) == 1
        assert "no memory" in warned[0]
    assert json.loads(record.read_text()) == {}
    with simulated_gpu():
        result, warned = attack(as_callable(embedded_network()), digits)
    assert not warned
    assert result.engine["solver"] == "cuda:0"


@pytest.mark.parametrize(
    ("value", "path", "solver"),
    [("off", "native", "cpu (ADVCORE_GPU=off)"), ("torch", "torch", "cpu (ADVCORE_GPU=torch)")],
)
def test_the_variable_chooses(
    value: str, path: str, solver: str, digits: Any, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVCORE_GPU", value)
    with simulated_gpu():
        result, warned = attack(embedded_network(), digits)
    assert not warned
    assert (result.engine["path"], result.engine["solver"]) == (path, solver)
    assert_same(result, digits)
    assert not record.exists()


def test_force_is_without_test_and_retreat(
    digits: Any, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVCORE_GPU", "force")
    with simulated_gpu("native load"), pytest.raises(DeviceError, match="loading"):
        attack(embedded_network(), digits)
    assert not record.exists()
    monkeypatch.setenv("ADVCORE_GPU", "yes")
    with simulated_gpu(), pytest.raises(ValueError, match="ADVCORE_GPU must be one of auto"):
        attack(embedded_network(), digits)


@pytest.mark.parametrize("kind", ["network", "module", "callable"])
def test_a_build_without_cuda_falls_back_alike(
    kind: str, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = embedded_network()
    model = {"network": network, "module": network.to_torch()}.get(kind, as_callable(network))
    with simulated_gpu(), monkeypatch.context() as patch:
        patch.setattr(advcore._core, "cuda_status", lambda: (False, 0, "no CUDA in it"))
        result, warned = attack(model, digits)
        assert len(warned) == 1
        assert "no CUDA in it" in warned[0]
    assert result.engine["path"] == ("torch" if kind == "callable" else "native")
    assert result.engine["solver"] == "cpu (no CUDA in it)"
    assert_same(result, digits)


def test_the_module_verifies_what_the_cpu_found(
    digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    forward = TorchOracle.forward

    def seen(self: TorchOracle, x: Any, *rest: Any, **more: Any) -> Any:
        asked.append(x.copy())
        return forward(self, x, *rest, **more)

    monkeypatch.setattr(TorchOracle, "forward", seen)
    monkeypatch.setattr(TorchOracle, "backward", None)  # nobody asks it for gradients
    with simulated_gpu("capability"):
        result, _ = attack(embedded_network().to_torch(), digits)
    assert result.engine["path"] == "native"
    images = result.adversarial
    assert any(x.shape == images.shape and np.array_equal(x, images) for x in asked)


def test_two_presses_end_a_run_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_native, "HANG_SECONDS", 1e9)
    presses = 0

    def press(counts: Any) -> bool:
        nonlocal presses
        presses += 1
        raise KeyboardInterrupt

    job = gpu_test.cases()[0].job
    with simulated_gpu("native hang"):
        queue: Any = StandInQueue(job.core, 4, 32, 0, 0, 0)
        error = cuda_native._run_to_end(queue, press)  # type: ignore[arg-type]
    assert isinstance(error, NoAnswer)
    assert "twice" in str(error)
    assert presses == 2
    assert queue.abandoned


def test_the_self_test_finds_what_differs() -> None:
    with simulated_gpu():
        assert gpu_test.self_test(DEVICE) is None
    with simulated_gpu("solver wrong"):
        why = gpu_test.self_test(DEVICE)
    assert why is not None
    assert "1.100 times" in why


def test_facts_name_everything_a_report_needs() -> None:
    with simulated_gpu():
        facts = gpu_record.facts(DEVICE)
    assert facts["GPU"] == "simulated"
    assert facts["driver"] == "CUDA 13.0"
    assert facts["compute capability"] == "9.0"
    assert torch.__version__ in facts["torch"]
    assert str(Path(advcore._core.__file__).stat().st_size) in facts["advcore"]
    assert gpu.setting() == "auto"
