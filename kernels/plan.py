"""A network's rounds: which kernels run, on which buffers, in which order.

`Plan.launches` gives machine code with packed arguments for a program that launches it inside a
CUDA graph; `Plan.run` runs it on tensors: on a GPU the same code with the same arguments, on the
CPU, with TRITON_INTERPRET=1, in Triton's interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ahead import Compiled, Launch, launch
from .configs import Config, config_for
from .driver import Loaded
from .geometry import Geometry
from .steps import ALIGNED, PARAMETERS, Step, moments, round_steps

if TYPE_CHECKING:
    from advcore.network import Network

PRECISION = "tf32x3"
"""Of the products where none is asked for."""

VIEWS = {"ints": torch.int32, "floats": torch.float32, "longs": torch.int64}
"""Those that are `problems` again."""

ADDRESSES = tuple(name for name in PARAMETERS if name not in (*VIEWS, "confidence"))
"""What a caller gives."""


class Plan:
    """The rounds of a network on one kind of device.

    Parameters
    ----------
    network : advcore.network.Network
    precision : one of `precision.PRECISIONS`
    arch : int or str
        Compute capability: 90 or "cuda:90" is sm_90.
    config : Config, optional
        Tile sizes; by default those of `configs.config_for` for a small run.
    """

    def __init__(
        self,
        network: Network,
        precision: str = PRECISION,
        arch: int | str = 90,
        config: Config | None = None,
    ) -> None:
        self.network = network
        self.precision = precision
        self.arch = int(str(arch).removeprefix("cuda:"))
        self.geometry = Geometry.of(network, precision)
        self.config = config or config_for(self.geometry, precision, slots=1)
        self._kernels: dict[int, list[Loaded]] = {}

    @property
    def name(self) -> str:
        """Kernels, precision and tile in words, for the records of a run."""
        config = self.config
        kind = "propagate" if config.fused else "linear"
        tile = f"{config.BM}x{config.BN}x{config.BK}"
        return f"{kind} {self.precision} {tile} warps {config.warps} stages {config.stages}"

    @functools.cached_property
    def packed(self) -> Tensor:
        """The packed weights on the CPU."""
        return self.geometry.pack(self.network)

    def weights(self, device: torch.device | str = "cpu") -> Tensor:
        """The packed weights on a device: one float32 tensor."""
        return self.packed.to(device)

    def buffers(self, slots: int) -> dict[str, int]:
        """Floats of the further buffers for so many slots.

        None needs to be filled beforehand. `widths` is kept from round to round, the others belong
        to one round.
        """
        row = self.geometry.columns[-1]
        return {
            "widths": slots * self.geometry.layers,
            "h": slots * row,
            "dh": slots * row,
            "moments": slots * moments(self.geometry, self.config)[-1],
        }

    @functools.cached_property
    def steps(self) -> list[Step]:
        """The kernels of a round in their order."""
        return round_steps(self.geometry, self.config, self.precision)

    @functools.cached_property
    def compiled(self) -> list[Compiled]:
        """Machine code of each step."""
        return [step.compiled(self.arch) for step in self.steps]

    def launches(
        self, addresses: Mapping[str, int], *, slots: int, confidence: float
    ) -> list[Launch]:
        """A round as launches of machine code.

        addresses: device memory by the names of `ADDRESSES`; all but rows, count and fractions
        are multiples of 16. slots: the most rows of a round.
        """
        values = self._values(addresses, confidence)
        values |= dict.fromkeys(VIEWS, addresses["problems"])
        for name in ALIGNED:
            if values[name] % 16:
                raise ValueError(f"{name} must be a multiple of 16, got {values[name]}")
        return [
            launch(code, step.grid(slots), tuple(values[name] for name in PARAMETERS))
            for code, step in zip(self.compiled, self.steps, strict=True)
        ]

    def run(self, tensors: Mapping[str, Tensor], *, slots: int, confidence: float) -> None:
        """A round on tensors, on torch's current stream.

        tensors: flat, by the names of `ADDRESSES`: problems bytes, rows and count int32, the others
        float32.
        """
        if tensors["vectors"].is_cuda:
            addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
            with torch.cuda.device(tensors["vectors"].device):
                launches = self.launches(addresses, slots=slots, confidence=confidence)
                for kernel, launch in zip(self._loaded(), launches, strict=True):
                    kernel.launch(launch)
            return
        problems = tensors["problems"].view(torch.int8)
        values = self._values({**tensors, "problems": problems}, confidence)
        values |= {name: problems.view(kind) for name, kind in VIEWS.items()}
        for step in self.steps:
            step.kernel[(step.grid(slots),)](
                *(values[name] for name in PARAMETERS), **step.constants, **step.options
            )

    def _loaded(self) -> list[Loaded]:
        """The kernels on the current device."""
        device = torch.cuda.current_device()
        if device not in self._kernels:
            torch.cuda.synchronize()  # torch's context becomes current in this thread
            self._kernels[device] = [Loaded(code) for code in self.compiled]
        return self._kernels[device]

    def _values(self, given: Mapping[str, Any], confidence: float) -> dict[str, Any]:
        if given.keys() != set(ADDRESSES):
            raise ValueError(f"addresses must be those of {ADDRESSES}, got {sorted(given)}")
        return {**given, "confidence": confidence}


def plan_for(
    network: Network, device: torch.device | str, slots: int, precision: str = PRECISION
) -> Plan:
    """The plan of a run with so many slots on a GPU that is here."""
    config = config_for(Geometry.of(network, precision), precision, slots)
    return Plan(network, precision, architecture(device), config)


def architecture(device: torch.device | str) -> int:
    """Compute capability of a GPU: 90 is sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
