"""Numbers of rows of the batches that a model gets, where not every number is allowed.

A batch is padded to the next allowed number with copies of its last row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import memory

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0625)
"""Shares of the largest batch that are allowed as well, and 1 row: six numbers at most. A run with
them evaluates 1.04 to 1.17 times the rows that it asks for, one with halves alone 1.06 to 1.21
times (docs/decisions.md)."""


@dataclass(frozen=True)
class BatchSizes:
    """The numbers of rows that are allowed, ascending.

    Attributes
    ----------
    sizes : tuple of int
    is_fixed : bool
        Whether there is one number, so that a row's result does not depend on the others.
    """

    sizes: tuple[int, ...]
    is_fixed: bool = False

    @property
    def most(self) -> int:
        """The largest number."""
        return self.sizes[-1]

    def padded(self, rows: int) -> int:
        """The smallest number that is not below ``rows``."""
        return next(size for size in self.sizes if size >= rows)

    def fitting(self, rows: int) -> int:
        """The largest number that is not above ``rows``, else the smallest."""
        return max((size for size in self.sizes if size <= rows), default=self.sizes[0])

    def up_to(self, rows: int) -> BatchSizes:
        """Those that are not above ``rows``, which is at least the smallest."""
        return BatchSizes(tuple(size for size in self.sizes if size <= rows), self.is_fixed)

    def __str__(self) -> str:
        return ", ".join(map(str, self.sizes))


def few_sizes(most: int, shares: Sequence[float] = SHARES) -> BatchSizes:
    """Six numbers at most, from 1 to ``most``."""
    return BatchSizes(tuple(sorted({1, *(math.ceil(share * most) for share in shares)})))


class BatchRule(NamedTuple):
    """How an oracle chooses its `BatchSizes`, once it knows how much memory an image takes.

    Attributes
    ----------
    limit : int
        Most rows of a batch, where memory allows them.
    is_fixed : bool
        Whether one number is allowed.
    by_memory : bool
        Whether memory bounds the number: on a GPU that which is free, for a fixed number all of it.
    """

    limit: int
    is_fixed: bool
    by_memory: bool = False

    def sizes(self, oracle: Any) -> BatchSizes:
        """The numbers for the model of an oracle, by its ``device`` and ``saved_bytes``."""
        most = memory.rows(oracle, self.limit) if self.by_memory else self.limit
        if self.by_memory and self.is_fixed and memory.on_gpu(oracle) and oracle.saved_bytes:
            total = memory.total_bytes(oracle.device)
            most = max(1, min(self.limit, total // (4 * oracle.saved_bytes)))
        if not self.is_fixed:
            return few_sizes(most)
        # Rows of a power of two are the likeliest not to depend on their place.
        return BatchSizes((most if most == self.limit else 1 << (most.bit_length() - 1),), True)


def pad(x: NDArray[Any], rows: int) -> NDArray[Any]:
    """``x`` (B, ...) with copies of its last row, (rows, ...)."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])
