"""Rows of a round by what a forward keeps, and models that run out of memory on the way."""

from __future__ import annotations

import gc
import os
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import _core
from advcore.options import Options
from advcore.oracles import TorchOracle, memory
from advcore.solve import rounds as run
from advcore.solve.backends import EngineInfo, OracleVerifier
from advcore.solve.choose import choose_backend
from advcore.solve.job import Job

torch = pytest.importorskip("torch")

PAGE = os.sysconf("SC_PAGE_SIZE")


class Hungry(torch.nn.Module):
    """Has no memory for more than `most` rows with a graph; `raised` counts."""

    def __init__(self, most: int, error: type[Exception], text: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(20, 16), torch.nn.Tanh())
        self.last = torch.nn.Linear(16, 5)
        with torch.no_grad():
            self.layers[0].weight.mul_(4)
            self.last.weight.mul_(4)
        self.most, self.error, self.text, self.raised = most, error, text, 0
        self.most_forward = 10**6
        self.eval()

    def forward(self, x: Any) -> Any:
        """Row by row, so that the batch does not change a bit."""
        if len(x) > (self.most if x.requires_grad else self.most_forward):
            self.raised += 1
            raise self.error(self.text)
        return torch.cat([self.last(self.layers(row[None])) for row in x])


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).random((40, 20), dtype=np.float32)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.cuda.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
        (MemoryError, ""),
    ],
)
def test_half_as_many_at_a_time(images: Any, error: Any, text: str) -> None:
    whole = advcore.minimize_distortion(Hungry(1000, error, text), images)
    model, seen = Hungry(7, error, text), []
    found = advcore.minimize_distortion(model, images, batch_size=40, callback=seen.append)
    assert model.raised == 3  # 40, 20, 10 rows
    assert np.array_equal(found.adversarial, whole.adversarial)
    assert np.array_equal(found.status, whole.status)
    assert seen[-1].finished == 40
    assert seen[-1].evaluations == found.evaluations.sum()


def test_one_row_too_many_is_an_error_with_what_there_is(images: Any) -> None:
    model = Hungry(7, MemoryError, "none left")
    model.most = 1000

    def starve(progress: Any) -> None:
        model.most = 0 if progress.finished >= 3 else 1000

    with pytest.raises(advcore.ModelError, match="none left") as raised:
        advcore.minimize_distortion(model, images, batch_size=3, callback=starve)
    kept = raised.value.result
    assert 3 <= (kept.status != advcore.Status.interrupted).sum() < 40


def test_forwards_alone_go_by_halves(images: Any) -> None:
    whole = advcore.minimize_distortion(Hungry(1000, MemoryError, ""), images)
    model = Hungry(1000, MemoryError, "")
    verifier = choose_backend(model, images[:4], (20,), Options()).verifier
    model.most_forward = 3
    assert np.array_equal(
        verifier.forward(images), Hungry(1000, MemoryError, "")(torch.tensor(images)).detach()
    )
    found = advcore.minimize_distortion(Hungry(8, MemoryError, ""), images, batch_size=8)
    assert np.array_equal(found.adversarial, whole.adversarial)


def test_other_errors_are_not_tried_again(images: Any) -> None:
    model = Hungry(7, RuntimeError, "shapes do not match")
    with pytest.raises(advcore.ModelError, match="shapes"):
        advcore.minimize_distortion(model, images, batch_size=40)
    assert model.raised == 1


def test_own_bounds_and_starts_go_with_their_images(images: Any) -> None:
    options: dict[str, Any] = {
        "bounds": (np.maximum(images - 0.5, 0), np.minimum(images + 0.5, 1)),
        "starts": np.clip(images[:, None] + 0.3, 0, 1),
    }
    options["starts"] = np.clip(options["starts"], *(b[:, None] for b in options["bounds"]))
    whole = advcore.minimize_distortion(Hungry(1000, MemoryError, ""), images, **options)
    found = advcore.minimize_distortion(Hungry(7, MemoryError, ""), images, **options)
    assert np.array_equal(found.adversarial, whole.adversarial)


def job(n: int) -> Job:
    """A job of one image of n values."""
    params = _core.Params()
    params.n, params.classes = n, 3
    row = np.zeros(n, np.float32)
    return Job(params, row[None], np.zeros(1, np.int32), row, row + 1, None)


def slots(oracle: TorchOracle, n: int) -> int:
    """Rows of a round for images of n values."""
    info = EngineInfo("torch", "cpu", "base", "a test")
    return run.OracleBackend(oracle, info).slots(job(n))


def test_rows_by_what_a_forward_keeps() -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(4, 1 << 20), torch.nn.Tanh()).eval()
    model = torch.nn.Sequential(wide, torch.nn.Linear(1 << 20, 3)).eval()
    oracle = TorchOracle(model, (4,))
    assert oracle.saved_bytes == pytest.approx(4 << 20, rel=0.01)  # tanh keeps its output
    assert slots(oracle, 4) == 31
    small = TorchOracle(torch.nn.Linear(4, 3).eval(), (4,))
    assert small.saved_bytes < 1000  # its weight is not counted
    assert slots(small, 4) == run.ORACLE_SLOTS


class OnGpu(TorchOracle):
    """An oracle that says that its model is on a GPU."""

    device = torch.device("cuda", 0)


def test_rows_of_a_model_on_a_gpu_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.nn.Sequential(torch.nn.Linear(4, 1 << 20), torch.nn.Tanh()).eval()
    model = torch.nn.Sequential(wide, torch.nn.Linear(1 << 20, 3)).eval()
    oracle = OnGpu(model, (4,), survey=False)  # 4 MiB an image
    info = EngineInfo("torch", "cuda", "base", "a test")
    for free, rows in ((16 << 30, 1024), (4 << 30, 511), (1 << 20, 1)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        backend = run.OracleBackend(oracle, info)  # its solver is on the CPU
        assert backend.slots(job(4)) == rows
        assert backend.verifier.rows == rows


@pytest.mark.parametrize("kind", [TorchOracle, OnGpu])
def test_what_goes_to_a_gpu_is_not_copied_before(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 30)
    oracle = kind(torch.nn.Linear(4, 3).eval(), (4,))
    images = np.random.default_rng(0).random((5, 4), dtype=np.float32)
    seen: list[Any] = []
    forward = oracle.forward
    monkeypatch.setattr(oracle, "forward", lambda x, grad: seen.append(x) or forward(x, grad=grad))
    logits = OracleVerifier(oracle).forward(images)
    assert np.array_equal(logits, forward(images, grad=False))
    assert np.shares_memory(seen[0], images) == (kind is OnGpu)


def test_rows_on_a_gpu_count_what_a_smoothed_forward_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = torch.nn.Linear(4, 1 << 18), torch.nn.ReLU(), torch.nn.Linear(1 << 18, 3)
    oracle = OnGpu(torch.nn.Sequential(*layers).eval(), (4,))
    assert oracle.smoothed_bytes > oracle.saved_bytes > 0
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1 << 30)
    assert memory.rows(oracle, 10**6) == (1 << 29) // oracle.smoothed_bytes
    plain = TorchOracle(torch.nn.Sequential(*layers).eval(), (4,))
    assert memory.rows(plain, 10**6) == memory.BACKWARD_BYTES // plain.saved_bytes


def test_the_solver_of_a_model_on_a_gpu_gets_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.nn.Linear(4, 3).eval()
    pages = {"SC_AVPHYS_PAGES": 40 << 20, "SC_PAGE_SIZE": 4096}  # 160 GiB
    monkeypatch.setattr(memory.os, "sysconf", lambda name: pages[name])
    assert memory.solver_bytes(TorchOracle(small, (4,)), 1 << 30) == 1 << 30
    assert memory.solver_bytes(OnGpu(small, (4,)), 1 << 30) == 40 << 30
    pages["SC_AVPHYS_PAGES"] = 1
    assert memory.solver_bytes(OnGpu(small, (4,)), 1 << 30) == 1 << 30


def test_a_retry_holds_nothing_of_what_failed(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Activation(torch.autograd.Function):
        """Keeps its input as a model keeps activations, and notes it."""

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            kept = x.clone()
            ctx.save_for_backward(kept)
            noted.append(weakref.ref(kept))
            return x.clone()

        @staticmethod
        def backward(ctx: Any, seed: Any) -> Any:  # type: ignore[override]
            return seed

    class Greedy(Hungry):
        def forward(self, x: Any) -> Any:
            held = Activation.apply(x)
            block = torch.empty(1 << 16)
            noted.append(weakref.ref(block))
            try:
                return super().forward(held)
            except MemoryError as error:
                cycle: list[Any] = [block, held, error]
                cycle.append(cycle)  # as a traceback and its frame hold each other
                raise

    class Session:
        def __init__(self, *given: Any) -> None:
            alive = [each for each in (*noted, *sessions) if each() is not None]
            at_start.append(len(alive))
            self._session = session(*given)
            sessions.append(weakref.ref(self))
            noted.clear()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    noted: list[Any] = []
    sessions: list[Any] = []
    at_start: list[int] = []
    session = _core.Session
    monkeypatch.setattr(_core, "Session", Session)
    gc.disable()
    try:
        model = Greedy(7, MemoryError, "")
        found = advcore.minimize_distortion(model, images, batch_size=40)
    finally:
        gc.enable()
    assert found.success.any()
    assert model.raised == 3  # 40, 20, 10 rows
    assert at_start == [0, 0, 0, 0]


@pytest.mark.parametrize(("batch_size", "rows"), [(None, 1024), (7, 7), (5000, 1024)])
def test_rows_of_a_forward_alone(batch_size: int | None, rows: int) -> None:
    oracle = TorchOracle(torch.nn.Linear(4, 3).eval(), (4,))
    info = EngineInfo("torch", "cpu", "base", "a test")
    assert run.OracleBackend(oracle, info, batch_size).verifier.rows == rows


def test_large_images_are_fewer_at_a_time() -> None:
    n = 3 * 224 * 224
    large = TorchOracle(torch.nn.Linear(n, 3).eval(), (n,))
    # 23 vectors an image: 13.8 MB
    assert _core.slot_bytes(job(n).params, False) == pytest.approx(23 * 4 * n, rel=1e-3)
    assert slots(large, n) == 77  # 1 GiB


class Watched(torch.nn.Module):
    """A small convolutional network that notes every pass: its kind and its rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(36, 5),
        )  # fmt: skip
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.mul_(3)
        self.passes: list[tuple[str, int]] = []
        self.eval()

    def forward(self, x: Any) -> Any:
        """Logits (B, 5) of images (B, 1, 8, 8)."""
        logits = self.layers(x)
        self.passes.append(("pair" if logits.requires_grad else "alone", len(x)))
        if logits.requires_grad:
            logits.register_hook(lambda seed: self.passes.append(("backward", len(seed))))
        return logits


def test_a_finished_image_costs_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((50, 1, 8, 8), dtype=np.float32)
    model, rounds = Watched(), run._run_slots
    passes: list[tuple[str, int]] = []  # of the search, without trials and verification

    def noted(*given: Any) -> Any:
        model.passes.clear()
        out = rounds(*given)
        passes.extend(model.passes)
        return out

    monkeypatch.setattr(run, "_run_slots", noted)
    found = advcore.minimize_distortion(lambda x: 1 * model(x), images, batch_size=16)
    rows = {kind: sum(n for name, n in passes if name == kind) for kind, _ in passes}
    assert rows["pair"] == rows["backward"] == found.evaluations.sum()
    assert rows["alone"] == found.forwards.sum()
    assert max(n for _, n in passes) <= 16
    for (kind, count), after in pairwise(passes):
        if kind == "pair":  # each backward follows its own forward
            assert after == ("backward", count)


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_run() -> None:
    status = Path("/proc/self/statm")
    if not status.is_file():
        pytest.skip("needs /proc")
    images = np.random.default_rng(0).random((3000, 1, 8, 8), dtype=np.float32)
    model = Watched()
    held: list[tuple[int, int]] = []

    def note(progress: Any) -> None:
        model.passes.clear()
        held.append((progress.finished, int(status.read_text().split()[1]) * PAGE))

    advcore.minimize_distortion(
        lambda x: 1 * model(x), images, callback=note, effort="fast", batch_size=256
    )
    early = max(size for finished, size in held if finished < 1000)
    late = max(size for finished, size in held if finished >= 1000)
    assert len(held) > 5
    assert late - early < 10 * 2**20
