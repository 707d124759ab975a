"""Whether the solver runs on a GPU, and what a call does where it fails there.

The order of retreat is: a native network on the GPU, a torch model with the solver on the GPU, the
solver on the CPU. There a network runs in the native engine with the model on the GPU as its
verifier, any other model through torch on the GPU. Importing this file imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import DeviceError, NoAnswer, warn_caller
from ..network import Network
from ..oracles import memory
from ..oracles.logits import SquashFunction
from .agreement import unlike
from .backends import Backend, EngineInfo, NetworkVerifier, Results, Verifier
from .job import Job, RunMonitor
from .native import NativeBackend

Floats = NDArray[np.float32]
SETTINGS = ("auto", "torch", "off", "force")
"""Values of ADVCORE_GPU: with a test and retreats; the model on the GPU, through torch, and the
solver on the CPU; no engine of advcore on the GPU; without either test or retreat."""
COMPARED_IMAGES = 16
"""Images of the first native run of a network that the CPU's engine attacks too."""
COMPARED_SECONDS = 2.0
"""Seconds that these may take; those that are not finished by then are not compared."""
LEAST_COMPARED = 4
"""Fewest finished images that say something."""

_broken: dict[str, str] = {}
"""Why a part of the engine is not used any more in this process, by the name of the part."""
_compared: WeakSet[Network] = WeakSet()
"""Networks whose results on a GPU were those of the CPU."""
_warned: set[str] = set()


def setting() -> str:
    """The value of ADVCORE_GPU.

    Raises
    ------
    ValueError
        It is none of `SETTINGS`.
    """
    value = os.environ.get("ADVCORE_GPU") or "auto"
    if value not in SETTINGS:
        raise ValueError(f"ADVCORE_GPU must be one of {', '.join(SETTINGS)}, got {value!r}")
    return value


def unusable(device: Any, asked: bool) -> str | None:
    """Why the solver does not run on a torch device; None: it does, and has passed its test.

    A fault is warned of, a build without CUDA only where the device was ``asked`` for.
    """
    mode = setting()
    if mode in ("torch", "off"):
        return f"ADVCORE_GPU={mode}"
    _, devices, why = _core.cuda_status()
    missing: str | None = why
    if devices:
        missing = fault(device, mode)
    if missing is not None and (devices or asked):
        warn_once(
            f"the solver does not run on {device} but on the CPU: {missing}. "
            "ADVCORE_GPU=off says so from the start"
        )
    return missing


def fault(device: Any, mode: str) -> str | None:
    """Why a GPU that CUDA sees cannot run the solver; None: it can."""
    from .gpu_record import number, tested

    _, missing = _core.cuda_probe(number(device))
    if missing or mode == "force":
        return missing or None
    return _broken.get(solver_on(device)) or tested(device)


def native_on(device: Any) -> str:
    """Name of the part that runs native networks on a device."""
    return f"native network on {device}"


def solver_on(device: Any) -> str:
    """Name of the part that runs the solver on a device."""
    return f"solver on {device}"


def warn_once(message: str) -> None:
    """A RuntimeWarning at the caller's line, once a process."""
    if message not in _warned:
        _warned.add(message)
        warn_caller(message, RuntimeWarning)


class Retreating:
    """The first of several back ends of one model that does not fail; see `Backend`.

    Parameters
    ----------
    levels : sequence of (str, callable)
        Names, of the engine's part and its device, and functions that make the back ends, in the
        order of retreat. Results of a native network on a GPU are compared with the CPU's.
    device : torch.device
        The GPU.
    """

    def __init__(self, levels: Sequence[tuple[str, Callable[[], Backend]]], device: Any) -> None:
        self._left = [level for level in levels if level[0] not in _broken] or list(levels[-1:])
        self._device = device
        self._backend = self._left[0][1]()

    @property
    def kind(self) -> str:
        """See `Backend`."""
        return self._backend.kind

    @property
    def classes(self) -> int:
        """See `Backend`."""
        return self._backend.classes

    @property
    def info(self) -> EngineInfo:
        """See `Backend`."""
        return self._backend.info

    @property
    def verifier(self) -> Verifier:
        """See `Backend`."""
        return self._backend.verifier

    @property
    def squash(self) -> SquashFunction | None:
        """See `Backend`."""
        return self._backend.squash

    def noise(self, x: Floats) -> float:
        """See `Backend`."""
        return self._backend.noise(x)

    def noise_at(self, x: Floats) -> Floats:
        """See `Backend`."""
        return self._backend.noise_at(x)

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """See `Backend`."""
        return self._backend.forward_along(clean, end, t)

    def run(self, job: Job, monitor: RunMonitor) -> tuple[Results, BaseException | None]:
        """See `Backend`.

        The next back end runs the job where this one has failed before it delivered an image, or
        has delivered wrong ones, and the GPU still answers.
        """
        while len(self._left) > 1:
            results, error = self._run(job, monitor)
            why = _failure(results, error)
            if why is None and error is None:
                why = self._wrong(job, results)
            if why is None or not self._can_go_on(error):
                if results is None:
                    assert error is not None
                    raise error
                return results, error
            self._retreat(why, error)
        return self._backend.run(job, monitor)

    def _run(self, job: Job, monitor: RunMonitor) -> tuple[Results | None, BaseException | None]:
        try:
            return self._backend.run(job, monitor)
        except DeviceError as error:
            return None, error

    def _can_go_on(self, error: BaseException | None) -> bool:
        """Whether the GPU, which at least verifies, can be used after an error."""
        from .gpu_record import answers

        return not isinstance(error, NoAnswer) and answers(self._device)

    def _retreat(self, why: str, error: BaseException | None) -> None:
        """Take the next back end, in this call and in later ones of the process.

        Later there may be memory again.
        """
        name, _ = self._left.pop(0)
        if error is None or not memory.ran_out(error.__cause__):
            _broken[name] = f"it failed before ({why})"
        self._backend = self._left[0][1]()
        warn_once(
            f"the {name} failed ({why}); the {self._left[0][0]} takes its place. "
            "ADVCORE_GPU=off chooses the CPU from the start"
        )

    def _wrong(self, job: Job, results: Results | None) -> str | None:
        """How the first results of a native network differ from the CPU's; None: they do not."""
        network: Network | None = getattr(self._backend, "network", None)
        if results is None or network is None or network in _compared:
            return None
        done = np.flatnonzero(results["status"] != _core.Status.interrupted)[:COMPARED_IMAGES]
        part = job.part(done)
        info = EngineInfo("native", "cpu", _core.isa(), "a comparison")
        own = NativeBackend(network, NetworkVerifier(network), info)
        limit = RunMonitor(len(done), COMPARED_SECONDS, None, time.perf_counter())
        expected, error = own.run(part, limit)
        if error is not None:
            return None
        finished = expected["status"] != _core.Status.interrupted
        if finished.sum() < LEAST_COMPARED:
            return None
        found = {name: values[done[finished]] for name, values in results.items()}
        why = unlike(found, {name: values[finished] for name, values in expected.items()})
        if why is None:
            _compared.add(network)
        return why


def _failure(results: Results | None, error: BaseException | None) -> str | None:
    """Why a GPU has failed before it delivered an image; None: it has not."""
    if not isinstance(error, DeviceError):
        return None
    if results is not None and (results["status"] != _core.Status.interrupted).any():
        return None
    return str(error)
