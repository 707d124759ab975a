"""The back ends of the engine as the tests see them, each with its tolerance.

A test that takes the fixture ``backend`` runs once for each entry of `BACKENDS`. A new back end
inherits these tests by an entry of its own.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Network, _core

from .native_build import ISAS, isas_of_this_cpu
from .same_results import same
from .worker import Worker


@dataclass(frozen=True)
class Tolerance:
    """How far distortions may be from those of the native engine of this process, relatively.

    The last bits of the logits decide in which round a search stops, and now and then in which
    minimum. So ``share`` of the images must be within ``near``, and all within ``far``.
    """

    near: float
    share: float
    far: float


class Backend:
    """A way to run an attack on an `advcore.Network`.

    Attributes
    ----------
    name : str
        Name in the names of the tests.
    path : str
        Value of ``Result.engine["path"]``.
    tolerance : Tolerance or None
        How far results on smooth networks may be from those of the native engine of this process;
        None where they must have the same bits.
    exact : bool
        Whether the arrays of an image have the same bits in any batch.
    smooths : bool
        Whether activations can be smoothed. Without it more searches end in a worse minimum.
    fast : bool
        Whether an evaluation of a small network takes a few microseconds, as no Python is in it.
    long : int
        Images of a small network that take more than a second on one thread.
    """

    name: str
    path: str
    tolerance: Tolerance | None = None
    exact = True
    smooths = True
    fast = True
    long = 100_000

    def missing(self) -> str:
        """Return why this machine cannot run it. Empty: it can."""
        return ""

    def model(self, network: Network) -> Any:
        """Return the model to pass to ``minimize_distortion``."""
        return network

    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        """Result of ``minimize_distortion`` on this back end."""
        result = advcore.minimize_distortion(self.model(network), images, targets, **options)
        assert result.engine["path"] == self.path
        return result

    def assert_agrees(self, found: Any, native: Any) -> None:
        """Compare a result of this back end with that of the native engine of this process."""
        if self.tolerance is None:
            same(found, native)
            return
        np.testing.assert_array_equal(found.success, native.success)
        assert_near(found.distortion, native.distortion, self.tolerance)
        mean = native.distortion[native.success].mean()
        assert found.distortion[found.success].mean() == pytest.approx(mean, rel=self.tolerance.far)

    def close(self) -> None:
        """Release what the runs have kept."""


def assert_near(a: Any, b: Any, tolerance: Tolerance) -> None:
    """Compare distortions of the same images, infinite where there is none."""
    finite = np.isfinite(b)
    np.testing.assert_array_equal(np.isfinite(a), finite)
    gap = np.abs(a[finite] - b[finite])
    assert (gap <= tolerance.near * b[finite] + 1e-5).mean() >= tolerance.share
    assert (gap <= tolerance.far * b[finite] + 1e-5).all()


class Native(Backend):
    """The native engine on one instruction set, in this process or in a process of its own."""

    path = "native"

    def __init__(self, isa: str) -> None:
        self.name = f"native-{isa}"
        self._isa = isa
        self._here = isa == _core.isa()
        self._worker: Worker | None = None
        self.tolerance = None if self._here else Tolerance(1e-3, 0.95, 1e-2)

    def missing(self) -> str:
        return "" if self._isa in isas_of_this_cpu() else f"this CPU lacks {self._isa}"

    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        if self._here:
            return super().attack(network, images, targets, **options)
        if self._worker is None:
            self._worker = Worker(self._isa)
            assert self._worker.isa == self._isa
        result = self._worker.attack(network, images, targets, **options)
        assert result.engine["path"] == self.path
        assert result.engine["isa"] == self._isa
        return result

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None


def callable_form(network: Network, device: str = "cpu") -> Any:
    """The network as a function of torch, which is not lowered."""
    module = network.to_torch().to(device)
    return lambda x: module(x if network.convolutional else x.flatten(1))


class Torch(Backend):
    """A torch callable, which is not lowered: the oracle of torch, the solver on the CPU."""

    name = path = "torch"
    tolerance = Tolerance(1e-3, 0.95, 1e-2)
    exact = False
    fast = False
    long = 20_000

    def missing(self) -> str:
        return "" if importlib.util.find_spec("torch") else "torch is not installed"

    def model(self, network: Network) -> Any:
        return callable_form(network)

    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        return super().attack(network, images, targets, **{"threads": 1, **options})


class RowWise:
    """A network as a NumPy model in float64, one image at a time."""

    def __init__(self, network: Network) -> None:
        from advcore.reference import NumpyNetwork

        self._network = NumpyNetwork(network)
        self._images: Any = None

    def forward(self, x: Any) -> Any:
        self._images = x.reshape(len(x), -1).astype(np.float64)
        logits = [self._network.forward(image).copy() for image in self._images]
        return np.stack(logits) if logits else np.empty((0, self._network.classes))

    def backward(self, dlogits: Any) -> Any:
        gradients = np.empty(self._images[: len(dlogits)].shape)
        for image, rows, gradient in zip(self._images, dlogits, gradients, strict=False):
            self._network.forward(image)
            gradient[:] = self._network.backward(rows)
        return gradients


class Numpy(Backend):
    """An object with ``forward`` and ``backward`` in NumPy, the solver on the CPU."""

    name = path = "numpy"
    tolerance = Tolerance(2e-2, 1.0, 2e-2)
    smooths = False
    fast = False
    long = 2_000

    def missing(self) -> str:
        return "" if importlib.util.find_spec("scipy") else "SciPy is not installed"

    def model(self, network: Network) -> Any:
        return RowWise(network)


class Cuda(Backend):
    """The native engine on a GPU. Its products have 21 bits, and its sums another order."""

    name = "cuda-native"
    path = "native"
    tolerance = Tolerance(1e-3, 0.85, 0.2)

    def missing(self) -> str:
        _, devices, reason = _core.cuda_status()
        if not devices:
            return f"no GPU: {reason}"
        for package in ("torch", "triton"):
            if not importlib.util.find_spec(package):
                return f"{package} is not installed"
        import torch

        return "" if torch.cuda.is_available() else "torch sees no GPU"

    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        return super().attack(network, images, targets, device="cuda", **options)


class CudaTorch(Cuda):
    """A torch callable on a GPU, and the solver there too."""

    name = "cuda-torch"
    path = "torch"
    exact = False
    fast = False
    long = 20_000

    def model(self, network: Network) -> Any:
        return callable_form(network, "cuda")


BACKENDS: tuple[Backend, ...] = (
    *(Native(isa) for isa in ISAS), Torch(), Numpy(), Cuda(), CudaTorch()
)  # fmt: skip
