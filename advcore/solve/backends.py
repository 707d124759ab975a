"""Back ends: the contract of those that run a job, and the verifiers that judge its results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelRaised
from ..network import Network
from ..oracles import Oracle, TorchOracle, memory
from ..oracles.logits import SquashFunction, batched, difference, largest_logit, row_differences
from .job import Job, RunMonitor

Floats = NDArray[np.float32]
Results = dict[str, NDArray[Any]]
"""Arrays of a run by the names of `_core`, with an entry for each image."""

SINGLE_EVALUATIONS = 8
"""Probe images that are also evaluated one at a time."""
NONDETERMINISM_LIMIT = 0.02
"""Relative change of logits between two forwards above which a model counts as random. Rounding
stays far below: 0.004 for a 50-layer bfloat16 model."""
FORWARD_ROWS = 1024
"""Images of a forward without a backward, where their activations leave room."""
FORWARD_BYTES = 4 * memory.BACKWARD_BYTES
"""Bytes of activations, saved for a backward, from which the rows of a forward alone are counted. A
forward alone keeps two layers of them at most."""


@dataclass
class EngineInfo:
    """Record of what ran; `Result.engine` is this as a dictionary."""

    path: str  # "native", "torch" or "numpy"
    device: str
    isa: str  # instruction set of the CPU's part
    reason: str  # why this back end was chosen
    solver: str | None = None  # where the solver ran, for models on a GPU
    threads: int | None = None
    kernels: str | None = None  # those of a native network on a GPU
    rounds: int | None = None
    round_seconds: float | None = None
    fillings: int | None = None  # times that a GPU was filled with images
    smoothed: str | None = None  # what the search smooths in a model through torch
    batches: str | None = None  # numbers of rows that the model gets, where not every one

    def as_dict(self) -> dict[str, str | int | float]:
        """The fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Verifier(Protocol):
    """The model itself, which decides about every result, whatever the search ran on."""

    @property
    def network(self) -> Network | None:
        """The native network, where that is the model itself."""
        ...

    @property
    def rows(self) -> int:
        """Images of one forward."""
        ...

    def forward(self, x: Floats) -> Floats:
        """Logits (B, K) float32 of flat images (B, n)."""
        ...

    def forward_alone(self, x: Floats) -> Floats:
        """`forward` of one image at a time, whatever size the batches of `forward` have."""
        ...

    def noise(self, x: Floats) -> float:
        """Rounding of the logits: by how much forwards that sum in another order differ on x."""
        ...

    def noise_at(self, x: Floats) -> Floats:
        """`noise` of each row of x (B, n), (B,), which does not depend on the other rows."""
        ...

    def differentiable(self) -> Network | Oracle:
        """An object with forward and backward that nobody else uses meanwhile."""
        ...

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """``count`` CPU threads for the model inside the block; None: as many as before."""
        ...


class Backend(Protocol):
    """A way to run a job.

    Attributes
    ----------
    kind : str
        Kind of the network that is searched, see `oracles.Oracle`.
    classes : int
        Number K of its logits.
    info : EngineInfo
        What `Result.engine` says.
    verifier : Verifier
        The model itself.
    squash : function, or None
        The increasing function behind the logits that the search sees: an output, of its logit.
    """

    @property
    def kind(self) -> str: ...

    @property
    def classes(self) -> int: ...

    @property
    def info(self) -> EngineInfo: ...

    @property
    def verifier(self) -> Verifier: ...

    @property
    def squash(self) -> SquashFunction | None: ...

    def noise(self, x: Floats) -> float:
        """Largest difference between logits of the search and of the verifier on x (B, n).

        Raises
        ------
        ValueError
            The logits of the model differ by more than rounding.
        """
        ...

    def noise_at(self, x: Floats) -> Floats:
        """`noise` of each row of x (B, n), (B,)."""
        ...

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """Logits (B, P, K) of ``clean + t (end - clean)``, arrays (B, n), for t (P,).

        Those of the model with its squashing function. They may differ from the verifier's by
        rounding.
        """
        ...

    def run(self, job: Job, monitor: RunMonitor) -> tuple[Results, BaseException | None]:
        """The results, and what stopped the run before its end if anything did.

        That is a KeyboardInterrupt, an error of the callback or the model, or a `DeviceError`.
        Images that were not finished then have the status ``interrupted``.
        """
        ...


@dataclass(frozen=True)
class NetworkVerifier:
    """An `advcore.Network` as its own verifier."""

    network: Network

    @property
    def rows(self) -> int:
        """Images of one forward, which keeps what a backward needs."""
        row_bytes: int = self.network.core.row_bytes
        return max(1, min(FORWARD_ROWS, FORWARD_BYTES // row_bytes))

    def forward(self, x: Floats) -> Floats:
        """See `Verifier`."""
        return self.network.forward(x)

    def forward_alone(self, x: Floats) -> Floats:
        """See `Verifier`; it is `forward`, whose rows do not see each other."""
        return self.network.forward(x)

    def noise(self, x: Floats) -> float:
        """See `Verifier`; the other order is that of all units in reverse."""
        return difference(self.network.forward(x), self.network.forward_reordered(x))

    def noise_at(self, x: Floats) -> Floats:
        """See `Verifier`."""
        return row_differences(self.network.forward(x), self.network.forward_reordered(x))

    def differentiable(self) -> Network:
        """A copy: a network remembers its last forward, for all threads that use it."""
        return Network(self.network.layers)

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """See `Verifier`; the compiled network runs on the thread that calls it."""
        return nullcontext()


@contextmanager
def _any_rows(oracle: Oracle) -> Iterator[None]:
    """Batches of a fixed size are as they are inside the block: rounding has other sources too."""
    batches = oracle.batches
    if batches is not None and batches.is_fixed:
        oracle.batches = None
    try:
        yield
    finally:
        oracle.batches = batches


@dataclass(frozen=True)
class OracleVerifier:
    """A model behind an oracle as the verifier; ``limit`` bounds the images of one forward."""

    oracle: Oracle
    limit: int = FORWARD_ROWS
    available_bytes: int = FORWARD_BYTES
    network: None = None

    @classmethod
    def limited(cls, oracle: Oracle, batch_size: int | None) -> OracleVerifier:
        """The verifier of a model that takes at most ``batch_size`` images."""
        return cls(oracle, min(batch_size or FORWARD_ROWS, FORWARD_ROWS))

    @property
    def _most(self) -> int:
        """The largest number of images of a forward."""
        return self.limit if self.oracle.batches is None else self.oracle.batches.most

    @property
    def rows(self) -> int:
        """Images of one forward."""
        if self.oracle.batches is not None:
            return self.oracle.batches.most
        return memory.rows(self.oracle, self.limit, self.available_bytes)

    def forward(self, x: Floats) -> Floats:
        """See `Verifier`; by halves where there is no memory for all at once.

        The model gets a copy: what it was verified on is what comes back, whatever it writes. A GPU
        has a copy by itself.
        """
        if len(x) > self._most:
            return batched(self.forward, x, self._most)
        try:
            rows = x if memory.on_gpu(self.oracle) else np.array(x, order="C")
            return self.oracle.forward(rows, grad=False)
        except ModelRaised as error:
            if len(x) < 2 or not memory.ran_out(error):
                raise
        self.oracle.forget()
        half = len(x) // 2
        return np.concatenate([self.forward(x[:half]), self.forward(x[half:])])

    def forward_alone(self, x: Floats) -> Floats:
        """See `Verifier`."""
        with _any_rows(self.oracle):
            return batched(self.forward, x, 1)

    def noise(self, x: Floats) -> float:
        """See `Verifier`; the other order is that of batches of one.

        Raises
        ------
        ValueError
            The logits differ by more than rounding.
        """
        with _any_rows(self.oracle):
            return self._noise(x[:SINGLE_EVALUATIONS])

    def _noise(self, batch: Floats) -> float:
        size = min(self._most, SINGLE_EVALUATIONS)
        logits = batched(self.forward, batch, size)
        noise = difference(logits, batched(self.forward, batch, 1))
        limit = NONDETERMINISM_LIMIT * largest_logit(logits) + 1e-6
        if noise <= limit:
            return noise
        repeated = difference(logits, batched(self.forward, batch, size))
        if repeated > limit:
            raise ValueError(
                "model must be deterministic: logits of the same images differ by up to "
                f"{repeated:.2g} between two forwards (dropout or another random layer active? "
                "advcore.models.averaged makes one of a random model)"
            )
        raise ValueError(
            "model must give an image the same logits in any batch: they differ by up to "
            f"{noise:.2g} between batches of {size} and of 1 (statistics of the "
            "batch in use?)"
        )

    def noise_at(self, x: Floats) -> Floats:
        """See `Verifier`; the other order is that of batches of one."""
        return row_differences(self.forward(x), self.forward_alone(x))

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """See `Backend`; by halves where there is no memory for all at once."""
        try:
            return self._forward_along(clean, end, t)
        except ModelRaised as error:
            if len(clean) < 2 or not memory.ran_out(error):
                raise
        self.oracle.forget()
        half = len(clean) // 2
        parts = slice(half), slice(half, None)
        return np.concatenate([self.forward_along(clean[i], end[i], t) for i in parts])

    def _forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        if isinstance(self.oracle, TorchOracle):
            return self.oracle.forward_along(clean, end, t)
        return np.stack(
            [self.oracle.forward(clean + step * (end - clean), grad=False) for step in t], axis=1
        )

    def differentiable(self) -> Oracle:
        """The oracle, which the search has left by then."""
        return self.oracle

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """See `Verifier`."""
        return self.oracle.limit_threads(count)
