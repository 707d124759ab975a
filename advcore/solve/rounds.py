"""Runs in rounds: the solver asks, an oracle evaluates a batch of slots, the solver goes on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import DeviceError, NoAnswer
from ..oracles import Oracle, memory
from ..oracles.logits import SquashFunction
from .backends import EngineInfo, OracleVerifier, Results
from .job import Job, RunMonitor

Floats = NDArray[np.float32]
ORACLE_SLOTS = 1024
"""Rows of a round through a model, where its activations leave room (`memory.BACKWARD_BYTES`).
1,024 images of two small networks take 11 and 19% less time than in rounds of 256
(benchmarks/bench_limits.py)."""
SOLVER_BYTES = 1 << 30
"""Bytes of the solver's vectors on the CPU; more where the model is on a GPU."""
REPORT_SECONDS = 0.05
"""Seconds between two reports of progress."""


@dataclass(frozen=True)
class RoundBackend(ABC):
    """A model behind an oracle, which evaluates one batch of slots a round."""

    oracle: Oracle
    info: EngineInfo
    batch_size: int | None = None  # images in work

    @property
    def kind(self) -> str:
        """Kind of the model."""
        return self.oracle.kind

    @property
    def squash(self) -> SquashFunction | None:
        """See `Backend`."""
        return self.oracle.squash

    @property
    def classes(self) -> int:
        """Number of its logits."""
        return self.oracle.classes

    @property
    def verifier(self) -> OracleVerifier:
        """The model itself, in batches no larger than those of the search."""
        return OracleVerifier.limited(self.oracle, self.batch_size)

    def noise(self, x: Floats) -> float:
        """See `Backend`."""
        return self.verifier.noise(x)

    def noise_at(self, x: Floats) -> Floats:
        """See `Backend`."""
        return self.verifier.noise_at(x)

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """See `Backend`."""
        return self.verifier.forward_along(clean, end, t)

    def run(self, job: Job, monitor: RunMonitor) -> tuple[Results, BaseException | None]:
        """See `Backend`."""
        return run_rounds(self, job, monitor)

    @abstractmethod
    def slots(self, job: Job) -> int:
        """Rows of a round: as many as are fast, and as activations and solver leave room for."""

    @abstractmethod
    def session(self, job: Job, slots: int) -> AbstractContextManager[tuple[Any, Any]]:
        """The solver's session for a job, and the oracle on arrays of the session's kind."""


class OracleBackend(RoundBackend):
    """A model behind an oracle, and the solver on the CPU."""

    def slots(self, job: Job) -> int:
        """See `RoundBackend`."""
        room = memory.solver_bytes(self.oracle, SOLVER_BYTES) // _core.slot_bytes(
            job.params, job.lo.ndim == 2
        )
        return memory.rows(self.oracle, max(1, min(ORACLE_SLOTS, room)))

    @contextmanager
    def session(self, job: Job, slots: int) -> Iterator[tuple[Any, Any]]:
        """See `RoundBackend`."""
        yield _core.Session(job.core, slots), self.oracle


def run_rounds(
    backend: RoundBackend, job: Job, monitor: RunMonitor
) -> tuple[Results, BaseException | None]:
    """Results, and what stopped the run.

    Where the model runs out of memory, the images that are not finished are attacked again, half as
    many at a time, or as many as the next smaller batch has. Batches of a fixed size stay.
    """
    oracle = backend.oracle
    slots = max(1, min(backend.batch_size or backend.slots(job), len(job.images)))
    if oracle.batches is not None:
        slots = min(oracle.batches.fitting(slots), len(job.images))
    results, error = _run_slots(backend, job, slots, monitor)
    while slots > 1 and error is not monitor.error and memory.ran_out(error):
        slots //= 2
        memory.release(oracle, error)
        if oracle.batches is not None:
            if oracle.batches.is_fixed:  # results would be those of other batches
                break
            slots = oracle.batches.fitting(slots)
            oracle.batches = oracle.batches.up_to(slots)
        unfinished = np.flatnonzero(results["status"] == _core.Status.interrupted)
        monitor.resume(results)
        retried, error = _run_slots(backend, job.part(unfinished), slots, monitor)
        # The second run may have been stopped early; a distortion is infinite without success.
        better = retried["distortion"] <= results["distortion"][unfinished]
        for name, values in retried.items():
            results[name][unfinished[better]] = values[better]
    return results, error


def _run_slots(
    backend: RoundBackend, job: Job, slots: int, monitor: RunMonitor
) -> tuple[Results, BaseException | None]:
    """Rounds to the end; arrays of NumPy or of a device, as oracle and session have them."""
    with backend.session(job, slots) as (session, oracle):
        error: BaseException | None = None
        try:
            with monitor.interrupts.raising():
                _advance_to_end(session, oracle, monitor)
        except (Exception, KeyboardInterrupt) as raised:  # returned with what was computed
            error = raised
        try:
            session.interrupt()
        except DeviceError as raised:
            # Launches are asynchronous: a failure of the GPU comes up first in the model's calls.
            chosen = isinstance(error, KeyboardInterrupt) or error is monitor.error
            if error is None or not chosen or isinstance(raised, NoAnswer):
                error = raised
        results: Results = session.results
        return results, error


def _advance_to_end(session: Any, oracle: Any, monitor: RunMonitor) -> None:
    """Advance by rounds until no image is left or the monitor says so."""
    last_report = 0.0
    while not monitor.timed_out():
        *rows, paired = session.refill()
        if not len(rows[0]):
            return
        session.advance(_evaluate(oracle, session, rows, paired))
        now = time.perf_counter()
        if now - last_report > REPORT_SECONDS:
            last_report = now
            if not monitor(session.counts):
                return


def _evaluate(oracle: Any, session: Any, rows: Sequence[Any], paired: int) -> Any:
    """Gradients of a round: its first ``paired`` rows need one, the others a forward alone.

    They are one batch where the model gets certain numbers of rows, else two.

    ``rows`` are the first four arguments of `Oracle.forward`.
    """
    x = rows[0]
    if paired == len(x) or oracle.batches is not None:  # two batches would be padded
        return oracle.backward(session.margin_loss(oracle.forward(*rows, grad=True)))
    logits = [oracle.forward(*(values[paired:] for values in rows), grad=False)]
    if paired:
        logits.insert(0, oracle.forward(*(values[:paired] for values in rows), grad=True))
    dlogits = session.margin_loss(np.concatenate(logits) if len(logits) > 1 else logits[0])
    return oracle.backward(dlogits) if paired else np.empty((0, x.shape[1]), np.float32)
