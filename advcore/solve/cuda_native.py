"""A native network on a GPU: a whole run without Python in its rounds.

The kernels of a round are Triton's, compiled ahead of the run; `_core.CudaQueue` puts them, the
solver and the change of images into a graph of rounds, which it launches until the run is over.
Importing this file imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import _core
from ..errors import DeviceError, NoAnswer
from ..network import Network
from ..oracles import TorchOracle
from ..oracles.logits import largest_logit
from .backends import SINGLE_EVALUATIONS, EngineInfo, OracleVerifier, Results
from .cuda_rounds import ABANDONED, HANG_SECONDS, arena, give_up, indexed, named, stream
from .job import Job, RunMonitor
from .native import native_noise, native_noise_at

if TYPE_CHECKING:
    from ..kernels.plan import Plan

Floats = NDArray[np.float32]
SLOTS = 4096
"""Images at work. A round of so many is six waves of the blocks that an H200 holds."""
TRITON = (3, 6)
"""The oldest version whose compiler the kernels were tried with."""
POLL = 0.02
"""Seconds between two looks at the run; the device does not wait for them."""
VERIFIED_ROWS = 8192
"""Images of one forward through torch, without a backward."""
UNLIMITED = 1 << 62
"""Bytes that such a forward may take: a network without convolutions has small activations."""
GPU_LOGIT_NOISE = 1e-5
"""Noise of the kernels, as a share of the largest logit: sums of a thousand products that a tensor
core truncates. Emulated without truncation it is 7e-7; on hardware it is not measured."""


def unavailable(network: Network, device: torch.device) -> str | None:
    """Why the device cannot run the network natively; None: it can."""
    if network.convolutional or not network.is_chain:
        return "there are no kernels for convolutions and branches"
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
    from ..kernels.activation import KERNEL_ACTIVATIONS

    for layer in network.layers:
        if layer.activation not in KERNEL_ACTIVATIONS:
            return f"there is no kernel for the activation {layer.activation}"
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
    previous = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, previous)


_MODULES: WeakKeyDictionary[Network, dict[str, Float32]] = WeakKeyDictionary()
"""The torch form of a network on a device, by the device's name."""
_PLANS: WeakKeyDictionary[Network, dict[tuple[str, str], tuple[Plan, Tensor]]] = WeakKeyDictionary()
"""Compiled kernels and weights of a network, by the names of device and kernels."""


def module_on(network: Network, device: str | torch.device) -> Float32:
    """The torch form of the network on a device, kept for the next call."""
    device = indexed(torch.device(device))  # torch's current device may be another one next time
    modules = _MODULES.setdefault(network, {})
    if str(device) not in modules:
        modules[str(device)] = Float32(network).to(device)
    return modules[str(device)]


@dataclass(frozen=True)
class NativeCudaBackend:
    """A native network and the solver on a GPU; torch's form of the model verifies."""

    network: Network
    oracle: TorchOracle
    info: EngineInfo
    batch_size: int | None = None  # images in work

    @property
    def kind(self) -> str:
        """Kind of the network."""
        return self.network.kind

    @property
    def classes(self) -> int:
        """Number of its logits."""
        return self.network.classes

    @property
    def squash(self) -> None:
        """See `Backend`; the search sees the outputs, a squashed network runs through torch."""
        return None

    @property
    def verifier(self) -> OracleVerifier:
        """The model through torch, in large batches."""
        return OracleVerifier(self.oracle, VERIFIED_ROWS, UNLIMITED)

    def noise(self, x: Floats) -> float:
        """See `Backend`; the kernels are not asked what tensor cores round."""
        largest = largest_logit(self.verifier.forward(x[:SINGLE_EVALUATIONS]))
        return max(native_noise(self.network, self.verifier, x), GPU_LOGIT_NOISE * largest)

    def noise_at(self, x: Floats) -> Floats:
        """See `Backend`."""
        return native_noise_at(self.network, self.verifier, x)

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """See `Backend`."""
        return self.verifier.forward_along(clean, end, t)

    def run(self, job: Job, monitor: RunMonitor) -> tuple[Results, BaseException | None]:
        """See `Backend`; ``info`` gets the kernels, the rounds and their seconds."""
        device = indexed(self.oracle.device)
        count = len(job.images)
        slots = max(1, min(self.batch_size or SLOTS, count))
        with torch.cuda.device(device), torch.inference_mode(False):
            own_bounds = job.lo.ndim == 2
            slots, capacity, memory = arena(job.params, own_bounds, slots, device, max(count, 1))
            plan, weights = _plan(self.network, device, slots)
            with named():
                queue = _core.CudaQueue(
                    job.core, slots, capacity, device.index, memory.data_ptr(), stream(device)
                )
            tensors: dict[str, Tensor] = {}
            try:
                with named():
                    _add_kernels(queue, plan, tensors, weights, job.params, slots)
                error = _run_to_end(queue, monitor)
                if isinstance(error, NoAnswer):
                    ABANDONED.extend([memory, *tensors.values()])
                    give_up(self.oracle, error)
                self.info.kernels, self.info.rounds = plan.name, queue.rounds
                self.info.round_seconds, self.info.fillings = queue.seconds, queue.fillings
                return queue.results, error
            finally:
                queue.close()  # before its memory goes, and while its device is the current one


def _add_kernels(
    queue: _core.CudaQueue,
    plan: Plan,
    tensors: dict[str, Tensor],
    weights: Tensor,
    params: _core.Params,
    slots: int,
) -> None:
    """Give the queue the kernels of a round, whose memory besides the arena is ``tensors``."""
    tensors |= {
        "weights": weights,
        "temperatures": torch.from_numpy(params.temperatures).to(weights.device),
    }
    for name, size in plan.buffers(slots).items():
        tensors[name] = torch.zeros(size, device=weights.device)
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    addresses |= queue.slot_rows()
    for launch in plan.launches(addresses, slots=slots, confidence=params.confidence):
        queue.add(
            launch.cubin,
            launch.name,
            launch.grid,
            launch.threads,
            launch.shared,
            launch.arguments,
        )


def _run_to_end(queue: _core.CudaQueue, monitor: RunMonitor) -> BaseException | None:
    """Wait for the end, and return what stopped the run early, an error or None.

    The unfinished images are written to the results in any case. A device that has not ended a
    round for `HANG_SECONDS`, or before the second Ctrl-C, is waited for no more.
    """
    error: BaseException | None = None
    rounds, waits = queue.rounds, 0
    while True:
        try:
            with named():
                if queue.wait(POLL):
                    return error
            waits = waits + 1 if queue.rounds == rounds else 0
            rounds = queue.rounds
            if waits * POLL > HANG_SECONDS:
                raise NoAnswer(f"no round has ended for {HANG_SECONDS:g} s; restart the process")
            if not monitor(queue.counts):
                queue.stop()
        except NoAnswer as raised:
            queue.abandon()
            return raised
        except DeviceError as raised:
            return error or raised
        except (Exception, KeyboardInterrupt) as raised:
            if isinstance(raised, KeyboardInterrupt) and isinstance(error, KeyboardInterrupt):
                queue.abandon()
                return NoAnswer("Ctrl-C was pressed twice before the GPU had answered")
            error = error or raised
            queue.stop()


def _plan(network: Network, device: torch.device, slots: int) -> tuple[Plan, Tensor]:
    """Compiled kernels and weights of a network, kept for the next call.

    ADVCORE_PRECISION chooses the precision of the products: "tf32x3" (default) or "ieee".
    """
    from ..kernels.plan import PRECISION, plan_for

    precision = os.environ.get("ADVCORE_PRECISION") or PRECISION
    plans = _PLANS.setdefault(network, {})
    try:
        plan = plan_for(network, device, slots, precision)
        key = (str(device), plan.name)
        if key in plans:
            return plans[key]
        _ = plan.compiled
    except Exception as error:  # of a compiler: of many types
        raise DeviceError(f"no kernels for this network on {device}: {error}") from error
    plans[key] = plan, plan.weights(device)
    return plans[key]
