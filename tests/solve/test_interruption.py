"""Time limit, callback, Ctrl-C, and threads."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.backends import Backend
from support.same_results import same

import advcore
from advcore import Network, Status


class AsNumpy:
    """A network as a NumPy model."""

    def __init__(self, network: Network) -> None:
        self.forward, self.backward = network.forward, network.backward


def long_run(random_network: Any, random_images: Any, rows: int = 100_000) -> tuple[Any, Any]:
    """Work for many seconds on one thread."""
    x = np.tile(random_images(1000), (rows // 1000, 1))
    return random_network(sizes=(20, 64, 5), activation="relu"), x


def check_partial(backend: Backend, network: Any, x: Any, result: Any) -> None:
    """Finished images are as in a whole run; the others are marked and hold their best or x."""
    left = np.array(result.status) == int(Status.interrupted)
    assert left.any()
    assert not left.all()
    finished = np.flatnonzero(~left)[:200]
    whole = backend.attack(network, x[finished], threads=1, effort="thorough")
    same(result, whole, rows_a=finished)
    failed = ~result.success
    np.testing.assert_array_equal(result.adversarial[failed], x[failed])
    rows = np.flatnonzero(result.success & left)
    if len(rows):
        label = network.forward(x[rows]).argmax(1)
        assert (network.forward(result.adversarial[rows]).argmax(1) != label).all()


@pytest.mark.backends("fast", "exact")
def test_time_limit(backend: Backend, random_network: Any, random_images: Any) -> None:
    network, x = long_run(random_network, random_images, backend.long)
    result = backend.attack(network, x, time_limit=0.3, threads=1, effort="thorough")
    check_partial(backend, network, x, result)


@pytest.mark.backends("exact")
def test_callback_sees_progress_and_stops_the_run(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = long_run(random_network, random_images, backend.long)
    states: list[advcore.Progress] = []

    def callback(state: advcore.Progress) -> bool:
        states.append(state)
        return len(states) >= 4 and state.finished > 0

    result = backend.attack(network, x, callback=callback, threads=1, effort="thorough")
    check_partial(backend, network, x, result)
    done = [state.finished for state in states]
    assert done == sorted(done)
    assert 0 < done[-1] < len(x)
    assert states[-1].total == len(x)
    assert 0 < states[-1].succeeded <= len(x)
    assert states[-1].evaluations > states[-1].finished
    assert 0 < states[0].seconds < states[-1].seconds


def test_callback_that_returns_none_runs_to_the_end(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    states: list[advcore.Progress] = []
    result = backend.attack(random_network(), random_images(20), callback=states.append)
    assert result.success.all()
    assert states[-1].finished == states[-1].total == states[-1].succeeded == 20
    assert states[-1].evaluations == result.evaluations.sum()


@pytest.mark.parametrize("raised", [MemoryError, ZeroDivisionError])
def test_what_the_callback_raises_comes_back(
    raised: type[Exception], random_network: Any, random_images: Any
) -> None:
    """MemoryError too, which from a model means fewer images at a time."""
    model = AsNumpy(random_network())

    def stop(state: advcore.Progress) -> None:
        raise raised("mine")

    with pytest.raises(raised, match="mine"):
        advcore.minimize_distortion(model, random_images(20), callback=stop, batch_size=6)


@pytest.mark.parametrize("own_bounds", [True, False])
def test_a_search_cut_short_is_tried_on_the_exact_network(
    random_network: Any, random_images: Any, own_bounds: bool
) -> None:
    """Smoothed networks come first: after a few rounds no image has a result of its own."""
    pytest.importorskip("torch")
    network, x = random_network(sizes=(20, 64, 5), activation="relu"), random_images(60)
    module = network.to_torch()
    seen = [0]

    def model(v: Any) -> Any:
        seen[0] += 1
        if seen[0] > 12:  # a report follows each round that takes longer than 50 ms
            time.sleep(0.06)
        return module(v)

    label = network.forward(x).argmax(axis=1)
    bounds = (np.maximum(x - 0.4, 0), np.minimum(x + 0.4, 1)) if own_bounds else (0.0, 1.0)
    stopped = advcore.minimize_distortion(
        model,
        x,
        labels=label,
        bounds=bounds,
        callback=lambda state: seen[0] > 27,  # trials among them
    )
    left = stopped.status == Status.interrupted
    assert left.any()
    saved = left & stopped.success
    assert saved.sum() >= left.sum() // 2
    assert (network.forward(stopped.adversarial[saved]).argmax(1) != label[saved]).all()
    assert (stopped.margin[saved] >= 1e-4).all()
    assert (stopped.adversarial >= bounds[0]).all()
    assert (stopped.adversarial <= bounds[1]).all()
    r = np.linalg.norm(stopped.adversarial - x, axis=1)
    np.testing.assert_allclose(stopped.distortion[saved], r[saved], rtol=1e-5)
    np.testing.assert_array_equal(stopped.adversarial[~stopped.success], x[~stopped.success])


class Stumble:
    """A callback that raises once and is not called again."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: advcore.Progress) -> None:
        self.calls += 1
        raise ZeroDivisionError("in the callback")


class Late:
    """A NumPy model of one image a round, which takes longer than a report's interval."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def forward(self, x: Any) -> Any:
        time.sleep(0.06)
        return self.network.forward(x)

    def backward(self, dlogits: Any) -> Any:
        return self.network.backward(dlogits)


def test_a_callback_that_has_stopped_the_run_is_not_called_again(
    random_network: Any, random_images: Any
) -> None:
    calls: list[advcore.Progress] = []
    result = advcore.minimize_distortion(
        Late(random_network()),
        random_images(3),
        batch_size=1,
        callback=lambda state: calls.append(state) or len(calls) == 2,  # type: ignore[func-returns-value]
    )
    assert (result.status == Status.interrupted).any()
    assert len(calls) == 2


def test_ctrl_c_in_the_last_report_keeps_the_result(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(20)

    def last(state: advcore.Progress) -> None:
        if state.finished == state.total:
            raise KeyboardInterrupt

    with pytest.raises(advcore.Interrupted) as caught:
        backend.attack(network, x, callback=last)
    same(caught.value.result, backend.attack(network, x))


def test_callback_that_raises(backend: Backend, random_network: Any, random_images: Any) -> None:
    network, x = long_run(random_network, random_images, backend.long)
    stumble = Stumble()
    with pytest.raises(ZeroDivisionError, match="in the callback") as caught:
        backend.attack(network, x, callback=stumble, threads=2)
    assert stumble.calls == 1
    result = caught.value.result  # type: ignore[attr-defined]
    assert len(result) == len(x)
    assert (result.status == Status.interrupted).any()
    found = np.flatnonzero(result.success)
    label = network.forward(x[found]).argmax(1)
    assert (network.forward(result.adversarial[found]).argmax(1) != label).all()


class Closed(Exception):
    """An error with a result of its own, or one that takes no attributes."""

    def __init__(self, mine: Any = None) -> None:
        if mine is not None:
            self.__dict__["result"] = mine

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "result":
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("mine", [None, "mine"])
def test_an_error_of_the_callback_that_takes_no_result(
    mine: str | None, random_network: Any, random_images: Any
) -> None:
    error = Closed(mine)

    def callback(state: advcore.Progress) -> None:
        raise error

    with pytest.raises(Closed) as caught:
        advcore.minimize_distortion(random_network(), random_images(5), callback=callback)
    assert caught.value is error
    assert getattr(error, "result", None) is mine


def test_an_error_in_the_last_report_has_the_whole_result(
    random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(20)

    def last(state: advcore.Progress) -> None:
        if state.finished == state.total:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        advcore.minimize_distortion(network, x, callback=last)
    same(caught.value.result, advcore.minimize_distortion(network, x))  # type: ignore[attr-defined]


def test_callback_that_raises_with_a_numpy_model(random_network: Any, random_images: Any) -> None:
    """It is the callback's error, not the model's."""
    model, stumble = AsNumpy(random_network(activation="tanh")), Stumble()
    with pytest.raises(ZeroDivisionError, match="in the callback"):
        advcore.minimize_distortion(model, random_images(20), callback=stumble)
    assert stumble.calls == 1


def test_no_thread_outlives_a_run(random_network: Any, random_images: Any) -> None:
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("no /proc")
    network, x = long_run(random_network, random_images, 20_000)
    advcore.minimize_distortion(network, x[:10])
    before = len(list(tasks.iterdir()))
    during = 0

    def callback(state: advcore.Progress) -> bool:
        nonlocal during
        during = max(during, len(list(tasks.iterdir())))
        return state.seconds > 0.15

    advcore.minimize_distortion(network, x, threads=4, callback=callback, effort="thorough")
    assert during == before + 4
    assert len(list(tasks.iterdir())) == before
    with pytest.raises(ZeroDivisionError):
        advcore.minimize_distortion(network, x, threads=4, callback=Stumble())
    assert len(list(tasks.iterdir())) == before


def test_python_runs_beside_the_engine(random_network: Any, random_images: Any) -> None:
    """The GIL is released: another thread ticks all the while."""
    network, x = long_run(random_network, random_images)
    ticks, stop = 0, threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.wait(0.002):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        advcore.minimize_distortion(network, x, time_limit=0.5, threads=1, effort="thorough")
    finally:
        stop.set()
        thread.join()
    assert ticks > 50  # 20 would be one for each of the engine's own polls


@pytest.mark.parametrize("levels", [None, 256])
def test_runs_at_once_on_one_network(
    random_network: Any, random_images: Any, levels: int | None
) -> None:
    network, x = random_network(activation="relu"), random_images(400)
    options: Any = {"labels": np.arange(400) % 5, "threads": 1, "levels": levels}
    alone = advcore.minimize_distortion(network, x, **options)
    found: list[Any] = []

    def work() -> None:
        found.append(advcore.minimize_distortion(network, x, **options))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for result in found:
        same(result, alone)


INTERRUPT_PROGRAM = """
import os, signal, sys, threading, time
import numpy as np, advcore
from advcore import Network, Status

signal.signal(signal.SIGINT, signal.default_int_handler)
network = Network.load(sys.argv[1])
x = np.tile(np.random.default_rng(1).random((1000, 20), dtype=np.float32), (400, 1))
if sys.argv[2] == "numpy":
    class Slow:
        def forward(self, x):
            time.sleep(0.02)
            return network.forward(x)
        def backward(self, dlogits):
            return network.backward(dlogits)
    model = Slow()
else:
    model = network
def send():
    os.kill(os.getpid(), signal.SIGINT)
tasks = len(os.listdir("/proc/self/task"))
timer = threading.Timer(1.0, send)
timer.start()
try:
    advcore.minimize_distortion(
        model, x, labels=np.arange(len(x)) % 5, threads=2, effort="thorough"
    )
except advcore.Interrupted as error:
    interrupted, result = error, error.result
else:
    sys.exit("ran to the end")
timer.join()
assert isinstance(interrupted, KeyboardInterrupt)
assert len(os.listdir("/proc/self/task")) == tasks
left = result.status == int(Status.interrupted)
assert left.any() and not left.all(), (left.sum(), len(left))
rows = np.flatnonzero(~left & (result.distortion > 0))[:50]
assert result.success[rows].all()
assert (network.forward(result.adversarial[rows]).argmax(1) != rows % 5).all()
if model is network:
    whole = advcore.minimize_distortion(network, x[rows], labels=rows % 5, effort="thorough")
    assert np.array_equal(whole.adversarial, result.adversarial[rows])
"""


@pytest.mark.parametrize("path", ["native", "numpy"])
def test_ctrl_c_stops_the_run_and_keeps_what_is_done(
    path: str, tmp_path: Path, random_network: Any
) -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("no /proc")
    random_network(sizes=(20, 64, 5), activation="relu").save(tmp_path / "n.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT_PROGRAM, str(tmp_path / "n.safetensors"), path],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_trouble_in_the_final_verification_keeps_the_result(
    raised: type[BaseException], random_network: Any, random_images: Any
) -> None:
    network = random_network(activation="sigmoid")

    class Failing:
        fail = False

        def forward(self, x: Any) -> Any:
            if self.fail:
                raise raised("at the end")
            return network.forward(x)

        def backward(self, dlogits: Any) -> Any:
            return network.backward(dlogits)

    model, x = Failing(), random_images(12)

    def after_the_run(state: advcore.Progress) -> None:
        model.fail = state.finished == state.total

    expected = advcore.Interrupted if raised is KeyboardInterrupt else advcore.ModelError
    targets = (network.forward(x).argmax(axis=1) + 1) % network.classes
    with pytest.raises(expected) as caught:
        advcore.minimize_distortion(model, x, targets, callback=after_the_run)
    result = caught.value.result
    assert result.success.all()  # by the logits that the model gave in the search
    assert (result.status != advcore.Status.interrupted).all()
    found = network.forward(result.adversarial).argmax(axis=1)
    np.testing.assert_array_equal(found, targets)


def test_numpy_true_of_a_callback_stops_the_run(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = long_run(random_network, random_images, backend.long)
    result = backend.attack(
        network, x, callback=lambda state: np.bool_(state.finished > 0), threads=1
    )
    assert (result.status == Status.interrupted).any()


def test_errors_survive_a_process_boundary(random_network: Any, random_images: Any) -> None:
    result = advcore.minimize_distortion(random_network(), random_images(3))
    for error in (
        advcore.ModelError("the model raised", result),
        advcore.Interrupted(result),
        advcore.DeviceError("no memory", result),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert type(again) is type(error)
        same(again.result, result)
