"""The steps of a round: kernels with their constants, which follow from geometry and tile sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .configs import Config
from .fused import propagate
from .geometry import Geometry
from .linear import linear_backward, linear_forward
from .machine_code import MachineCode, compile_kernel
from .margin_loss import margin_loss

PARAMETERS = {
    "problems": "*i8",  # (slots) struct Problem of csrc/problem.h
    "ints": "*i32",  # the same address
    "floats": "*fp32",  # the same address
    "longs": "*i64",  # the same address
    "vectors": "*fp32",  # trial points and gradients begin at multiples of 16 floats behind it
    "rows": "*i32",  # (<= slots) the slots that take part in this round
    "count": "*i32",  # (1) number of these slots
    "temperatures": "*fp32",  # (schedules, stages) fractions of the margin at x0
    "confidence": "fp32",  # the margin required, in logits
    "weights": "*fp32",  # Plan.weights
    "scales": "*fp32",  # (slots, layers) scales of the smoothing, kept from round to round
    "h": "*fp32",  # (rows, floats of a row) outputs of the layers; the logits are the last
    "dh": "*fp32",  # (rows, floats of a row) derivatives, which gradients replace
    "moments": "*fp32",  # (rows, 2 * tiles) moments of the tiles of rows that record their scales
}
"""Triton's types of the parameters that every kernel takes, in this order."""

UNALIGNED = ("rows", "count", "temperatures", "confidence")
"""Parameters that need not be multiples of 16."""
ALIGNED = tuple(name for name in PARAMETERS if name not in UNALIGNED)
"""Addresses that are multiples of 16."""


@dataclass(frozen=True)
class Step:
    """A kernel of a round with its constants.

    rows : rows of a program.
    tiles : programs that share these rows.
    """

    kernel: Any
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: int
    tiles: int = 1

    def grid(self, slots: int) -> int:
        """Return the number of programs for so many slots."""
        return -(-slots // self.rows) * self.tiles

    def compiled(self, arch: int) -> MachineCode:
        """Return the machine code for an architecture (90: sm_90)."""
        return compile_kernel(self.kernel, PARAMETERS, ALIGNED, self.constants, self.options, arch)


def round_steps(geometry: Geometry, config: Config, precision: str) -> list[Step]:
    """Return the steps of a round in their order."""
    if config.fused:
        return [_fused(geometry, config, precision)]
    layers = range(geometry.layers)
    return [
        *(_forward(geometry, config, precision, layer) for layer in layers),
        _loss(geometry, config),
        *(_backward(geometry, config, precision, layer) for layer in reversed(layers)),
    ]


def moment_offsets(geometry: Geometry, config: Config) -> tuple[int, ...]:
    """Return the offset of each layer in a row of moments, and the number of floats of a row."""
    return geometry.moment_offsets(config.tiles(geometry)["BNS"])


def _options(config: Config, warps: int) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _loss_tile(geometry: Geometry) -> tuple[int, int]:
    """Return columns and rows of a tile of the margin loss, which 128 threads hold in registers."""
    columns = 1 << (geometry.padded_outs[-1] - 1).bit_length()
    return columns, max(1, min(64, 2048 // columns))


def _fused(g: Geometry, config: Config, precision: str) -> Step:
    columns, rows = _loss_tile(g)
    offsets = moment_offsets(g, config)
    constants = {
        "LAYERS": g.layers,
        "INS": g.ins,
        "OUTS": g.outs,
        "PADDED_INS": g.padded_ins,
        "PADDED_OUTS": g.padded_outs,
        "LOW_OFFSETS": g.matrix_floats,
        "MATRICES": g.matrices[:-1],
        "TRANSPOSES": g.transposes,
        "BIASES": g.biases,
        "KINDS": g.kinds,
        "SLOPES": g.slopes,
        "ROW": g.columns[-1],
        "COLUMNS": g.columns[:-1],
        "MOMENTS": offsets[-1],
        "MOMENT_OFFSETS": offsets[:-1],
        **config.tiles(g),
        "KP": columns,
        "LOSS_BM": min(rows, config.BM),
        "BM": config.BM,
        "PRECISION": precision,
    }
    return Step(propagate, constants, _options(config, config.warps), config.BM)


def _forward(g: Geometry, config: Config, precision: str, layer: int) -> Step:
    tiles, offsets = config.tiles(g), moment_offsets(g, config)
    count = g.padded_outs[layer] // tiles["BNS"][layer]
    constants = {
        "LAYER": layer,
        "LAYERS": g.layers,
        "IN": g.ins[layer],
        "STEP": g.padded_ins[layer],
        "LOW_OFFSET": g.matrix_floats[layer],
        "OUT": g.outs[layer],
        "TILES": count,
        "MATRIX": g.matrices[layer],
        "BIAS": g.biases[layer],
        "ROW": g.columns[-1],
        "SOURCE": g.columns[layer - 1] if layer else 0,
        "COLUMN": g.columns[layer],
        "MOMENT": offsets[layer],
        "MOMENTS": offsets[-1],
        "KIND": g.kinds[layer],
        "SLOPE": g.slopes[layer],
        "BM": config.BM,
        "BN": tiles["BNS"][layer],
        "BK": tiles["BKS"][layer],
        "PRECISION": precision,
    }
    return Step(linear_forward, constants, _options(config, config.warps), config.BM, count)


def _backward(g: Geometry, config: Config, precision: str, layer: int) -> Step:
    tiles = config.tiles(g)
    columns = g.padded_ins[layer] if layer else g.ins[0]
    count = -(-columns // tiles["BACK_BNS"][layer])
    constants = {
        "LAYER": layer,
        "IN": g.outs[layer],
        "STEP": g.padded_outs[layer],
        "LOW_OFFSET": g.matrix_floats[layer],
        "OUT": g.ins[layer],
        "TILES": count,
        "MATRIX": g.transposes[layer],
        "ROW": g.columns[-1],
        "COLUMN": g.columns[layer],
        "TARGET": g.columns[layer - 1] if layer else 0,
        "KIND": g.kinds[layer - 1] if layer else 0,
        "BM": config.BM,
        "BN": tiles["BACK_BNS"][layer],
        "BK": tiles["BACK_BKS"][layer],
        "PRECISION": precision,
    }
    return Step(linear_backward, constants, _options(config, config.warps), config.BM, count)


def _loss(g: Geometry, config: Config) -> Step:
    columns, rows = _loss_tile(g)
    offsets = moment_offsets(g, config)
    constants = {
        "LAYERS": g.layers,
        "OUTS": g.outs,
        "BNS": config.tiles(g)["BNS"],
        "MOMENT_OFFSETS": offsets[:-1],
        "MOMENTS": offsets[-1],
        "K": g.outs[-1],
        "PADDED": g.padded_outs[-1],
        "KP": columns,
        "KIND": g.kinds[-1],
        "ROW": g.columns[-1],
        "COLUMN": g.columns[-2],
        "BM": rows,
    }
    warps = max(4, min(16, rows * columns // 1024))
    return Step(margin_loss, constants, _options(config, warps), rows)
