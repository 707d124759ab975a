"""Rounds of the solver on a GPU: the back end of torch models there.

Everything of a round is queued on torch's current stream; the host looks at the device every few
rounds only. Importing this file imports torch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..errors import DeviceError, NoAnswer
from ..oracles import TorchOracle, memory
from .job import Job
from .rounds import RoundBackend

Floats = NDArray[np.float32]

SLOTS = 1024
"""Rows of a round, where the memory allows it."""
SHARE = 0.25
"""Share of the free device memory for the arena; the model's activations need the rest."""
HANG_SECONDS = 20.0
"""Seconds without an answer after which a GPU counts as hung, where it should answer at once."""
SLOW_FACTOR = 4
"""Multiple of the longest wait so far that a slow model may take before the GPU counts as hung."""
NAP = 2e-5
"""Seconds between two looks at a GPU that is at work."""
STICKY = {700, 710, *range(715, 720)}
"""Codes of CUDA's errors after which the process can use the GPU no more."""
ABANDONED: list[Any] = []
"""Memory that a GPU which does not answer may still write to."""


class CudaSession:
    """`_core.Session` with its arrays on the device.

    ``refill`` returns (x, smoothing, slots, recorded_rows, rows): tensors (B, n), (B,) or None
    where every row is exact, (B,) int64, row numbers or None, and B. Every row takes part in the
    backward.

    Calls wait for the device as long as it takes, or ``patience`` seconds. Ctrl-C is heard
    meanwhile.
    """

    def __init__(
        self, job: Job, slots: int, device: torch.device, patience: float | None = None
    ) -> None:
        own_bounds = job.lo.ndim == 2
        self._n = job.images.shape[1]
        self._device = device
        self._patience = patience
        self._longest_wait = 0.0  # seconds
        self.hung: NoAnswer | None = None
        self.slots, _, self._arena = arena(job.params, own_bounds, slots, device)
        with named():
            self._core = _core.CudaSession(
                job.core, self.slots, device.index or 0, self._arena.data_ptr(), stream(device)
            )
        self._x = self._smoothing = torch.empty(0)
        self._rows: Tensor = torch.empty(0)
        self._recorded: Tensor | None = None

    def refill(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, int]:
        """Rows of the next round."""
        with named():
            if self._core.waits_next():
                seconds = wait(self._device, self._patience)
                self._longest_wait = max(self._longest_wait, seconds)
            fresh = self._core.refill()
            if fresh is not None:
                self._take_rows(*fresh)
            else:
                self._recorded = None
            if len(self._x):
                self._core.gather(self._x.data_ptr(), self._smoothing.data_ptr())
        smoothing = self._smoothing if self._core.smoothed else None
        return self._x, smoothing, self._rows, self._recorded, len(self._x)

    def _take_rows(self, slots: NDArray[np.int32], record_scales: NDArray[np.bool_]) -> None:
        self._x = torch.empty((len(slots), self._n), dtype=torch.float32, device=self._device)
        self._smoothing = torch.empty(len(slots), dtype=torch.float32, device=self._device)
        self._rows = torch.from_numpy(slots.astype(np.int64)).to(self._device)
        recorded = np.flatnonzero(record_scales)
        self._recorded = torch.from_numpy(recorded).to(self._device) if recorded.size else None

    def margin_loss(self, logits: Tensor) -> Tensor:
        """Logits (B, K) to dlogits (B, K)."""
        dlogits = torch.empty_like(logits)
        with named():
            self._core.margin_loss(logits.data_ptr(), dlogits.data_ptr())
        return dlogits

    def advance(self, gradients: Tensor) -> None:
        """Gradients (B, n)."""
        with named():
            self._core.advance(gradients.data_ptr())

    def interrupt(self) -> None:
        """Write what the unfinished images have to the results.

        Raises
        ------
        DeviceError
            The device failed, now or before.
        NoAnswer
            The device does not answer. Nothing of the session waits for it any more.
        """
        with named():
            try:
                slow_model = SLOW_FACTOR * self._longest_wait
                wait(self._device, self._patience or max(HANG_SECONDS, slow_model))
            except NoAnswer as error:
                self.hung = error
                self._core.abandon()
                ABANDONED.append(self._arena)
                raise
            self._core.interrupt()

    @property
    def counts(self) -> _core.Counts:
        return self._core.counts

    @property
    def results(self) -> dict[str, NDArray[Any]]:
        return self._core.results


class DeviceOracle:
    """The oracle's contract on the tensors of a `CudaSession`."""

    def __init__(self, oracle: TorchOracle, slots: int) -> None:
        self._oracle = oracle
        self._slots = slots
        self.batches = oracle.batches

    def forward(
        self,
        x: Tensor,
        smoothing: Tensor | None,
        slots: Tensor,
        recorded_rows: Tensor | None,
        grad: bool = True,
    ) -> Tensor:
        return self._oracle.forward_rows(x, smoothing, slots, recorded_rows, self._slots)

    def backward(self, dlogits: Tensor) -> Tensor:
        return self._oracle.backward_rows(dlogits)


@dataclass(frozen=True)
class OracleCudaBackend(RoundBackend):
    """A torch model on a GPU, with the solver beside it."""

    oracle: TorchOracle
    patience: float | None = None  # seconds that a wait for the device may take

    def slots(self, job: Job) -> int:
        """See `RoundBackend`."""
        return memory.rows(self.oracle, SLOTS)

    @contextmanager
    def session(self, job: Job, slots: int) -> Iterator[tuple[CudaSession, DeviceOracle]]:
        """Session and oracle on the oracle's device, which is torch's current one meanwhile."""
        device = indexed(self.oracle.device)
        # Tensors of a session are leaves of a graph: none is made in the caller's inference mode.
        with torch.cuda.device(device), torch.inference_mode(False):
            session = CudaSession(job, slots, device, self.patience)
            yield session, DeviceOracle(self.oracle, session.slots)
            if session.hung is not None:
                give_up(self.oracle, session.hung)


def give_up(oracle: TorchOracle, error: NoAnswer) -> None:
    """Have every further forward raise ``error``: the device does not answer any more."""

    def refuse() -> None:
        raise error

    oracle.check_time = refuse


def wait(device: torch.device, limit: float | None) -> float:
    """Wait until torch's current stream has nothing left to do, so that Ctrl-C is heard meanwhile.

    Returns
    -------
    float
        Seconds of the wait.

    Raises
    ------
    NoAnswer
        ``limit`` seconds have passed.
    """
    begin = time.perf_counter()
    while busy(device):
        if limit is not None and time.perf_counter() - begin > limit:
            raise NoAnswer(f"{device} has not answered for {limit:g} s; restart the process")
        time.sleep(NAP)
    return time.perf_counter() - begin


def busy(device: torch.device) -> bool:
    """Whether torch's current stream of the device has something left to do."""
    return not torch.cuda.current_stream(device).query()


def stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def indexed(device: torch.device) -> torch.device:
    """The device with its number: without one, torch's current."""
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def arena(
    params: _core.Params, own_bounds: bool, slots: int, device: torch.device, images: int = 0
) -> tuple[int, int, Tensor]:
    """As many of the images and of the slots as fit, and their memory.

    Raises
    ------
    DeviceError
        There is no memory for a single image.
    """
    while True:
        needed = _core.cuda_arena_bytes(params, own_bounds, slots, images)
        last = slots == 1 and images <= 1
        try:
            if last or needed <= SHARE * memory.free_bytes(device):
                return slots, images, torch.empty(needed, dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError as error:
            if last:
                raise DeviceError(f"no memory on {device}: {needed} bytes asked for") from error
        if images > 4 * slots:
            images = (images + 1) // 2
        else:
            slots = (slots + 1) // 2
            images = min(images, 4 * slots)


@contextmanager
def named() -> Iterator[None]:
    """Turns the engine's CUDA errors, and torch's, into `DeviceError`."""
    try:
        yield
    except DeviceError:
        raise
    except RuntimeError as error:
        code = re.search(r"\((\d+)\)$", str(error))
        broken = code is not None and int(code[1]) in STICKY
        remedy = "; the process can use this GPU no more, restart it" if broken else ""
        raise DeviceError(f"{error}{remedy}") from error
