"""How a model is evaluated: the choice between the native engine, torch and NumPy; its trials."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._extras import require
from ..errors import ModelRaised
from ..network import Network, Unsupported
from ..oracles import NumpyOracle, Oracle, TorchOracle, memory
from ..oracles.logits import batched, difference, noise, sigmoid_output, size, softmax_output

Floats = NDArray[np.float32]
SAMPLE = 64
"""Images on which a model is tried, and the noise of its logits is measured."""
ALONE = 8
"""Images of them that are also evaluated one at a time."""
RANDOM = 0.02
"""Noise, as a share of the largest logit, that no rounding makes: a model all in bfloat16 is within
0.004 of itself in float32, over 50 layers."""
WIDE = 256.0
"""Distance of bounds from which on they say nothing about the images."""
CONVOLUTION_WEIGHTS = 2_000_000
"""Of modules that are lowered. The engine reads them once an image, torch once a batch: evaluations
of small networks take 1/1.4 to 1/2.8 of torch's time, with 1.1 million weights 1/1.2, with 15
million as long (benchmarks/bench_convolutions.py)."""
KERNELS = 1e-5
"""Noise of the GPU's kernels, as a share of the largest logit: sums of a thousand products that a
tensor core truncates. Emulated without truncation it is 7e-7; on hardware it is not measured."""


@dataclass(frozen=True)
class Path:
    """How the model is evaluated: natively where `network`, else by `oracle`, which also has the
    last word on a lowered module. ``cuda``: the solver, and with it the network, runs on the
    oracle's device.
    """

    network: Network | None
    oracle: Oracle | None
    info: dict[str, str | int | float]
    cuda: bool = False

    @property
    def classes(self) -> int:
        return self.network.classes if self.network is not None else self._oracle.classes

    @property
    def kind(self) -> str:
        return (self.network if self.network is not None else self._oracle).kind

    @property
    def model(self) -> Network | Oracle:
        """What has the last word: the model itself, not its lowered form."""
        return self._oracle if self.network is None or self.oracle is not None else self.network

    @property
    def _oracle(self) -> Oracle:
        assert self.oracle is not None
        return self.oracle

    @property
    def rows(self) -> int:
        """Images of a forward without a backward, which keeps two layers of activations at most."""
        if self.cuda and self.network is not None:
            return 8192
        most = 1024
        if self.network is not None and self.oracle is None:  # it keeps what a backward needs
            most = max(1, min(most, 4 * memory.SAVED // self.network.core.row_bytes))
        return memory.rows(self.oracle, most, 4 * memory.SAVED)

    def forward(self, x: Floats) -> Floats:
        """Logits of the model itself; by halves where there is no memory for all at once."""
        if self.oracle is None:
            assert self.network is not None
            return self.network.forward(x)
        try:
            return self.oracle.forward(x, grad=False)
        except ModelRaised as error:
            if len(x) < 2 or not memory.ran_out(error):
                raise
        memory.release(self.oracle)
        half = len(x) // 2
        return np.concatenate([self.forward(x[:half]), self.forward(x[half:])])


def choose_path(model: Any, sample: Floats, shape: tuple[int, ...], device: Any) -> Path:
    """The native network where the model is one or can be lowered, else its oracle.

    Raises
    ------
    TypeError, ValueError
        The model or the device cannot be used, or the model raised on ``sample`` (B, n).
    """
    if isinstance(model, type):
        raise TypeError(f"model is a class ({model.__name__}); pass an instance")
    on_cpu = device is None or str(device) == "cpu"
    info: dict[str, str | int | float] = {"path": "native", "device": "cpu", "isa": _core.isa()}
    tried = sample if len(sample) else None
    if isinstance(model, Network):
        if math.prod(shape) != model.inputs:
            raise ValueError(
                f"images must have {model.inputs} values each for this network, got shape {shape}"
            )
        reason = "the model is an advcore.Network"
        if on_cpu:
            return Path(model, None, {**info, "reason": reason})
        return _network_on(model, shape, device, tried, reason)
    torch = sys.modules.get("torch")
    is_module = torch is not None and isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "forward") and hasattr(model, "backward"):
        if not on_cpu:
            raise ValueError(f"device must be cpu for a NumPy model, got {device}")
        numpy_oracle = NumpyOracle(model, shape, tried)
        _check_logits(numpy_oracle, sample)
        info = {"path": "numpy", "device": "cpu", "isa": _core.isa()}
        return Path(None, numpy_oracle, {**info, "reason": "forward and backward in NumPy"})
    if not callable(model):
        raise TypeError(
            "model must be a torch.nn.Module, an advcore.Network, or an object with NumPy forward "
            f"and backward, got {type(model).__name__}"
        )
    # The flags of an exported program or traced graph say nothing: its mode was fixed before.
    draws = getattr(model, "draws", False) is True  # averaged.Averaged
    if is_module and not draws and not isinstance(model, sys.modules["torch"].fx.GraphModule):
        training = [
            name or "the module"
            for name, m in model.named_modules()
            if getattr(m, "training", False)
        ]  # torch.jit.freeze removes it
        if training:
            raise ValueError(
                f"model must be in eval mode, {training[0]} is in training mode; call model.eval()"
            )
    _check_device(device)
    oracle = TorchOracle(model, shape, device, tried, survey=False)
    logits = _check_logits(oracle, sample)
    reason = "a callable that is not a module"
    place = oracle.device.type
    if is_module and (place == "cuda" or (on_cpu and place == "cpu")):
        try:
            network = Network.from_torch(model, shape)
        except Unsupported as unsupported:
            reason = unsupported.reason
        else:
            scale = 1e-3 * (1 + size(logits))
            weights = sum(layer.weight.size for layer in network.layers if layer.geometry)
            if weights > CONVOLUTION_WEIGHTS:
                reason = f"convolutions with {weights:,} weights are as fast through torch"
            elif difference(network.forward(sample), logits) > scale:
                reason = "the lowered network gives other logits"
            else:
                reason = "the module was lowered to a native network"
                if place == "cpu":
                    return Path(network, oracle, {**info, "reason": reason})
                why = _unavailable(network, oracle)
                if why is None:
                    info = {**info, "device": str(oracle.device), "reason": reason}
                    return Path(network, oracle, info, cuda=True)
                reason = why
    oracle.survey()
    info = {"path": "torch", "device": str(device or oracle.device), "isa": _core.isa()}
    cuda = oracle.device.type == "cuda"
    if cuda:
        _, devices, why = _core.cuda_status()
        if not devices and device is not None:
            raise ValueError(
                f"device={str(device)!r} needs the solver's CUDA engine ({why}); pass device=None "
                "and a model on the GPU to solve on the CPU"
            )
        cuda = devices > 0
        info["solver"] = str(oracle.device) if cuda else f"cpu ({why})"
    return Path(None, oracle, {**info, "reason": reason}, cuda)


def _network_on(
    network: Network, shape: tuple[int, ...], device: Any, tried: Floats | None, reason: str
) -> Path:
    """A native network on a GPU, with its torch form for the last word; or by that form alone."""
    if not str(device).startswith("cuda"):
        raise ValueError(f"device must be cpu or cuda for a native network, got {device}")
    require("torch", "torch", f"device={str(device)!r}")
    _check_device(device)
    from .cuda_native import module_on

    oracle = TorchOracle(module_on(network, device), shape, device, tried, survey=False)
    why = _unavailable(network, oracle)
    info: dict[str, str | int | float] = {"device": str(device), "isa": _core.isa()}
    if why is None:
        return Path(network, oracle, {"path": "native", **info, "reason": reason}, cuda=True)
    oracle.survey()
    cuda = _core.cuda_status()[1] > 0
    info["solver"] = str(device) if cuda else f"cpu ({why})"
    return Path(None, oracle, {"path": "torch", **info, "reason": why}, cuda)


def _unavailable(network: Network, oracle: TorchOracle) -> str | None:
    from .cuda_native import unavailable

    return unavailable(network, oracle.device)


def _check_device(device: Any) -> None:
    """Raises unless torch can hold a tensor there."""
    torch = require("torch", "torch", "a model without NumPy forward and backward")
    if device is None:
        return
    try:
        torch.empty(0, device=torch.device(device))
    except Exception as error:  # of many types, and of many lines
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            reason = "torch.cuda.is_available() is False"
        raise ValueError(
            f"device must be one that torch can use here, got {str(device)!r} ({reason})"
        ) from None


def _check_logits(oracle: Oracle, sample: Floats) -> Floats:
    """The logits of the sample (B, n), which may be empty."""
    if not len(sample):
        return np.empty((0, oracle.classes), np.float32)
    logits = oracle.forward(sample, grad=False)
    if softmax_output(logits):
        raise ValueError(
            "model must return logits, got rows in [0, 1] that sum to 1: the output of a softmax; "
            "pass the model without it"
        )
    if sigmoid_output(logits):
        warnings.warn(
            "the model's one logit is always in [0, 1]: the output of a sigmoid? Pass the "
            "model without it; class 0 is predicted where the logit is below 0",
            stacklevel=4,
        )
    return logits


def probes(lo: Floats, hi: Floats) -> Floats:
    """Random images inside the bounds, (SAMPLE, n).

    Not the caller's, and in [0, 1] where values or images have bounds of their own: what is
    measured on them must not depend on which images are in the run. Bounds wider than 8-bit values
    are none: logits at +-1e6 differ by more than those of any image.
    """
    u = np.random.default_rng(0).random((SAMPLE, lo.shape[-1]), dtype=np.float32)
    if lo.min() != lo.max() or hi.min() != hi.max():
        return u
    low, high = float(lo.min()), float(hi.min())
    if high - low > WIDE:
        low = min(max(0.0, low), high - 1)
        high = low + 1
    return (low + (high - low) * u).astype(np.float32)


def logit_noise(path: Path, x: Floats) -> float:
    """Rounding of the logits: by how much forwards that sum in another order differ on ``x``.

    Of a model: between batch sizes and, where it was lowered, from the engine's. Of a `Network`:
    from the same one with all units in reverse.

    Raises
    ------
    ValueError
        The logits of a model differ by more than rounding.
    """
    if path.oracle is None:
        assert path.network is not None
        return noise(path.network.forward, path.network.summed_otherwise, x)
    few = x[:ALONE]
    logits = path.forward(few)
    alone = difference(logits, batched(path.forward, few, 1))
    scale = size(logits)
    limit = RANDOM * scale + 1e-6
    if alone > limit:
        again = difference(logits, path.forward(few))
        if again > limit:
            raise ValueError(
                "model must be deterministic: logits of the same images differ by up to "
                f"{again:.2g} between two forwards (dropout or another random layer active? "
                "advcore.models.averaged makes one of a random model)"
            )
        raise ValueError(
            "model must give an image the same logits in any batch: they differ by up to "
            f"{alone:.2g} between batches of {ALONE} and of 1 (statistics of the batch in use?)"
        )
    if path.network is None:
        return alone
    if path.cuda:  # the kernels are not asked: what tensor cores round
        alone = max(alone, KERNELS * scale)
    return max(alone, noise(path.network.forward, path.forward, x))
