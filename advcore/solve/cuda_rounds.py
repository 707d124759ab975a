"""Rounds of the solver on a GPU: the back end of torch models there.

Everything of a round is queued on torch's current stream; the host looks at the device every few
rounds only. Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _core
from ..errors import DeviceError
from ..oracles import TorchOracle, memory
from .job import Job
from .rounds import RoundBackend

Floats = NDArray[np.float32]

SLOTS = 1024
"""Rows of a round, where the memory allows it."""
SHARE = 0.25
"""Share of the free device memory for the arena; the model's activations need the rest."""


class CudaSession:
    """`_core.Session` with its arrays on the device.

    ``refill`` returns (x, smoothing, slots, recorded_rows, rows): tensors (B, n), (B,) or None
    where every row is exact, (B,) int64, row numbers or None, and B. Every row takes part in the
    backward.
    """

    def __init__(self, job: Job, slots: int, device: torch.device) -> None:
        own_bounds = job.lo.ndim == 2
        self._n = job.images.shape[1]
        self._device = device
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
        """Write what the unfinished images have to the results."""
        with named():
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

    def slots(self, job: Job) -> int:
        """See `RoundBackend`."""
        return memory.rows(self.oracle, SLOTS, room(self.oracle.device))

    @contextmanager
    def session(self, job: Job, slots: int) -> Iterator[tuple[CudaSession, DeviceOracle]]:
        """Session and oracle on the oracle's device, which is torch's current one meanwhile."""
        device = indexed(self.oracle.device)
        # Tensors of a session are leaves of a graph: none is made in the caller's inference mode.
        with torch.cuda.device(device), torch.inference_mode(False):
            session = CudaSession(job, slots, device)
            yield session, DeviceOracle(self.oracle, session.slots)


def room(device: torch.device) -> int:
    """Bytes for the activations of a round: half of what is free."""
    return _free_memory(device) // 2


def stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _free_memory(device: torch.device) -> int:
    """Bytes, with what torch has kept of earlier runs and gives again."""
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved


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
            if last or needed <= SHARE * _free_memory(device):
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
    """Turns the engine's CUDA errors into `DeviceError`."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(str(error)) from error
