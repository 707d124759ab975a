"""The test that the solver passes on a GPU before it is used there. It imports torch.

It attacks small networks with the solver on the GPU and with the CPU's engine, and compares. The
rounds have fewer slots than images, so that images leave and enter. It is meant to take less than a
second; the whole is done once for a GPU, see `gpu_record`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..data import embedded_digits, embedded_network, random_targets
from ..errors import NoAnswer
from ..network import Layer, Network
from ..options import Options
from ..oracles import TorchOracle, memory
from .agreement import unlike
from .backends import EngineInfo, NetworkVerifier, Results
from .cuda_native import module_on
from .cuda_rounds import HANG_SECONDS, OracleCudaBackend
from .job import Job, RunMonitor
from .native import NativeBackend
from .params import Facts, engine_params

IMAGES = 32
SLOTS = 8
MARGIN = 1e-3
"""Margin, in logits, that the searches are asked for: far above the rounding of both."""


@dataclass(frozen=True)
class Case:
    """A network and a job."""

    network: Network
    job: Job


def cases() -> tuple[Case, ...]:
    """Digits with targets; a small ReLU network, untargeted, with own bounds and two starts."""
    digits, labels = embedded_digits()
    flat = digits[:IMAGES].reshape(IMAGES, -1)
    targets = random_targets(labels[:IMAGES], classes=10, seed=0).astype(np.int32)
    box = np.zeros(flat.shape[1], np.float32), np.ones(flat.shape[1], np.float32)
    network = embedded_network()
    whole = Case(network, _job(network, flat, targets, True, box, None))

    rng = np.random.default_rng(0)
    small = Network([_layer(rng, 20, 24, "relu"), _layer(rng, 24, 5, "identity")])
    images = rng.random((IMAGES, 20), dtype=np.float32)
    near = (np.maximum(images - 0.7, 0), np.minimum(images + 0.7, 1))
    noise = rng.normal(0, 0.5, (IMAGES, 2, 20)).astype(np.float32)
    starts = np.clip(images[:, None] + noise, near[0][:, None], near[1][:, None])
    own = small.forward(images).argmax(axis=1).astype(np.int32)
    return whole, Case(small, _job(small, images, own, False, near, starts))


def _layer(rng: np.random.Generator, inputs: int, outputs: int, activation: str) -> Layer:
    weight = rng.normal(0, 0.6, (outputs, inputs)).astype(np.float32)
    return Layer(weight, rng.normal(0, 0.3, outputs).astype(np.float32), activation)


def _job(
    network: Network,
    images: NDArray[np.float32],
    labels: NDArray[np.int32],
    targeted: bool,
    box: tuple[Any, Any],
    starts: NDArray[np.float32] | None,
) -> Job:
    facts = Facts(
        n=images.shape[1],
        classes=network.classes,
        kind=network.kind,
        targeted=targeted,
        required_margin=MARGIN,
        starts=0 if starts is None else starts.shape[1],
    )
    params = engine_params(Options(effort="fast"), facts)
    return Job(params, np.ascontiguousarray(images), labels, *box, starts)


def self_test(device: Any) -> str | None:
    """Why the solver must not run on a torch device; None: its results are those of the CPU.

    Raises
    ------
    NoAnswer
        The device hangs.
    MemoryError
        There is no memory for the test.
    """
    for case in cases():
        try:
            found = _on_device(case, device)
        except NoAnswer:
            raise
        except Exception as error:  # of the engine or of torch: of many types
            if memory.ran_out(error) or memory.ran_out(error.__cause__):
                raise MemoryError(str(error)) from error
            return str(error) or type(error).__name__
        why = unlike(found, _on_cpu(case))
        if why is not None:
            return why
    return None


def _on_device(case: Case, device: Any) -> Results:
    """Results of the network as a callable of torch, with the solver on the device."""
    module = module_on(case.network, device)
    images = case.job.images
    oracle = TorchOracle(lambda x: module(x), (images.shape[1],), device, images[:2])
    info = EngineInfo("torch", str(device), _core.isa(), "a test")
    backend = OracleCudaBackend(oracle, info, SLOTS, HANG_SECONDS)
    return _results(backend, case.job)


def _on_cpu(case: Case) -> Results:
    info = EngineInfo("native", "cpu", _core.isa(), "a test")
    backend = NativeBackend(case.network, NetworkVerifier(case.network), info, threads=1)
    return _results(backend, case.job)


def _results(backend: Any, job: Job) -> Results:
    monitor = RunMonitor(len(job.images), None, None, time.perf_counter())
    results, error = backend.run(job, monitor)
    if error is not None:
        raise error
    found: Results = results
    return found
