"""Compiles one configuration into the cache of Triton: ``python -m advcore.kernels.warm``.

The argument is what `tune.compile_in_parallel` writes.
"""

from __future__ import annotations

import json
import sys

from .configs import Config
from .geometry import Geometry
from .steps import round_steps


def warm(geometry: Geometry, precision: str, arch: int, config: Config) -> None:
    """Machine code of a round into Triton's cache."""
    for step in round_steps(geometry, config, precision):
        step.compiled(arch)


def main(task: str) -> None:
    """A task of `tune.compile_in_parallel`."""
    (widths, kinds, slopes, parts), precision, arch, config = json.loads(task)
    geometry = Geometry(tuple(widths), tuple(kinds), tuple(slopes), parts)
    warm(geometry, precision, arch, Config(**config))


if __name__ == "__main__":
    main(sys.argv[1])
