"""A GPU that is simulated on the CPU, and its failures.

The engine's part behind the interface of addresses is `_core.Session`; what torch would evaluate
on the device it evaluates on the CPU. So every line of Python of a call runs, but no kernel.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch

from advcore import _core
from advcore.network import Layer, Network
from advcore.oracles import TorchOracle, memory, torch_oracle
from advcore.solve import choose, cuda_native, cuda_rounds, gpu, gpu_record

DEVICE = torch.device("cuda", 0)
LAUNCH_FAILURE = "CUDA: advance: unspecified launch failure (719)"


def rows_at(address: int, rows: int, columns: int) -> Any:
    """Floats (rows, columns) at an address."""
    kind = ctypes.c_float * (rows * columns)
    return np.ctypeslib.as_array(kind.from_address(address)).reshape(rows, columns)


class StandInSession:
    """`_core.CudaSession` by the CPU's session; `fails_in` is the round whose advance fails."""

    fails_in: ClassVar[int] = -1
    distortion_factor: ClassVar[float] = 1.0
    abandoned: ClassVar[int] = 0

    def __init__(self, job: _core.Job, slots: int, device: int, arena: int, stream: int) -> None:
        self.session = _core.Session(job, slots)
        self.n, self.classes = job.params.n, job.params.classes
        self.slots: Any = None
        self.rounds = 0

    def waits_next(self) -> bool:
        return self.rounds % 4 == 0

    def refill(self) -> Any:
        self.x, self.k, slots, measure, self.paired = self.session.refill()
        if self.slots is not None and np.array_equal(slots, self.slots) and not measure.any():
            return None
        self.slots = slots
        return slots, measure

    @property
    def smoothed(self) -> bool:
        return bool(self.k.any())

    def gather(self, x: int, k: int) -> None:
        rows_at(x, len(self.x), self.n)[:] = self.x
        rows_at(k, len(self.x), 1)[:, 0] = self.k

    def margin_loss(self, logits: int, dlogits: int) -> None:
        out = rows_at(dlogits, len(self.x), self.classes)
        out[:] = 0
        out[: self.paired] = self.session.margin_loss(
            rows_at(logits, len(self.x), self.classes).copy()
        )

    def advance(self, gradients: int) -> None:
        self.rounds += 1
        if self.rounds == self.fails_in:
            raise RuntimeError(LAUNCH_FAILURE)
        self.session.advance(rows_at(gradients, len(self.x), self.n)[: self.paired].copy())

    def interrupt(self) -> None:
        if self.rounds != self.fails_in:
            self.session.interrupt()

    def abandon(self) -> None:
        type(self).abandoned += 1

    @property
    def results(self) -> Any:
        results = dict(self.session.results)
        results["distortion"] = results["distortion"] * np.float32(self.distortion_factor)
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class StandInQueue:
    """`_core.CudaQueue` by the CPU's session and network: ten rounds in each wait."""

    network: ClassVar[Network]
    latest: ClassVar[StandInQueue]
    fails_in: ClassVar[int] = -1  # the round that fails
    fails_at: ClassVar[str] = ""  # "load", "capture" or "hang"

    def __init__(
        self, job: _core.Job, slots: int, capacity: int, device: int, arena: int, stream: int
    ) -> None:
        self.session = _core.Session(job, slots)
        self.slots, self.capacity = slots, capacity
        self.added: list[tuple[Any, ...]] = []
        self.rounds = 0
        self.scales: Any = None
        count = len(self.session.results["status"])
        self.seconds, self.fillings = 0.5, -(-count // capacity)
        self.stopped = self.closed = self.abandoned = False
        StandInQueue.latest = self

    def slot_rows(self) -> dict[str, int]:
        return {**self.session.slot_rows(), "rows": 1, "count": 2}

    def add(self, *launch: Any) -> None:
        if self.fails_at == "load":
            raise RuntimeError("CUDA: loading propagate: no kernel image is available (209)")
        self.added.append(launch)

    def wait(self, seconds: float) -> bool:
        if self.fails_at == "capture":
            raise RuntimeError("CUDA: capturing rounds: operation not permitted (800)")
        if self.fails_at == "hang":
            return False
        if self.stopped:
            self.session.interrupt()
            return True
        for _ in range(10):
            x, k, slots, recorded, paired = self.session.refill()
            if not len(x):
                return True
            self.rounds += 1
            if self.rounds == self.fails_in:
                raise RuntimeError("CUDA: a round: unspecified launch failure (719)")
            seeds = np.zeros((len(x), self.network.classes), np.float32)
            logits = self.evaluate(x, k, slots, recorded)
            seeds[:paired] = self.session.margin_loss(logits)
            self.session.advance(self.network.core.backward(seeds)[:paired])
        return False

    def evaluate(self, x: Any, k: Any, slots: Any, recorded: Any) -> Any:
        """Logits of a round, whose smoothing scales are kept by slot."""
        core = self.network.core
        if self.scales is None:
            self.scales = np.zeros((self.slots, core.scales), np.float32)
        if recorded.any():
            fresh = np.zeros((int(recorded.sum()), core.scales), np.float32)
            core.forward(np.ascontiguousarray(x[recorded]), None, fresh, True)
            self.scales[slots[recorded]] = fresh
        return core.forward(x, k, self.scales[slots])

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.abandoned = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


class StandInEvent:
    """An event of a device that is never behind."""

    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: StandInEvent) -> float:
        return 1e3 * (end.at - self.at)


@dataclass
class StandInPlan:
    """A plan of one kernel; `given` is what its launch was asked with."""

    name: str = "propagate"
    given: Any = None

    def buffers(self, slots: int) -> dict[str, int]:
        return {"scales": 3 * slots}

    def launches(self, addresses: dict[str, int], **given: Any) -> list[StandInPlan]:
        self.given = addresses | given
        return [self]

    cubin, grid, threads, shared, arguments = b"code", (1, 1, 1), 128, 0, (b"12345678",)


def of_other_weights(network: Network) -> Network:
    """A network whose logits are those of another class each."""
    last = network.layers[-1]
    turned = Layer(np.roll(last.weight, 1, axis=0), np.roll(last.bias, 1), last.activation)
    return Network([*network.layers[:-1], turned])


FAILURES = (
    "", "capability",
    "native load", "native capture", "native launch", "native hang", "native wrong",
    "solver launch", "solver hang", "solver wrong",
)  # fmt: skip
"""What may go wrong: nothing, or where and what."""


@contextmanager
def simulated_gpu(failure: str = "") -> Iterator[None]:
    """Have torch and the engine see a GPU, with one of `FAILURES`, inside the block.

    Models are passed as they are on the CPU, with ``device="cuda"``.
    """
    where, _, what = failure.partition(" ")
    assert failure in FAILURES
    of_queue = what if where == "native" else ""
    of_session = what if where == "solver" else ""
    make, its_device = TorchOracle.__init__, TorchOracle.device.fget  # type: ignore[attr-defined]

    def on_simulated(
        self: Any, model: Any, shape: Any, device: Any = None, *rest: Any, **more: Any
    ):  # type: ignore[no-untyped-def]
        self.simulated = device is not None and str(device).startswith("cuda")
        make(self, model, shape, None if self.simulated else device, *rest, **more)

    def plan(network: Network, *_: Any) -> Any:
        StandInQueue.network = of_other_weights(network) if of_queue == "wrong" else network
        return StandInPlan(), torch.zeros(1)

    missing = "the simulated GPU has compute capability 7.5, for which this build has no code"
    cpu = torch.device("cpu")
    with ExitStack() as stack:

        def put(target: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        put(_core, "CudaSession", StandInSession)
        put(_core, "CudaQueue", StandInQueue)
        put(_core, "cuda_status", lambda: (True, 1, ""))
        put(_core, "cuda_probe", lambda device: (13000, missing if where == "capability" else ""))
        put(StandInSession, "fails_in", 2 if of_session == "launch" else -1)
        put(StandInSession, "distortion_factor", 1.1 if of_session == "wrong" else 1.0)
        put(StandInSession, "abandoned", 0)
        put(StandInQueue, "fails_in", 2 if of_queue == "launch" else -1)
        put(StandInQueue, "fails_at", of_queue if of_queue in ("load", "capture", "hang") else "")
        put(torch_oracle.TorchOracle, "__init__", on_simulated)
        put(
            torch_oracle.TorchOracle, "device",
            property(lambda self: DEVICE if self.simulated else its_device(self)),
        )  # fmt: skip
        put(choose, "_check_device", lambda device: None)
        put(memory, "free_bytes", lambda device: 1 << 40)
        for module in (cuda_rounds, cuda_native):
            put(module, "indexed", lambda device: cpu)
            put(module, "stream", lambda device: 0)
        put(cuda_rounds, "busy", lambda device: of_session == "hang")
        put(cuda_native, "_plan", plan)
        put(
            cuda_native, "unavailable",
            lambda network, device: "no kernels for it" if network.convolutional else None,
        )  # fmt: skip
        put(torch.cuda, "device", lambda device: nullcontext())
        put(torch.cuda, "current_device", lambda: 0)
        put(torch.cuda, "device_count", lambda: 1)
        put(torch.cuda, "Event", StandInEvent)
        put(torch.cuda, "synchronize", lambda: None)
        put(torch.cuda, "get_device_capability", lambda device: (9, 0))
        put(torch.cuda, "get_device_name", lambda device: "simulated")
        put(gpu_record, "answers", lambda device: True)
        put(gpu_record, "_outcomes", {})
        put(gpu, "_broken", {})
        put(gpu, "_warned", set())
        yield
