"""The choice of a back end for a model, and the trials that a model must pass before."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._extras import require
from ..errors import OutOfTime, warn_caller
from ..network import Network, Unsupported
from ..options import Options
from ..oracles import NumpyOracle, Oracle, TorchOracle
from ..oracles.inner_modules import buffers_kept, check_eval_mode
from ..oracles.logits import (
    batched,
    difference,
    largest_logit,
    sigmoid_output,
    softmax_output,
)
from ..oracles.module_of import ModuleOf, module_of
from ..oracles.survey import survey_counts
from ..oracles.torch_calls import torch_threads
from . import gpu
from .backends import (
    SINGLE_EVALUATIONS,
    Backend,
    EngineInfo,
    NetworkVerifier,
    OracleVerifier,
    Verifier,
)
from .batching import batch_rule, find_rows
from .job import TrialClock
from .native import NativeBackend
from .readings import READINGS, Reading, lower
from .rounds import OracleBackend

Floats = NDArray[np.float32]
SQUASHED = {"tanh": math.tanh, "sigmoid": lambda z: 0.5 + 0.5 * math.tanh(0.5 * z)}
"""Functions behind the logits of a native network."""
UNSQUASHED_CONFIDENCE = 1e-4
"""Confidence, the default, up to which a margin of the logits before a squashing function at the
model's end stands for one of the outputs."""
OUT_OF_TIME = "time_limit passed while the model was tried"
SAME_LOGITS = 1e-3
"""Difference of logits, relative to the largest, up to which two forms are one model."""
CONVOLUTION_WEIGHTS = 8_000_000
"""Weights of convolutions up to which a module is lowered: evaluations are faster than by torch.
Those of small networks take 1/1.4 to 1/2.8 of torch's time, with 1.1 million 1/1.1 to 1/1.2, with 7
million 1/1.3 to 1/1.6, with 15 million 1 to 1/1.1 (benchmarks/bench_convolutions.py)."""
GRAPH_WEIGHTS = 20_000
"""The same of networks with branches or pooling by windows that overlap, to 1/1.5 of torch's time:
with 19,000 weights 1/1.5 to 1/2, with 43,000 1/1.3 to 1/1.7, with a million 1/0.9 to 1/1.2."""


def choose_backend(
    model: Any,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    clock: TrialClock | None = None,
    count: int | None = None,
) -> Backend:
    """The native engine where the model is a network or can be lowered to one, else its oracle.

    Parameters
    ----------
    sample : ndarray (B, n) float32
        Images to try the model on; B may be 0.
    shape : tuple of int
        Shape of one image as the model takes it.
    options : Options
        Its device, batch size and threads are kept by the back end.
    clock : TrialClock, optional
        Ends the trials when the time limit has passed.
    count : int, optional
        Images of the run; by default as many as a batch may have.

    Raises
    ------
    TypeError, ValueError
        The model or the device cannot be used, or the model raised on ``sample``.
    """
    if isinstance(model, type):
        raise TypeError(f"model is a class ({model.__name__}); pass an instance")
    with torch_threads(options.threads):
        clock = clock or TrialClock(None, 0.0)
        backend = _tried_backend(model, sample, shape, options, clock, count)
        oracle = getattr(backend.verifier, "oracle", None)
        if oracle is not None and oracle.batches is not None:
            find_rows(oracle, sample, options)
            backend.info.batches = str(oracle.batches)
        return backend


def _tried_backend(
    model: Any,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    clock: TrialClock,
    count: int | None,
) -> Backend:
    if isinstance(model, Network):
        return _network_backend(model, sample, shape, options, count)
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "forward") and hasattr(model, "backward"):
        return _numpy_backend(model, sample, shape, options, clock, count)
    found = module_of(model)
    if not callable(model):  # a wrapper of another library stands for the module in it
        if found.module is None:
            raise TypeError(
                "model must be a torch.nn.Module, an advcore.Network, or an object with NumPy "
                f"forward and backward, got {type(model).__name__} ({found.note})"
            )
        check_eval_mode(found.inner)
        backend = _torch_backend(found.module, found, sample, shape, options, clock, count)
        _check_predictions(model, backend.verifier, sample, shape)
        return backend
    if is_module:
        check_eval_mode(model)
    return _torch_backend(model, found, sample, shape, options, clock, count)


def _check_predictions(
    wrapper: Any, verifier: Verifier, sample: Floats, shape: tuple[int, ...]
) -> None:
    """Raises where the module found in a wrapper that is no callable has other logits than it."""
    few = sample[:SINGLE_EVALUATIONS]
    if not len(few):
        return
    logits = verifier.forward(few)
    outputs = np.asarray(wrapper.predict(few.reshape(len(few), *shape)), np.float32)
    tolerance = SAME_LOGITS * (1 + largest_logit(logits))
    logits = logits[:, -outputs.shape[1] :]  # of a single logit the second
    if outputs.shape != logits.shape or difference(outputs, logits) > tolerance:
        raise ValueError(
            f"model must give the logits of the module in it, predict of the "
            f"{type(wrapper).__name__} gives others; pass the module"
        )


def _on_cpu(options: Options) -> bool:
    """Whether the CPU, or no device, was asked for."""
    return options.device is None or str(options.device) == "cpu"


def _network_backend(
    network: Network,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    count: int | None,
) -> Backend:
    if math.prod(shape) != network.inputs:
        raise ValueError(
            f"images must have {network.inputs} values each for this network, got shape {shape}"
        )
    reason = "the model is an advcore.Network"
    if _on_cpu(options):
        info = EngineInfo("native", "cpu", _core.isa(), reason)
        return _native_backend(network, NetworkVerifier(network), info, options)
    device = options.device
    if not str(device).startswith("cuda"):
        raise ValueError(f"device must be cpu or cuda for a native network, got {device}")
    require("torch", "torch", f"device={str(device)!r}")
    _check_device(device)
    from .cuda_native import module_on

    trial = sample if len(sample) else None
    rule = batch_rule(options, options.batch_size, count)
    oracle = TorchOracle(
        module_on(network, device), shape, device, trial, survey=False, batch_rule=rule
    )
    return _gpu_backend(network, oracle, reason, options)


def _numpy_backend(
    model: Any,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    clock: TrialClock,
    count: int | None,
) -> Backend:
    if not _on_cpu(options):
        raise ValueError(f"device must be cpu for a NumPy model, got {options.device}")
    sample = _trial_rows(sample, options.batch_size)
    trial = sample if len(sample) else None
    rule = batch_rule(options, options.batch_size, count)
    oracle = NumpyOracle(model, shape, trial, options.batch_size, clock.check, rule)
    _check_logits(oracle, sample, options.batch_size)
    info = EngineInfo("numpy", "cpu", _core.isa(), "forward and backward in NumPy")
    return OracleBackend(oracle, info, options.batch_size)


def _native_backend(
    network: Network, verifier: Verifier, info: EngineInfo, options: Options
) -> NativeBackend:
    searched = network.unsquashed() if _unsquashes(options) else network
    squash = None if searched is network else SQUASHED[network.layers[-1].activation]
    return NativeBackend(
        searched, verifier, info, options.batch_size, options.threads, network, squash
    )


def _kernels_missing(network: Network, oracle: TorchOracle, options: Options) -> str | None:
    """Why the GPU cannot run the network natively; None: it can."""
    from .cuda_native import unavailable

    if _unsquashes(options) and network.unsquashed() is not network:
        return "the kernels do not see the logits before a squashing function"
    return unavailable(network, oracle.device)


def _survey(oracle: TorchOracle, options: Options) -> None:
    """Look for what the search may change in the model, unless it is to see the model alone."""
    if options.smoothing:
        oracle.survey(_unsquashes(options))


def _unsquashes(options: Options) -> bool:
    """Whether the search may see the logits before a squashing function at the model's end.

    The paper's loss is a function of the outputs themselves, and so is a confidence.
    """
    by_margin = options.smoothing and options.loss == "margin"
    return by_margin and options.confidence <= UNSQUASHED_CONFIDENCE


def _trial_rows(sample: Floats, batch_size: int | None) -> Floats:
    """As many of the images as two batches hold, or as many as are evaluated one at a time."""
    return sample if batch_size is None else sample[: max(SINGLE_EVALUATIONS, 2 * batch_size)]


def _torch_backend(
    model: Any,
    found: ModuleOf,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    clock: TrialClock,
    count: int | None,
) -> Backend:
    """A model in the engine where its module can be lowered, else through torch."""
    _check_device(options.device)
    batch_size = options.batch_size
    counts = survey_counts(batch_size)
    if batch_size is not None and _is_lowerable(model, shape, counts, clock):
        batch_size = None  # its margin does not depend on the option
    sample = _trial_rows(sample, batch_size)
    oracle, logits, reading = _tried_oracle(
        model, found, sample, shape, options, clock, batch_size, count
    )
    reason = found.note
    place = oracle.device.type
    lowerable = place == "cuda" or (_on_cpu(options) and place == "cpu")
    network: Network | None = None
    if len(logits) != len(sample):
        reason, lowerable = OUT_OF_TIME, False
    if lowerable and found.module is not None:
        known = None if reading is None else reading.lowered
        if known is None or not _agrees(known[0], sample, logits):
            if known is not None and reading is not None:
                reading.graph = None  # it is of another function

            arguments = (found.module, shape, reading, counts, clock.check)
            known = _lowered(lambda: lower(*arguments), sample, logits)
        network, reason = known
        if reading is not None and (network is None or reading.graph is not None):
            reading.lowered = known
        reason = f"{found.note}: {reason}" if found.note else reason
        if network is not None and place == "cpu":
            info = EngineInfo("native", "cpu", _core.isa(), reason)
            return _native_backend(
                network, OracleVerifier.limited(oracle, batch_size), info, options
            )
    if place == "cuda":
        return _gpu_backend(network, oracle, reason, options, batch_size)
    if options.smoothing and not oracle.surveyed:
        oracle.survey(_unsquashes(options))
        with suppress(OutOfTime):
            clock.check()  # a survey that was cut short has found nothing
            if reading is not None and reading.holds(oracle.graph):
                reading.oracle = oracle.with_model(None)
    info = EngineInfo("torch", str(options.device or oracle.device), _core.isa(), reason)
    info.smoothed = oracle.smoothed
    return OracleBackend(oracle, info, options.batch_size)


def _tried_oracle(
    model: Any,
    found: ModuleOf,
    sample: Floats,
    shape: tuple[int, ...],
    options: Options,
    clock: TrialClock,
    batch_size: int | None,
    count: int | None,
) -> tuple[TorchOracle, Floats, Reading | None]:
    """The oracle of a model, its logits of the sample, and what is kept with its module.

    There is no reading of a model whose module cannot be told, that is on a GPU or compiled, or
    that was not tried to the end.
    """
    unsquashes = _unsquashes(options)
    key = (shape, batch_size, unsquashes, options.smoothing, options.threads, options.deterministic)
    reading = READINGS.find(found, key) if _on_cpu(options) else None
    rule = batch_rule(options, batch_size, count)
    if reading is not None and reading.oracle is not None:
        oracle = reading.oracle.with_model(model, clock.check)
    else:
        trial = sample if len(sample) else None
        with buffers_kept(model):
            oracle = TorchOracle(
                model, shape, options.device, trial, False, batch_size, clock.check, rule
            )
    logits = _check_logits(oracle, sample, batch_size)
    if len(logits) and not oracle.graph_agrees(sample[:1], logits[:1]):  # a reading from before
        READINGS.forget(found)
        return _tried_oracle(model, found, sample, shape, options, clock, batch_size, count)
    if not len(sample) or len(logits) != len(sample) or oracle.batches is not None:
        reading = None
    if reading is not None:
        oracle.noises = reading.noises
        if reading.oracle is None:
            reading.oracle = oracle.with_model(None)
            READINGS.keep(found, reading)
    return oracle, logits, reading


def _gpu_backend(
    network: Network | None,
    oracle: TorchOracle,
    reason: str,
    options: Options,
    batch_size: int | None = None,
) -> Backend:
    """Back ends of a model on a GPU, of which the first that does not fail runs.

    ``network`` is its native form, where it has one. ``reason`` says why it has, or has none.
    ``batch_size`` is the most that a model whose network runs on the CPU gets.
    """
    device, asked = oracle.device, options.device is not None
    unusable = gpu.unusable(device, asked)
    missing = (
        _kernels_missing(network, oracle, options)
        if network is not None and unusable is None
        else None
    )
    size = options.batch_size

    def native_gpu() -> Backend:
        from .cuda_native import NativeCudaBackend

        assert network is not None
        info = EngineInfo("native", str(device), _core.isa(), reason)
        return NativeCudaBackend(network, oracle, info, size)

    def torch_gpu() -> Backend:
        from .cuda_rounds import OracleCudaBackend

        _survey(oracle, options)
        info = EngineInfo("torch", str(device), _core.isa(), missing or reason)
        info.solver, info.smoothed = str(device), oracle.smoothed
        return OracleCudaBackend(oracle, info, size)

    def on_cpu() -> Backend:
        where = f"cpu ({unusable or 'it failed on the GPU'})"
        if network is not None and gpu.setting() != "torch":
            info = EngineInfo("native", "cpu", _core.isa(), reason, where)
            return _native_backend(
                network, OracleVerifier.limited(oracle, batch_size), info, options
            )
        _survey(oracle, options)
        info = EngineInfo("torch", str(device), _core.isa(), reason, where)
        info.smoothed = oracle.smoothed
        return OracleBackend(oracle, info, size)

    levels: list[tuple[str, Callable[[], Backend]]] = []
    if unusable is None:
        if network is not None and missing is None:
            levels.append((gpu.native_on(device), native_gpu))
        levels.append((gpu.solver_on(device), torch_gpu))
    levels.append(("solver on the CPU", on_cpu))
    if len(levels) == 1 or gpu.setting() == "force":
        return levels[0][1]()
    return gpu.Retreating(levels, device)


def _is_lowerable(
    model: Any, shape: tuple[int, ...], counts: tuple[int, int], clock: TrialClock
) -> bool:
    """Whether the model consists of torch's own modules, which take any batch, and is lowered."""
    torch = sys.modules["torch"]
    if not isinstance(model, torch.nn.Module):
        return False
    kinds = {type(part).__module__.partition(".")[0] for part in model.modules()}
    if not kinds <= {"torch", "advcore"}:
        return False
    try:
        lower(model, shape, None, counts, clock.check)
    except (Unsupported, OutOfTime):
        return False
    return True


def _lowered(
    lowered: Callable[[], Network], sample: Floats, logits: Floats
) -> tuple[Network | None, str]:
    """The native network of a torch module, or None, and the reason for either."""
    try:
        network = lowered()
    except OutOfTime:
        return None, OUT_OF_TIME
    except Unsupported as unsupported:
        return None, unsupported.reason
    weights = network.convolution_weights
    if weights > (CONVOLUTION_WEIGHTS if network.is_chain else GRAPH_WEIGHTS):
        what = "convolutions" if network.is_chain else "branches"
        return None, f"{what} with {weights:,} weights are as fast through torch"
    if not _agrees(network, sample, logits):
        return None, "the lowered network gives other logits"
    return network, "the module was lowered to a native network"


def _agrees(network: Network | None, sample: Floats, logits: Floats) -> bool:
    """Whether a native network, if there is one, has the model's logits of the sample."""
    tolerance = SAME_LOGITS * (1 + largest_logit(logits))
    return network is None or difference(network.forward(sample), logits) <= tolerance


def _check_device(device: Any) -> None:
    """Raises unless torch can hold a tensor there."""
    torch = require("torch", "torch", "a model without NumPy forward and backward")
    if device is None:
        return
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except Exception as error:  # of many types, and of many lines
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            reason = "torch.cuda.is_available() is False"
        raise ValueError(
            f"device must be one that torch can use here, got {str(device)!r} ({reason})"
        ) from None
    if place.type == "meta":
        raise ValueError("device must be one that holds values, got 'meta'")


def _check_logits(oracle: Oracle, sample: Floats, batch_size: int | None) -> Floats:
    """The logits of the sample (B, n), which may be empty; raises for those of a softmax.

    They are empty where the time limit passes meanwhile.
    """
    logits = np.empty((0, oracle.classes), np.float32)
    if not len(sample):
        return logits
    with suppress(OutOfTime):
        size = min(batch_size or len(sample), len(sample))
        if oracle.batches is not None:
            size = min(size, oracle.batches.most)
        trial = sample.copy()  # the model may write to its input
        logits = batched(lambda x: oracle.forward(x, grad=False), trial, size)
    if softmax_output(logits):
        raise ValueError(
            "model must return logits, got rows in [0, 1] that sum to 1: the output of a softmax; "
            "pass the model without it"
        )
    if oracle.outputs == 1 and sigmoid_output(logits):
        warn_caller(
            "the model's one logit is always in [0, 1]: the output of a sigmoid? Pass the "
            "model without it; class 0 is predicted where the logit is below 0"
        )
    return logits
