"""Blocks, their borders, and the parts of a shard."""

from __future__ import annotations

import numpy as np
import pytest

from advcore.jobs import MemorySource
from advcore.jobs.plan import BLOCK_BYTES, MOST_IMAGES, Block, Plan, block_size, check_shard


def test_blocks_are_cut_at_borders_and_sizes() -> None:
    plan = Plan(12, [0, 5, 5, 6, 12], 4)
    ranges = [(block.start, block.stop) for block in plan.shard(None)]
    assert ranges == [(0, 4), (4, 5), (5, 6), (6, 10), (10, 12)]
    assert [b.number for b in plan.shard(None)] == list(range(len(plan)))
    assert list(Plan(0, None, 4).shard(None)) == []
    assert list(Plan(4, None, 4).shard(None)) == [Block(0, 0, 4)]
    assert [len(b) for b in Plan(9, None, 4).shard(None)] == [4, 4, 1]
    with pytest.raises(IndexError):
        plan[5]


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_shards_have_each_block_once(parts: int) -> None:
    plan = Plan(25, [0, 7, 25], 3)
    found = [block for k in range(parts) for block in plan.shard((k + 1, parts))]
    assert sorted(found, key=lambda block: block.number) == list(plan.shard(None))


def test_a_shard_is_named_by_two_numbers() -> None:
    assert check_shard("3/8", "--shard") == (3, 8)
    assert check_shard((1, 1), "shard") == (1, 1)
    assert check_shard(None, "shard") is None
    for bad in ("0/8", "9/8", "3", "3/", "a/b", "-1/3", "1/2/3", (0, 4)):
        with pytest.raises(ValueError, match="--shard must be K/N with 1 <= K <= N, as in"):
            check_shard(bad, "--shard")


def test_blocks_of_large_images_have_fewer() -> None:
    assert block_size(MemorySource(np.zeros((3, 20), np.float32))) == MOST_IMAGES
    pictures = block_size(MemorySource(np.zeros((3, 3, 224, 224), np.uint8)))
    assert 16 <= pictures < MOST_IMAGES
    assert pictures * 3 * 224 * 224 * 4 <= BLOCK_BYTES
    assert block_size(MemorySource(np.zeros((0, 20)))) == 16
