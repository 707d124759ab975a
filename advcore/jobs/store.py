"""The results of a job on disk: a manifest, a Parquet file for each block, and the whole table.

    manifest.json                 what the results depend on (`manifest`)
    blocks/block-000017.parquet   the rows of block 17, with its adversarial images if any
    table.parquet                 all rows without images, once all blocks are there

Files are written as a whole or not at all. Their bytes depend on their rows alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._extras import require
from .._files import replacing
from .locks import TOGETHER, lock
from .plan import Block, Plan
from .table import Counts, count, schema

BLOCKS, TABLE = "blocks", "table.parquet"
TABLE_LOCK = ".lock-table"
"""File of the lock of the whole table: blocks are not written while another process makes it."""
GROUP_ROWS = 1 << 13
"""Rows of a row group of the whole table. 65,536 take 30 MB while it is written."""
NOTE = b"advcore"
"""Name of the entry with the block and its counts in the metadata of a Parquet file."""
ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["status", "error"],
    "write_page_checksum": True,
}
"""Settings of the Parquet files. Dictionaries of floats and keys cost time and save nothing."""


class InUse(ValueError):
    """Another process is at work on the same blocks."""


class NotWritten(OSError):
    """A result could not be written, as on a full disk. What was written before is kept."""


@dataclass
class Store:
    """The folder of a job.

    Attributes
    ----------
    folder : Path
    plan : Plan
    counts : dict of int to Counts
        Counts of the blocks that are on disk, by the block's number.
    """

    folder: Path
    plan: Plan
    counts: dict[int, Counts] = field(default_factory=dict)

    @property
    def blocks(self) -> Path:
        """Folder of the blocks."""
        return self.folder / BLOCKS

    @property
    def table(self) -> Path:
        """File of the whole table."""
        return self.folder / TABLE

    def path(self, block: Block) -> Path:
        """File of a block."""
        return self.blocks / _name(block)

    def scan(self) -> None:
        """Read from disk which blocks are there. A damaged one is not."""
        self.counts = {
            note.block.number: note.counts
            for note in block_notes(self.folder)
            if note.block.number < len(self.plan) and note.block == self.plan[note.block.number]
        }

    @property
    def total(self) -> Counts:
        """Sum of the counts of all blocks on disk."""
        return sum((self.counts[number] for number in sorted(self.counts)), Counts())

    @property
    def is_complete(self) -> bool:
        """Whether all blocks are on disk."""
        return len(self.counts) == len(self.plan)

    def write(self, block: Block, table: Any) -> Counts:
        """Write the rows of a block, and return their counts."""
        counts = count(table)
        assert counts.images == len(block)
        note = json.dumps({**asdict(block), **asdict(counts)})
        parquet = _parquet()
        with _writing(self.folder), lock(self.folder / TABLE_LOCK, TOGETHER):
            self.table.unlink(missing_ok=True)
            with replacing(self.path(block)) as file:
                parquet.write_table(table.replace_schema_metadata({NOTE: note}), file, **ENCODING)
        self.counts[block.number] = counts
        return counts

    def finish(self) -> None:
        """Write the whole table where all blocks are there, and delete what a kill has left."""
        if not self.is_complete:
            return
        parquet = _parquet()
        with _writing(self.folder), lock(self.folder / TABLE_LOCK):
            if self.table.exists():
                return
            with (
                replacing(self.table) as file,
                parquet.ParquetWriter(file, schema("none"), **ENCODING) as writer,
            ):
                for table in self._groups():
                    writer.write_table(table, row_group_size=GROUP_ROWS)
            for folder in (self.folder, self.blocks):
                for part in folder.glob(".*.part"):
                    part.unlink(missing_ok=True)

    def _groups(self) -> Iterator[Any]:
        """Rows of the blocks in their order, without images, in tables of `GROUP_ROWS` or more."""
        pa, parquet = require("pyarrow", "jobs", "a job"), _parquet()
        columns = schema("none").names
        parts: list[Any] = []
        for number in range(len(self.plan)):
            path = self.path(self.plan[number])
            try:
                part = parquet.read_table(
                    path, columns=columns, page_checksum_verification=True, partitioning=None
                )
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the disk
                    raise
                text = f"{path} is damaged ({error}); delete it and start again"
                raise ValueError(text) from error
            parts.append(part.replace_schema_metadata(None))
            if sum(len(each) for each in parts) >= GROUP_ROWS:
                yield pa.concat_tables(parts)
                parts = []
        if parts:
            yield pa.concat_tables(parts)

    @contextlib.contextmanager
    def locked(self, shard: tuple[int, int] | None) -> Iterator[None]:
        """A block in which no other process works on the same shard.

        Raises
        ------
        InUse
            One does already.
        """
        self.blocks.mkdir(parents=True, exist_ok=True)
        name = ".lock" if shard is None else f".lock-{shard[0]}-of-{shard[1]}"
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock(self.folder / name, wait=False))
            except BlockingIOError:
                raise InUse(f"another process is at work on {self.folder}") from None
            yield


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise what the disk refuses as NotWritten."""
    try:
        yield
    except OSError as error:
        raise NotWritten(
            error.errno,
            f"{error.strerror or error}; the finished blocks are kept, and the same call goes on "
            "once there is room",
            str(folder),
        ) from error


def _parquet() -> Any:
    return require("pyarrow.parquet", "jobs", "a job")


@dataclass(frozen=True)
class BlockNote:
    """A block that is on disk whole, its counts, and the time when it was written."""

    block: Block
    counts: Counts
    time: float


def block_notes(folder: Path) -> list[BlockNote]:
    """Return the blocks of a job that are on disk, in their order. Damaged files are left out.

    Of each file its end alone is read, 1 ms.
    """
    notes = (_note(path) for path in sorted((folder / BLOCKS).glob("block-*.parquet")))
    return sorted((n for n in notes if n is not None), key=lambda note: note.block.number)


def _note(path: Path) -> BlockNote | None:
    pa, parquet = require("pyarrow", "jobs", "a job"), _parquet()
    try:
        metadata = parquet.read_metadata(path)
        content = json.loads(metadata.metadata[NOTE])
        block = Block(*(int(content.pop(name)) for name in ("number", "start", "stop")))
        counts = Counts(**content)
        time = path.stat().st_mtime
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    is_whole = metadata.num_rows == len(block) == counts.images
    return BlockNote(block, counts, time) if is_whole and path.name == _name(block) else None


def _name(block: Block) -> str:
    """Name of the file of a block, which depends on its number alone."""
    return f"block-{block.number:06d}.parquet"
