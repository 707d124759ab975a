"""The kernels of a round with their constants, for a geometry, a configuration and a precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .ahead import Compiled, compile_ahead
from .configs import Config
from .fused import propagate
from .geometry import Geometry
from .head import head
from .linear import linear_backward, linear_forward

PARAMETERS = {
    "problems": "*i8",  # (slots) struct Problem of csrc/problem.h, four times
    "ints": "*i32",
    "floats": "*fp32",
    "longs": "*i64",
    "vectors": "*fp32",  # of the slots: trial points and gradients, multiples of 16 floats behind
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

UNALIGNED = ("rows", "count", "fractions", "confidence")
ALIGNED = tuple(name for name in PARAMETERS if name not in UNALIGNED)
"""Addresses that are multiples of 16."""


@dataclass(frozen=True)
class Step:
    """A kernel of a round with its constants; rows of a program, programs for each such tile."""

    kernel: Any
    constants: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: int
    tiles: int = 1

    def grid(self, slots: int) -> int:
        """Programs for so many slots."""
        return -(-slots // self.rows) * self.tiles

    def compiled(self, arch: int) -> Compiled:
        """Machine code for an architecture (90: sm_90)."""
        return compile_ahead(self.kernel, PARAMETERS, ALIGNED, self.constants, self.options, arch)


def round_steps(geometry: Geometry, config: Config, precision: str) -> list[Step]:
    """The kernels of a round in their order."""
    if config.fused:
        return [_fused(geometry, config, precision)]
    layers = range(geometry.layers)
    return [
        *(_forward(geometry, config, precision, layer) for layer in layers),
        _head(geometry, config),
        *(_backward(geometry, config, precision, layer) for layer in reversed(layers)),
    ]


def moments(geometry: Geometry, config: Config) -> tuple[int, ...]:
    """First moments of each layer in a row of them; in the end the floats of a row."""
    return geometry.moments(config.tiles(geometry)["BNS"])


def _options(config: Config, warps: int) -> dict[str, Any]:
    return {"num_warps": warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _head_tile(geometry: Geometry) -> tuple[int, int]:
    """Columns and rows of a tile of the head, as much as the registers of 128 threads hold."""
    columns = 1 << (geometry.padded_outs[-1] - 1).bit_length()
    return columns, max(1, min(64, 2048 // columns))


def _fused(g: Geometry, config: Config, precision: str) -> Step:
    columns, rows = _head_tile(g)
    at = moments(g, config)
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
        "MOMENTS": at[-1],
        "AT": at[:-1],
        **config.tiles(g),
        "KP": columns,
        "HEAD_BM": min(rows, config.BM),
        "BM": config.BM,
        "PRECISION": precision,
    }
    return Step(propagate, constants, _options(config, config.warps), config.BM)


def _forward(g: Geometry, config: Config, precision: str, layer: int) -> Step:
    tiles, at = config.tiles(g), moments(g, config)
    count = g.padded_outs[layer] // tiles["BNS"][layer]
    constants = {
        "LAYER": layer,
        "LAYERS": g.layers,
        "IN": g.ins[layer],
        "STEP": g.padded_ins[layer],
        "LOW": g.matrix_floats[layer],
        "OUT": g.outs[layer],
        "TILES": count,
        "MATRIX": g.matrices[layer],
        "BIAS": g.biases[layer],
        "ROW": g.columns[-1],
        "BEFORE": g.columns[layer - 1] if layer else 0,
        "COLUMN": g.columns[layer],
        "MOMENT": at[layer],
        "MOMENTS": at[-1],
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
        "LOW": g.matrix_floats[layer],
        "OUT": g.ins[layer],
        "TILES": count,
        "MATRIX": g.transposes[layer],
        "ROW": g.columns[-1],
        "COLUMN": g.columns[layer],
        "AFTER": g.columns[layer - 1] if layer else 0,
        "KIND": g.kinds[layer - 1] if layer else 0,
        "BM": config.BM,
        "BN": tiles["BACK_BNS"][layer],
        "BK": tiles["BACK_BKS"][layer],
        "PRECISION": precision,
    }
    return Step(linear_backward, constants, _options(config, config.warps), config.BM, count)


def _head(g: Geometry, config: Config) -> Step:
    columns, rows = _head_tile(g)
    at = moments(g, config)
    constants = {
        "LAYERS": g.layers,
        "OUTS": g.outs,
        "BNS": config.tiles(g)["BNS"],
        "AT": at[:-1],
        "MOMENTS": at[-1],
        "K": g.outs[-1],
        "PADDED": g.padded_outs[-1],
        "KP": columns,
        "KIND": g.kinds[-1],
        "ROW": g.columns[-1],
        "COLUMN": g.columns[-2],
        "BM": rows,
    }
    warps = max(4, min(16, rows * columns // 1024))
    return Step(head, constants, _options(config, warps), rows)
