"""Tile sizes of the kernels: a table by precision, shapes and slots.

The sizes have not been tried on a GPU yet. No product is split along its sum, so a row's result
does not depend on the other rows. Runs with fewer and with more slots than `MANY_SLOTS` may round
differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import Geometry, tile

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that a program may have, by compute capability."""
LEAST_SHARED_MEMORY = 101376
"""The same for a compute capability that is not listed: the least of those that are."""


@dataclass(frozen=True)
class Config:
    """Sizes of a tile and of a program.

    fused : whether the round is one kernel, with a program for each BM rows. Else each layer is a
        kernel, with a program for each tile of rows and columns.
    BM, BN, BK : rows, columns and terms of a tile.
    warps : warps of a program.
    stages : stages of the pipelined loops.
    """

    fused: bool
    BM: int
    BN: int
    BK: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name, least in (("BM", 16), ("BN", 16), ("BK", 16), ("warps", 1), ("stages", 1)):
            value = getattr(self, name)
            if value < least or value > 256 or (name != "stages" and value & (value - 1)):
                raise ValueError(f"{name} must be a power of two from {least}, got {value}")
        if self.BN > 128:
            raise ValueError(f"BN must be at most 128, got {self.BN}")

    def tiles(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        """Return columns and terms of each layer's tiles, by the names of kernels' constants."""
        return {
            "BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_outs),
            "BACK_BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_ins),
            "BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_ins),
            "BACK_BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_outs),
        }


def shared_memory(arch: int) -> int:
    """Return the bytes of shared memory that a program may have on an architecture (90: sm_90)."""
    return SHARED_MEMORY.get(arch, LEAST_SHARED_MEMORY)


TABLE = {
    # With 64 rows and 4 warps sm_90 multiplies by wgmma. With 32 rows it multiplies by mma.sync,
    # but there are twice as many programs.
    "tf32x3": (
        Config(fused=True, BM=32, BN=128, BK=32, warps=4, stages=2),
        Config(fused=True, BM=64, BN=128, BK=32, warps=4, stages=2),
        Config(fused=False, BM=64, BN=128, BK=32, warps=4, stages=2),
    ),
    # Single threads multiply, and small tiles keep the code short.
    "ieee": (
        Config(fused=True, BM=32, BN=64, BK=16, warps=4, stages=2),
        Config(fused=True, BM=64, BN=64, BK=16, warps=8, stages=2),
        Config(fused=False, BM=64, BN=64, BK=16, warps=8, stages=2),
    ),
}
"""Sizes for each precision: for fused rounds of fewer slots than `MANY_SLOTS`, for fused rounds of
more, and for rounds with a kernel for each layer.
"""

MANY_SLOTS = 8000
"""Slots from which a program takes 64 rows. With fewer, some of an H200's multiprocessors idle."""
WIDE_LAYER = 512
"""Units of the widest layer above which each layer is a kernel: it has enough columns for one."""
MANY_CLASSES = 8192
"""Padded classes above which each layer is a kernel, as a row of logits does not fit into the
registers of a fused program.
"""


def config_for(geometry: Geometry, precision: str, slots: int) -> Config:
    """Return the tile sizes of rounds over so many slots."""
    small_run, large_run, by_layers = TABLE[precision]
    if max(geometry.outs) > WIDE_LAYER or geometry.padded_outs[-1] > MANY_CLASSES:
        return by_layers
    return small_run if slots < MANY_SLOTS else large_run
