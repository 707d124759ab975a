"""Tile sizes of the kernels: a table that needs no GPU, and what tuning has found.

A configuration belongs to the shapes of a network, a precision and a device, never to the rows of
a batch, and no product is split along its sum: a row's result depends on nothing but the row.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .geometry import Geometry, tile
from .precision import SPLIT

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

    def shared(self, parts: int) -> int:
        """Bytes of the buffered tiles of a loop, about."""
        return 4 * self.stages * self.BK * (self.BM + parts * self.BN)

    def tiles(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        """Widths of the tiles of each layer: forward, backward, and the terms of both."""
        return {
            "BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_outs),
            "BACK_BNS": tuple(tile(columns, self.BN) for columns in geometry.padded_ins),
            "BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_ins),
            "BACK_BKS": tuple(tile(columns, self.BK) for columns in geometry.padded_outs),
        }

    def to_json(self) -> dict[str, int | bool]:
        return asdict(self)


def shared_memory(arch: int) -> int:
    """Bytes of shared memory that a program may have on an architecture (90: sm_90)."""
    return SHARED_MEMORY.get(arch, 101376)


def candidates(geometry: Geometry, precision: str, arch: int) -> list[Config]:
    """What tuning tries, at most 8; the first is the default."""
    if precision == "ieee":  # multiplications of single threads: small tiles, little code
        found = [
            Config(True, 32, 64, 16, 4, 2),
            Config(True, 64, 64, 16, 8, 2),
            Config(True, 32, 128, 16, 8, 2),
            Config(False, 64, 64, 16, 8, 2),
            Config(False, 64, 128, 16, 8, 2),
        ]
    else:  # 64 rows and 4 warps: wgmma on sm_90; fewer rows: mma.sync, but twice the programs
        found = [
            Config(True, 64, 128, 32, 4, 2),
            Config(True, 64, 128, 32, 8, 3),
            Config(True, 32, 128, 32, 4, 3),
            Config(True, 32, 64, 32, 4, 3),
            Config(True, 128, 128, 32, 8, 2),
            Config(False, 64, 128, 32, 4, 3),
            Config(False, 64, 64, 32, 4, 3),
            Config(False, 128, 128, 32, 8, 3),
        ]
    if geometry.padded_outs[-1] > 8192:  # a row of logits beyond the registers of few warps
        found = [config for config in found if not config.fused]
    if max(geometry.outs) > 512:  # enough columns for programs of their own
        found.sort(key=lambda config: config.fused)
    parts = 2 if precision in SPLIT else 1
    return [config for config in found if config.shared(parts) <= shared_memory(arch)]


def default_config(geometry: Geometry, precision: str, arch: int) -> Config:
    """A configuration for a GPU that is not here."""
    return candidates(geometry, precision, arch)[0]
