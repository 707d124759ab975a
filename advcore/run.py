"""The two ways of a run: native, without Python in the loop, or in rounds with an oracle."""

from __future__ import annotations

import contextlib
import operator
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core, memory
from .errors import DeviceError
from .network import Network
from .oracles import Oracle, TorchOracle

if TYPE_CHECKING:
    from .cuda import CudaSession, DeviceOracle

Floats = NDArray[np.float32]
NATIVE_SLOTS = 24
"""Rows of a tile: a multiple of the 8 and 6 rows of the kernels. 8 to 64 measured within 7%."""
TILE_BYTES = 512 << 20
"""Of a tile: vectors of the solver and activations. 2 rows of a small convolutional network run as
fast as 24; those of wide layers share the reading of the weights."""
ORACLE_SLOTS = 1024
"""Rows of a round through a model, where its activations leave room (`memory.SAVED`). 1,024 images
of two small networks take 11 and 19% less time than in rounds of 256 (benchmarks/bench_limits.py).
"""
ORACLE_BYTES = 1 << 30
"""Of the solver's vectors in a run with a model on the CPU."""


@dataclass(frozen=True)
class Progress:
    """State of a run; given to ``callback``, which stops the run by returning True."""

    finished: int
    total: int
    succeeded: int
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """Checked arrays of a run: flat images (N, n), labels (N,), bounds, starts (N, S, n)."""

    params: _core.Params
    images: Floats
    labels: NDArray[np.int32]
    lo: Floats
    hi: Floats
    starts: Floats | None

    def part(self, rows: NDArray[np.intp]) -> Job:
        """The job of these images alone."""

        def own(values: Floats) -> Floats:
            return values[rows] if values.ndim == 2 else values

        starts = None if self.starts is None else self.starts[rows]
        return Job(
            *(self.params, self.images[rows], self.labels[rows], own(self.lo), own(self.hi)), starts
        )


@dataclass
class Watch:
    """Time limit and callback of a run; ``error`` is what the callback raised."""

    total: int
    time_limit: float | None
    callback: Callable[[Progress], object] | None
    begin: float
    error: Exception | None = None
    stopped: bool = False  # by the callback, which is not called again
    before: tuple[int, int, int] = (0, 0, 0)  # finished, succeeded, evaluations of earlier runs

    def after(self, results: dict[str, NDArray[Any]]) -> Watch:
        """The same for a run of the images that an earlier one left as interrupted."""
        done = results["status"] != _core.Status.interrupted
        counts = (done, results["success"] & done, results["evaluations"] * done)
        self.before = (int(counts[0].sum()), int(counts[1].sum()), int(counts[2].sum()))
        return self

    def late(self) -> bool:
        """Whether the time limit has passed."""
        seconds = time.perf_counter() - self.begin
        return self.time_limit is not None and seconds >= self.time_limit

    def __call__(self, finished: int, succeeded: int, evaluations: int) -> bool:
        """Whether to go on."""
        if self.stopped:
            return False
        seconds = time.perf_counter() - self.begin
        counts = (finished, succeeded, evaluations)
        finished, succeeded, evaluations = map(operator.add, self.before, counts)
        state = Progress(finished, self.total, succeeded, evaluations, seconds)
        try:
            answer = None if self.callback is None else self.callback(state)
        except Exception as error:
            self.error, self.stopped = error, True
            raise
        self.stopped = isinstance(answer, (bool, np.bool_)) and bool(answer)
        return not (self.stopped or self.late())


def default_threads() -> int:
    """``ADVCORE_NUM_THREADS``, else the CPUs that this process may use."""
    given = os.environ.get("ADVCORE_NUM_THREADS")
    if given:
        if not (given.isascii() and given.isdigit()) or int(given) < 1:
            raise ValueError(f"ADVCORE_NUM_THREADS must be a positive integer, got {given!r}")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_native(
    network: Network, job: Job, *, threads: int, slots: int | None, watch: Watch
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    """Results by name, and what stopped the run: KeyboardInterrupt, an error of the callback."""
    if slots is None:
        row = network.core.row_bytes + _core.slot_bytes(job.params, job.lo.ndim == 2)
        slots = max(1, min(NATIVE_SLOTS, TILE_BYTES // row))
    results, error = _core.solve(
        network.core,
        job.params,
        job.images,
        job.labels,
        job.lo,
        job.hi,
        job.starts,
        threads,
        slots,
        watch,
    )
    return results, error


def run_oracle(
    oracle: Oracle, job: Job, *, slots: int | None, watch: Watch, cuda: bool = False
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    """The same with the evaluations of any oracle, one batch of slots a round.

    ``cuda``: the solver too runs on the oracle's device. Where the model runs out of memory, the
    images that are not finished are attacked again, half as many at a time.
    """
    slots = max(1, min(slots or _slots(oracle, cuda, job), len(job.images)))
    results, error = _run_slots(oracle, job, slots, watch, cuda)
    while slots > 1 and error is not watch.error and memory.ran_out(error):
        slots //= 2
        memory.release(oracle)
        left = np.flatnonzero(results["status"] == _core.Status.interrupted)
        found, error = _run_slots(oracle, job.part(left), slots, watch.after(results), cuda)
        # It may have been stopped early; infinite without success.
        better = found["distortion"] <= results["distortion"][left]
        for name, values in found.items():
            results[name][left[better]] = values[better]
    return results, error


def _slots(oracle: Oracle, cuda: bool, job: Job) -> int:
    """Rows of a round: as many as are fast, and as activations and the solver leave room for."""
    if not cuda:
        room = ORACLE_BYTES // _core.slot_bytes(job.params, job.lo.ndim == 2)
        return memory.rows(oracle, max(1, min(ORACLE_SLOTS, room)))
    from . import cuda as device

    assert isinstance(oracle, TorchOracle)
    return memory.rows(oracle, device.SLOTS, device.room(oracle.device))


def _run_slots(
    oracle: Oracle, job: Job, slots: int, watch: Watch, cuda: bool
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    with contextlib.ExitStack() as stack:
        session: _core.Session | CudaSession
        evaluate: Oracle | DeviceOracle
        if cuda:
            from .cuda import on_device

            assert isinstance(oracle, TorchOracle)
            session, evaluate = stack.enter_context(on_device(oracle, job, slots))
        else:
            session = _core.Session(
                job.params, job.images, job.labels, job.lo, job.hi, job.starts, slots
            )
            evaluate = oracle
        return _run_rounds(evaluate, session, watch)


def _run_rounds(
    oracle: Any, session: Any, watch: Watch
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    """Rounds to the end; arrays of NumPy or of a device, as oracle and session have them."""
    error: BaseException | None = None
    last = 0.0
    try:
        while True:
            x, k, rows, measure, paired = session.fill()
            if not len(x):
                break
            session.advance(_round(oracle, session, x, k, rows, measure, paired))
            now = time.perf_counter()
            if now - last > 0.05:
                last = now
                if not watch(session.finished, session.succeeded, session.evaluations):
                    break
    except (Exception, KeyboardInterrupt) as raised:  # returned with what was computed
        error = raised
    try:
        session.interrupt()
    except DeviceError as raised:
        error = error or raised
    return session.results, error


def _round(oracle: Any, session: Any, x: Any, k: Any, slots: Any, measure: Any, paired: int) -> Any:
    """Evaluate the rows of a round; the first `paired` want a gradient, the others a forward."""
    if paired == len(x):
        return oracle.backward(session.head(oracle.forward(x, k, slots, measure, grad=True)))
    logits = [oracle.forward(x[paired:], k[paired:], slots[paired:], measure[paired:], grad=False)]
    if paired:
        logits.insert(
            0, oracle.forward(x[:paired], k[:paired], slots[:paired], measure[:paired], grad=True)
        )
    seeds = session.head(np.concatenate(logits) if len(logits) > 1 else logits[0])
    return oracle.backward(seeds) if paired else np.empty((0, x.shape[1]), np.float32)
