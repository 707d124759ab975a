"""A network's rounds: which kernels run, on which buffers, in which order.

`Plan.launches` gives machine code with packed arguments, for a program that launches it inside a
CUDA graph. `Plan.run` runs a round on tensors. On a GPU it runs the same code with the same
arguments. On the CPU it needs TRITON_INTERPRET=1 and runs in Triton's interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .configs import Config, config_for
from .geometry import Geometry
from .launch import LoadedKernel
from .machine_code import Launch, MachineCode, make_launch
from .steps import ALIGNED, PARAMETERS, Step, moment_offsets, round_steps

if TYPE_CHECKING:
    from advcore.network import Network

PRECISION = "tf32x3"
"""Precision of the products, unless another is chosen. It multiplies on tensor cores."""

VIEWS = {"ints": torch.int32, "floats": torch.float32, "longs": torch.int64}
"""Parameters that are `problems` once more, seen as numbers of another type."""

ADDRESSES = tuple(name for name in PARAMETERS if name not in (*VIEWS, "confidence"))
"""Names of the buffers that a caller passes."""


class Plan:
    """The rounds of a network on one kind of device.

    Parameters
    ----------
    network : advcore.network.Network
    precision : one of `precision.PRECISIONS`
    arch : int or str
        Compute capability: 90 or "cuda:90" is sm_90.
    config : Config, optional
        Tile sizes. None: those of `configs.config_for` for a small run.
    """

    def __init__(
        self,
        network: Network,
        precision: str = PRECISION,
        arch: int | str = 90,
        config: Config | None = None,
    ) -> None:
        self._layers = network.dense_layers  # so that a cache by network can let the network go
        self.precision = precision
        self.arch = int(str(arch).removeprefix("cuda:"))
        self.geometry = Geometry.from_network(network, precision)
        self.config = config or config_for(self.geometry, precision, slots=1)
        self._kernels: dict[int, list[LoadedKernel]] = {}

    @property
    def name(self) -> str:
        """Kernels, precision and tile sizes as a text, which the result of a run shows."""
        config = self.config
        kind = "propagate" if config.fused else "linear"
        tile = f"{config.BM}x{config.BN}x{config.BK}"
        return f"{kind} {self.precision} {tile} warps {config.warps} stages {config.stages}"

    @functools.cached_property
    def packed(self) -> Tensor:
        """The packed weights on the CPU."""
        return self.geometry.pack(self._layers)

    def weights(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the packed weights on a device, one float32 tensor."""
        return self.packed.to(device)

    def buffers(self, slots: int) -> dict[str, int]:
        """Return the numbers of floats of the further buffers for so many slots.

        Their contents before the first round do not matter. Those of `scales` are kept from round
        to round, those of the others within a round.
        """
        row = self.geometry.columns[-1]
        return {
            "scales": slots * self.geometry.layers,
            "h": slots * row,
            "dh": slots * row,
            "moments": slots * moment_offsets(self.geometry, self.config)[-1],
        }

    @functools.cached_property
    def steps(self) -> list[Step]:
        """The kernels of a round in their order."""
        return round_steps(self.geometry, self.config, self.precision)

    @functools.cached_property
    def compiled(self) -> list[MachineCode]:
        """Machine code of each step."""
        return [step.compiled(self.arch) for step in self.steps]

    def launches(
        self, addresses: Mapping[str, int], *, slots: int, confidence: float
    ) -> list[Launch]:
        """Return a round as launches of machine code.

        Parameters
        ----------
        addresses : device memory by the names of `ADDRESSES`. All but rows, count and temperatures
            are multiples of 16.
        slots : the largest number of rows of a round.
        confidence : the margin required, in logits.

        Raises
        ------
        ValueError : an address is missing, unknown or not a multiple of 16.
        """
        values = self._values(addresses, confidence)
        values |= dict.fromkeys(VIEWS, addresses["problems"])
        for name in ALIGNED:
            if values[name] % 16:
                raise ValueError(f"{name} must be a multiple of 16, got {values[name]}")
        return [
            make_launch(code, step.grid(slots), tuple(values[name] for name in PARAMETERS))
            for code, step in zip(self.compiled, self.steps, strict=True)
        ]

    def run(self, tensors: Mapping[str, Tensor], *, slots: int, confidence: float) -> None:
        """Run a round on tensors, on torch's current stream.

        Parameters
        ----------
        tensors : flat tensors by the names of `ADDRESSES`. `problems` are bytes, `rows` and `count`
            int32, the others float32.
        slots : the largest number of rows of a round.
        confidence : the margin required, in logits.
        """
        if tensors["vectors"].is_cuda:
            addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
            with torch.cuda.device(tensors["vectors"].device):
                launches = self.launches(addresses, slots=slots, confidence=confidence)
                for kernel, launch in zip(self._load(), launches, strict=True):
                    kernel.launch(launch)
            return
        problems = tensors["problems"].view(torch.int8)
        values = self._values({**tensors, "problems": problems}, confidence)
        values |= {name: problems.view(kind) for name, kind in VIEWS.items()}
        for step in self.steps:
            step.kernel[(step.grid(slots),)](
                *(values[name] for name in PARAMETERS), **step.constants, **step.options
            )

    def _load(self) -> list[LoadedKernel]:
        """Return the kernels, loaded on the current device."""
        device = torch.cuda.current_device()
        if device not in self._kernels:
            torch.cuda.synchronize()  # torch's context becomes current in this thread
            self._kernels[device] = [LoadedKernel(code) for code in self.compiled]
        return self._kernels[device]

    def _values(self, buffers: Mapping[str, Any], confidence: float) -> dict[str, Any]:
        if buffers.keys() != set(ADDRESSES):
            raise ValueError(f"addresses must be those of {ADDRESSES}, got {sorted(buffers)}")
        return {**buffers, "confidence": confidence}


def plan_for(
    network: Network, device: torch.device | str, slots: int, precision: str = PRECISION
) -> Plan:
    """Return the plan of a run with so many slots, on a GPU of this machine."""
    config = config_for(Geometry.from_network(network, precision), precision, slots)
    return Plan(network, precision, architecture(device), config)


def architecture(device: torch.device | str) -> int:
    """Return the compute capability of a GPU: 90 is sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
