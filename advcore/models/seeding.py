"""Initial weights that depend on a seed alone. Importing this file imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Set torch's CPU generator to ``seed`` inside the block, and back to its state after it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
