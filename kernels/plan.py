"""A network's rounds: which kernels run, on which buffers, in which order.

`Plan.launches` gives machine code with packed arguments for a program that launches it inside a
CUDA graph; `Plan.run` does the same through Triton's launcher, on a GPU or, with
TRITON_INTERPRET=1, on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .ahead import Compiled, Launch, compile_ahead, launch
from .configs import Config, default_config
from .geometry import Geometry
from .head import head
from .linear import linear_backward, linear_forward
from .network import propagate
from .precision import PRECISIONS

if TYPE_CHECKING:
    from advcore.network import Network

PARAMETERS = {
    "problems": "*i8",  # (slots) struct Problem of csrc/problem.h, three times
    "ints": "*i32",
    "floats": "*fp32",
    "x": "*fp32",  # trial point of slot s at s * stride
    "dx": "*fp32",  # its gradient
    "stride": "i32",  # floats, a multiple of 16
    "rows": "*i32",  # (<= slots) slots of this round
    "count": "*i32",  # (1) how many they are
    "fractions": "*fp32",  # (schedules, stages) temperatures of the schedules
    "confidence": "fp32",  # margin required
    "weights": "*fp32",  # Plan.weights
    "widths": "*fp32",  # (slots, layers), kept from round to round
    "h": "*fp32",  # (rows, floats of a row) values, the logits last; of one round
    "dh": "*fp32",  # the same: derivatives, then gradients
    "moments": "*fp32",  # (rows, 2 * tiles) of one round
}
"""What every kernel takes, in this order, with Triton's types."""

ALIGNED = frozenset(
    ("problems", "ints", "floats", "x", "dx", "stride", "weights", "widths", "h", "dh", "moments")
)
"""Multiples of 16: bytes, and floats for the stride."""

ADDRESSES = tuple(
    name for name in PARAMETERS if name not in ("ints", "floats", "stride", "confidence")
)
"""What a caller gives: `ints` and `floats` are `problems` again."""


@dataclass(frozen=True)
class Step:
    """A kernel of a round with its constants; rows of a program, programs for each such tile."""

    kernel: Any
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    rows: int
    tiles: int = 1

    def grid(self, slots: int) -> int:
        return -(-slots // self.rows) * self.tiles


class Plan:
    """The rounds of a network on one kind of device.

    Parameters
    ----------
    network : advcore.network.Network
    precision : one of `precision.PRECISIONS`
    arch : int or str
        Compute capability, 90 or "cuda:90" for sm_90.
    config : Config, optional
        Tile sizes; the default of `configs.default_config`.
    """

    def __init__(
        self,
        network: Network,
        precision: str = "tf32x3",
        arch: int | str = 90,
        config: Config | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.network = network
        self.precision = precision
        self.arch = int(str(arch).removeprefix("cuda:"))
        self.geometry = Geometry.of(network, precision)
        self.config = config or default_config(self.geometry, precision, self.arch)

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
            "moments": slots * self._moments[-1],
        }

    @property
    def _moments(self) -> tuple[int, ...]:
        return self.geometry.moments(self.config.tiles(self.geometry)["BNS"])

    @functools.cached_property
    def steps(self) -> list[Step]:
        """The kernels of a round in their order."""
        return self._fused() if self.config.fused else self._layered()

    def compiled(self) -> list[Compiled]:
        """Machine code of each step."""
        return self._compiled

    @functools.cached_property
    def _compiled(self) -> list[Compiled]:
        return [
            compile_ahead(step.kernel, PARAMETERS, ALIGNED, step.constants, step.options, self.arch)
            for step in self.steps
        ]

    def launches(
        self, addresses: Mapping[str, int], *, slots: int, stride: int, confidence: float
    ) -> list[Launch]:
        """A round as launches of machine code.

        addresses: device memory by the names of `ADDRESSES`; all but rows, count and fractions
        are multiples of 16 bytes. slots: the most rows of a round. stride: floats from slot to
        slot, a multiple of 16; a row of it holds the inputs, rounded up to a multiple of 16.
        """
        values = self._values(addresses, stride, confidence)
        for name in ALIGNED:
            if values[name] % 16:
                raise ValueError(f"{name} must be a multiple of 16, got {values[name]}")
        return [
            launch(code, step.grid(slots), tuple(values[name] for name in PARAMETERS))
            for code, step in zip(self.compiled(), self.steps, strict=True)
        ]

    def run(
        self, tensors: Mapping[str, Tensor], *, slots: int, stride: int, confidence: float
    ) -> None:
        """A round through Triton's launcher.

        tensors: flat, by the names of `ADDRESSES`: problems bytes, rows and count int32, the others
        float32.
        """
        problems = tensors["problems"].view(torch.int8)
        values = self._values({**tensors, "problems": problems}, stride, confidence)
        values["ints"] = problems.view(torch.int32)
        values["floats"] = problems.view(torch.float32)
        for step in self.steps:
            step.kernel[(step.grid(slots),)](
                *(values[name] for name in PARAMETERS), **step.constants, **step.options
            )

    def _values(self, given: Mapping[str, Any], stride: int, confidence: float) -> dict[str, Any]:
        if given.keys() != set(ADDRESSES):
            raise ValueError(f"addresses must be those of {ADDRESSES}, got {sorted(given)}")
        least = -(-self.network.inputs // 16) * 16
        if stride % 16 or not least <= stride < 2**31:
            raise ValueError(f"stride must be a multiple of 16 from {least}, got {stride}")
        problems = given["problems"]
        same = {"ints": problems, "floats": problems, "stride": stride, "confidence": confidence}
        return {**given, **same}

    def _options(self, warps: int | None = None) -> dict[str, Any]:
        return {
            "num_warps": warps or self.config.warps,
            "num_stages": self.config.stages,
            "enable_fp_fusion": True,
        }

    def _head(self) -> tuple[int, int, int]:
        """Columns, rows and warps of a program of the head."""
        columns = 1 << (self.geometry.padded_outs[-1] - 1).bit_length()
        rows = max(1, min(64, 2048 // columns))
        return columns, rows, min(16, max(4, rows * columns // 1024))

    def _fused(self) -> list[Step]:
        g, config = self.geometry, self.config
        tiles, moments = config.tiles(g), self._moments
        columns, rows, _ = self._head()
        constants = {
            "LAYERS": g.layers,
            "INS": g.ins,
            "OUTS": g.outs,
            "PADDED_INS": g.padded_ins,
            "PADDED_OUTS": g.padded_outs,
            "LOWS": g.matrix_floats,
            "MATRICES": g.matrices[:-1],
            "TRANSPOSES": g.transposes,
            "BIASES": g.biases,
            "KINDS": g.kinds,
            "SLOPES": g.slopes,
            "ROW": g.columns[-1],
            "COLUMNS": g.columns[:-1],
            "MOMENTS": moments[-1],
            "AT": moments[:-1],
            **tiles,
            "KP": columns,
            "HEAD_BM": min(rows, config.BM),
            "BM": config.BM,
            "PRECISION": self.precision,
        }
        return [Step(propagate, constants, self._options(), config.BM)]

    def _layered(self) -> list[Step]:
        forward = [self._forward(i) for i in range(self.geometry.layers)]
        backward = [self._backward(i) for i in reversed(range(self.geometry.layers))]
        return [*forward, self._head_step(), *backward]

    def _forward(self, i: int) -> Step:
        g, config = self.geometry, self.config
        tiles = config.tiles(g)
        count = g.padded_outs[i] // tiles["BNS"][i]
        constants = {
            "LAYER": i,
            "LAYERS": g.layers,
            "IN": g.ins[i],
            "STEP": g.padded_ins[i],
            "LOW": g.matrix_floats[i],
            "OUT": g.outs[i],
            "TILES": count,
            "MATRIX": g.matrices[i],
            "BIAS": g.biases[i],
            "ROW": g.columns[-1],
            "BEFORE": g.columns[i - 1] if i else 0,
            "COLUMN": g.columns[i],
            "MOMENT": self._moments[i],
            "MOMENTS": self._moments[-1],
            "KIND": g.kinds[i],
            "SLOPE": g.slopes[i],
            "BM": config.BM,
            "BN": tiles["BNS"][i],
            "BK": tiles["BKS"][i],
            "PRECISION": self.precision,
        }
        return Step(linear_forward, constants, self._options(), config.BM, count)

    def _backward(self, i: int) -> Step:
        g, config = self.geometry, self.config
        tiles = config.tiles(g)
        count = -(-(g.padded_ins[i] if i else g.ins[0]) // tiles["BACK_BNS"][i])
        constants = {
            "LAYER": i,
            "IN": g.outs[i],
            "STEP": g.padded_outs[i],
            "LOW": g.matrix_floats[i],
            "OUT": g.ins[i],
            "TILES": count,
            "MATRIX": g.transposes[i],
            "ROW": g.columns[-1],
            "COLUMN": g.columns[i],
            "AFTER": g.columns[i - 1] if i else 0,
            "KIND": g.kinds[i - 1] if i else 0,
            "BM": config.BM,
            "BN": tiles["BACK_BNS"][i],
            "BK": tiles["BACK_BKS"][i],
            "PRECISION": self.precision,
        }
        return Step(linear_backward, constants, self._options(), config.BM, count)

    def _head_step(self) -> Step:
        g = self.geometry
        columns, rows, warps = self._head()
        constants = {
            "LAYERS": g.layers,
            "OUTS": g.outs,
            "BNS": self.config.tiles(g)["BNS"],
            "AT": self._moments[:-1],
            "MOMENTS": self._moments[-1],
            "K": g.outs[-1],
            "PADDED": g.padded_outs[-1],
            "KP": columns,
            "KIND": g.kinds[-1],
            "ROW": g.columns[-1],
            "COLUMN": g.columns[-2],
            "BM": rows,
        }
        return Step(head, constants, self._options(warps), rows)
