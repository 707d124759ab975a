"""Tile sizes of the kernels: a table by precision, shapes and slots, not yet tried on a GPU.

No product is split along its sum, so a row's result does not depend on the other rows. Runs with
fewer and with more slots than `MANY_SLOTS` may round differently.
"""

from __future__ import annotations

from dataclasses import dataclass

from .geometry import Geometry, tile

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes that a program may have, by compute capability; 101376 for those not listed."""


@dataclass(frozen=True)
class Config:
    """BM rows, BN columns and BK terms of a tile; warps of a program; stages of its loops.

    `fused`: the whole round is one kernel, a program for each BM rows. Else each layer is a kernel,
    with a program for each tile of rows and columns.
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
        """Widths of the tiles of each layer: forward, backward, and the terms of both."""
        return {
            "BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_outs),
            "BACK_BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_ins),
            "BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_ins),
            "BACK_BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_outs),
        }


def shared_memory(arch: int) -> int:
    """Bytes of shared memory that a program may have on an architecture (90: sm_90)."""
    return SHARED_MEMORY.get(arch, 101376)


TABLE = {  # 64 rows and 4 warps: wgmma on sm_90; 32 rows: mma.sync, but twice the programs
    "tf32x3": (
        Config(fused=True, BM=32, BN=128, BK=32, warps=4, stages=2),
        Config(fused=True, BM=64, BN=128, BK=32, warps=4, stages=2),
        Config(fused=False, BM=64, BN=128, BK=32, warps=4, stages=2),
    ),
    "ieee": (  # multiplications of single threads: small tiles, little code
        Config(fused=True, BM=32, BN=64, BK=16, warps=4, stages=2),
        Config(fused=True, BM=64, BN=64, BK=16, warps=8, stages=2),
        Config(fused=False, BM=64, BN=64, BK=16, warps=8, stages=2),
    ),
}
"""By precision: fused for fewer slots than `MANY_SLOTS`, fused for more, a kernel a layer."""

MANY_SLOTS = 8000
"""With 64 rows a program fewer slots leave multiprocessors of an H200 without one."""
WIDE_LAYER = 512
"""Units of the widest layer, above which every layer has columns enough for programs of its own."""
MANY_CLASSES = 8192
"""Padded classes, above which a row of logits does not fit into the registers of a program."""


def config_for(geometry: Geometry, precision: str, slots: int) -> Config:
    """The tile sizes of a network's rounds over so many slots."""
    few, many, layered = TABLE[precision]
    if max(geometry.outs) > WIDE_LAYER or geometry.padded_outs[-1] > MANY_CLASSES:
        return layered
    return few if slots < MANY_SLOTS else many
