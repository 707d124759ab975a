"""The blocks of a job: fixed ranges of its images, which are attacked and written at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .inputs import Source

MOST_IMAGES = 4096
"""Images of a block, where they are small. With 256 a small residual network through torch takes
1.5 times as long as without blocks, with 4,096 it does not (benchmarks/bench_jobs.py)."""
BLOCK_BYTES = 1 << 28
"""Bytes of the images of a block as float32; the run needs some five times as many. Of pictures of
3x224x224 it is 445."""
LEAST_IMAGES = 16
"""Images of a block, where they are large."""
SAMPLE_IMAGES = 16
"""First images of a source, of which one that can be read says how large all are."""


@dataclass(frozen=True)
class Block:
    """The images ``start`` to ``stop`` of a source, with the block's number from 0."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Plan:
    """All blocks of a source, in its order. They depend on the source and on the size alone.

    Parameters
    ----------
    count : int
        Images of the source.
    borders : sequence of int or None
        0, further places that no block crosses, and ``count``. None: there are none between.
    size : int > 0
        Images of a block; the last one before each border may have fewer.
    """

    def __init__(self, count: int, borders: Sequence[int] | None, size: int) -> None:
        self.count, self.size = count, size
        self._borders = np.asarray([0, count] if borders is None else borders, np.int64)
        blocks = -(-np.diff(self._borders) // size)
        self._first = np.concatenate([[0], np.cumsum(blocks)])  # number of a part's first block

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = int(np.searchsorted(self._first, number, side="right")) - 1
        start = int(self._borders[part]) + (number - int(self._first[part])) * self.size
        return Block(number, start, min(start + self.size, int(self._borders[part + 1])))

    def shard(self, shard: tuple[int, int] | None) -> Iterator[Block]:
        """Return every n-th block, from the k-th on, for a shard (k, n). None: all blocks."""
        part, parts = shard or (1, 1)
        return (self[number] for number in range(part - 1, len(self), parts))


def block_size(source: Source) -> int:
    """Return the images of a block by their size, where the user does not say it."""
    if not source.count:
        return LEAST_IMAGES
    end = source.count if source.borders is None else next(b for b in source.borders if b > 0)
    images = source.read(0, min(SAMPLE_IMAGES, end)).images
    values = int(np.prod(images.shape[1:])) if len(images) else 0
    return max(LEAST_IMAGES, min(MOST_IMAGES, BLOCK_BYTES // (4 * max(values, 1))))


def check_shard(value: str | tuple[int, int] | None, name: str) -> tuple[int, int] | None:
    """Return (3, 8) for "3/8".

    Raises
    ------
    ValueError
        It is not of the form K/N with 1 <= K <= N.
    """
    if value is None:
        return None
    numbers = value.split("/") if isinstance(value, str) else [str(number) for number in value]
    if len(numbers) == 2 and all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
        part, parts = int(numbers[0]), int(numbers[1])
        if 1 <= part <= parts:
            return part, parts
    raise ValueError(f"{name} must be K/N with 1 <= K <= N, as in 3/8, got {value!r}")
