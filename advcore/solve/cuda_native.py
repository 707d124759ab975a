"""A native network on a GPU: the whole run is one launch, without Python in its rounds.

The kernels of a round are Triton's, compiled ahead of the run; `_core.CudaQueue` puts them, the
solver and the change of images into a graph that loops on the device. Importing this file imports
torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import _core
from ..errors import DeviceError
from ..network import Network
from .cuda_rounds import arena, indexed, named, stream

if TYPE_CHECKING:
    from ..kernels.plan import Plan
    from .job import Job, Watch

SLOTS = 4096
"""Images at work. A round of so many is six waves of the blocks that an H200 holds."""
TRITON = (3, 6)
"""The oldest version whose compiler the kernels were tried with."""
POLL = 0.02
"""Seconds between two looks at the run; the device does not wait for them."""


def unavailable(network: Network, device: torch.device) -> str | None:
    """Why the device cannot run the network natively; None: it can."""
    if network.convolutional:
        return "there are no kernels for convolutions"
    _, devices, why = _core.cuda_status()
    if not devices:
        return f"no CUDA engine: {why}"
    if missing := _core.cuda_queue_missing():
        return missing
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < TRITON:
        return f"triton {version} is installed, the kernels need {TRITON[0]}.{TRITON[1]}"
    return None


class Float32(nn.Module):
    """A network whose products are never rounded to TF32, whatever torch is set to."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network.to_torch()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, ...)."""
        with float32_products():
            logits: Tensor = self.network(x)
            return logits


@contextmanager
def float32_products() -> Iterator[None]:
    """No TF32, by whichever of torch's two settings was used: it refuses a mix of them."""
    products: Any = torch.backends.cuda.matmul
    new = hasattr(products, "fp32_precision")  # torch 2.9 and later
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)


def module_on(network: Network, device: torch.device) -> Float32:
    """Its torch form there, kept with it."""
    key = f"module {device}"
    if key not in network.plans:
        network.plans[key] = Float32(network).to(device)
    module: Float32 = network.plans[key]
    return module


def run_queue(
    network: Network,
    job: Job,
    *,
    device: torch.device,
    slots: int | None,
    watch: Watch,
    info: dict[str, Any],
) -> tuple[dict[str, NDArray[Any]], BaseException | None]:
    """Results by name, and what stopped the run.

    ``info`` gets the kernels, the rounds, their seconds, and whether the loop ran on the device.
    """
    device = indexed(device)
    count = len(job.images)
    slots = max(1, min(slots or SLOTS, count))
    with torch.cuda.device(device), torch.inference_mode(False):
        plan, weights = _plan(network, device)
        slots, capacity, memory = arena(job.params, job.lo.ndim == 2, slots, device, max(count, 1))
        with named():
            queue = _core.CudaQueue(
                *(job.params, job.images, job.labels, job.lo, job.hi, job.starts),
                *(slots, capacity, device.index, memory.data_ptr(), stream(device)),
            )
            fractions = torch.from_numpy(job.params.temperatures).to(device)
            buffers = {
                name: torch.zeros(size, device=device) for name, size in plan.buffers(slots).items()
            }
            tensors = {"weights": weights, "fractions": fractions, **buffers}
            addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
            for launch in plan.launches(
                {**queue.slot_rows(), **addresses}, slots=slots, confidence=job.params.confidence
            ):
                queue.add(
                    *(launch.cubin, launch.name, launch.grid, launch.threads, launch.shared),
                    launch.arguments,
                )
        error = _watched(queue, watch)
        info |= {"kernels": plan.name, "rounds": queue.rounds, "round_seconds": queue.seconds}
        info |= {"loop": "device" if queue.looping else "host", "fillings": queue.fillings}
        return queue.results, error


def _watched(queue: _core.CudaQueue, watch: Watch) -> BaseException | None:
    """Runs to the end; what stopped it. Whatever that was, the unfinished images are delivered."""
    error: BaseException | None = None
    while True:
        try:
            with named():
                if queue.wait(POLL):
                    return error
            if not watch(queue.finished, queue.succeeded, queue.evaluations):
                queue.stop()
        except DeviceError as raised:
            return error or raised
        except (Exception, KeyboardInterrupt) as raised:
            error = error or raised
            queue.stop()


def _plan(network: Network, device: torch.device) -> tuple[Plan, Tensor]:
    """Compiled kernels and weights of a network, kept with it.

    ADVCORE_PRECISION names another precision of the products than the default.
    """
    from ..kernels.plan import PRECISION, plan_for

    precision = os.environ.get("ADVCORE_PRECISION") or PRECISION
    key = f"{device} {precision}"
    kept: dict[str, tuple[Plan, Tensor]] = network.plans
    if key not in kept:
        try:
            plan = plan_for(network, device, precision)
            _ = plan.compiled
        except Exception as error:  # of a compiler: of many types
            raise DeviceError(f"no kernels for this network on {device}: {error}") from error
        kept[key] = plan, plan.weights(device)
    return kept[key]
