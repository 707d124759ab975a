"""The two ways of a run: native, without Python in the loop, or in rounds with an oracle."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import DeviceError
from ..oracles import Oracle, TorchOracle, memory
from .job import Job, Watch

if TYPE_CHECKING:
    from .cuda_rounds import CudaSession, DeviceOracle

Floats = NDArray[np.float32]
ORACLE_SLOTS = 1024
"""Rows of a round through a model, where its activations leave room (`memory.SAVED`). 1,024 images
of two small networks take 11 and 19% less time than in rounds of 256 (benchmarks/bench_limits.py).
"""
ORACLE_BYTES = 1 << 30
"""Of the solver's vectors in a run with a model on the CPU."""


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
    from . import cuda_rounds as device

    assert isinstance(oracle, TorchOracle)
    return memory.rows(oracle, device.SLOTS, device.room(oracle.device))


def _run_slots(
    oracle: Oracle, job: Job, slots: int, watch: Watch, cuda: bool
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    with contextlib.ExitStack() as stack:
        session: _core.Session | CudaSession
        evaluate: Oracle | DeviceOracle
        if cuda:
            from .cuda_rounds import on_device

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
