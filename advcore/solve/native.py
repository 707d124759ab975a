"""The back end of the compiled engine on the CPU, without Python in its loop."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..network import Network
from ..oracles.logits import SquashFunction, difference, row_differences
from .backends import EngineInfo, Results, Verifier
from .job import Job, RunMonitor

Floats = NDArray[np.float32]
NATIVE_SLOTS = 24
"""Slots of a thread: a multiple of 8 and of 6, the row blocks of the kernels. 8 to 64 slots were
measured within 7%."""
POOL_BYTES = 512 << 20
"""Bytes of a thread's slots, for vectors of the solver and activations. 2 rows of a small
convolutional network run as fast as 24. Rows of wide layers share the reading of the weights."""
MOST_THREADS = 1024
"""Largest number of threads that may be asked for, as of the option."""


@dataclass(frozen=True)
class NativeBackend:
    """A native network and the solver, both on the CPU."""

    network: Network
    verifier: Verifier
    info: EngineInfo
    batch_size: int | None = None  # images in work, a thread
    threads: int | None = None
    compared: Network | None = None  # with the verifier, where another network is searched
    squash: SquashFunction | None = None

    @property
    def kind(self) -> str:
        """Kind of the network."""
        return self.network.kind

    @property
    def classes(self) -> int:
        """Number of its logits."""
        return self.network.classes

    @property
    def _outputs(self) -> Network:
        """The network with its squashing function."""
        return self.compared or self.network

    def noise(self, x: Floats) -> float:
        """See `Backend`."""
        return native_noise(self._outputs, self.verifier, x)

    def noise_at(self, x: Floats) -> Floats:
        """See `Backend`."""
        return native_noise_at(self._outputs, self.verifier, x)

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """See `Backend`."""
        threads = self.threads or default_threads()
        logits: Floats = self._outputs.core.along(clean, end, t.astype(np.float32), threads)
        return logits

    def run(self, job: Job, monitor: RunMonitor) -> tuple[Results, BaseException | None]:
        """See `Backend`."""
        slots, threads = self.batch_size, self.threads or default_threads()
        if slots is None:
            row = self.network.core.row_bytes + _core.slot_bytes(job.params, job.lo.ndim == 2)
            slots = max(1, min(NATIVE_SLOTS, POOL_BYTES // row))
        self.info.threads = threads
        # The trials of a module may have been cut short, before the rounding was measured.
        if self.verifier.network is None and monitor.timed_out():
            session = _core.Session(job.core, 1)
            session.interrupt()
            return session.results, None
        try:
            results, error = _core.solve(self.network.core, job.core, threads, slots, monitor)
        except RuntimeError as raised:
            if "Resource temporarily unavailable" not in str(raised):
                raise
            raise ValueError(
                f"threads must be as many as this system can start, got {threads} ({raised})"
            ) from raised
        return results, error


def native_noise(network: Network, verifier: Verifier, x: Floats) -> float:
    """Noise of the verifier, and the difference between it and the native network, on x (B, n)."""
    noise = verifier.noise(x)
    if verifier.network is not None:
        return noise
    return max(noise, difference(network.forward(x), verifier.forward(x)))


def native_noise_at(network: Network, verifier: Verifier, x: Floats) -> Floats:
    """`native_noise` of each row of x (B, n), (B,)."""
    if verifier.network is not None:
        return verifier.noise_at(x)
    logits = network.forward(x)
    return np.maximum(
        row_differences(logits, network.forward_reordered(x)),
        row_differences(logits, verifier.forward_alone(x)),
    )


def default_threads() -> int:
    """``ADVCORE_NUM_THREADS``, else the CPUs that this process may use."""
    value = os.environ.get("ADVCORE_NUM_THREADS")
    if value:
        is_number = value.isascii() and value.isdigit() and len(value) < 20
        if not is_number or not 1 <= int(value) <= MOST_THREADS:
            raise ValueError(
                f"ADVCORE_NUM_THREADS must be an integer from 1 to {MOST_THREADS}, got {value!r}"
            )
        return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
