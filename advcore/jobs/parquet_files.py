"""Images in Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._extras import require
from .files import as_key, input_files
from .image_columns import PURPOSE, Columns, as_texts, find_columns
from .inputs import InputSpec, Rows, check_unique, file_hash, joined
from .picture_folder import is_of_one_file

ENDINGS = (".parquet",)
KEY_ROWS = 1 << 16
"""Rows of which the keys are read at once when they are checked."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at once, so that a row group is not in memory as a whole."""


@dataclass(frozen=True)
class RowGroup:
    """Place of a row group: its file, its number there, and its rows before and in all."""

    file: int
    number: int
    before: int  # rows of the file before it
    count: int


class GroupReader:
    """Reads a row group in its order, a batch at a time.

    Attributes
    ----------
    group : RowGroup
    place : int
        Row that comes next.
    """

    def __init__(self, path: Path, group: RowGroup, columns: list[str], batch: int) -> None:
        parquet = require("pyarrow.parquet", "jobs", PURPOSE)
        self.group, self.place = group, 0
        # Without buffers the bytes of the whole row group are read.
        file = parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        self._batches = file.iter_batches(batch, [group.number], columns, use_threads=False)
        self._rest: Any = None  # rows of the last batch from `place` on

    def tables(self, low: int, high: int) -> Iterator[Any]:
        """Yield tables with the rows ``low`` to ``high``; ``low`` is not before `place`."""
        arrow = require("pyarrow", "jobs", PURPOSE)
        while self.place < high:
            if not self._rest:
                self._rest = next(self._batches, None)
                if self._rest is None:
                    return
            batch = self._rest
            begin = min(max(low - self.place, 0), batch.num_rows)
            end = min(high - self.place, batch.num_rows)
            self._rest = batch.slice(end)
            self.place += end
            if begin < end:
                yield arrow.Table.from_batches([batch.slice(begin, end - begin)])


@dataclass
class ParquetFiles:
    """Images of Parquet files, read in batches of a row group.

    Without a column of keys an image is called by its file and its row there, ``a.parquet:17``.
    What of a range is in a row group that is damaged is unreadable.
    """

    folder: Path
    names: list[str]  # of the files, in the folder
    groups: list[RowGroup]
    columns: Columns

    def __post_init__(self) -> None:
        counts = [group.count for group in self.groups]
        self._begins = [0, *np.cumsum(counts).tolist()]  # of the row groups
        self.count = self._begins[-1]
        rows_of_files = np.zeros(len(self.names), np.int64)
        np.add.at(rows_of_files, [group.file for group in self.groups], counts)
        self._reader: GroupReader | None = None
        self.borders: Sequence[int] | None = [0, *np.cumsum(rows_of_files).tolist()]

    def read(self, start: int, stop: int) -> Rows:
        first = int(np.searchsorted(self._begins, start, side="right")) - 1
        parts = []
        for group, begin in zip(self.groups[first:], self._begins[first:], strict=False):
            if begin >= stop:
                break
            low, high = max(start - begin, 0), min(stop - begin, group.count)
            if low < high:
                parts.append(self._read(group, low, high))
        return joined(parts)

    def _read(self, group: RowGroup, low: int, high: int) -> Rows:
        """Read rows of one row group."""
        name = as_key(self.names[group.file])
        keys = [f"{name}:{group.before + row}" for row in range(low, high)]
        parts: list[Rows] = []
        done = 0
        try:
            for table in self._tables(group, low, high):
                part = self.columns.decode(table, keys[done : done + table.num_rows])
                parts.append(part)
                done += table.num_rows
            if done < len(keys):
                raise ValueError(f"the row group ends after {low + done} of {group.count} rows")
        except Exception as error:  # pyarrow raises errors of many types.
            self._reader = None
            parts.append(self.columns.damaged(keys[done:], error))
        return joined(parts)

    def _tables(self, group: RowGroup, low: int, high: int) -> Iterator[Any]:
        """Yield rows of a row group, from where the last ones ended if that is before them."""
        reader = self._reader
        if reader is None or reader.group != group or reader.place > low:
            path = self.folder / self.names[group.file]
            reader = GroupReader(path, group, self.columns.names(), self.columns.batch_rows)
            self._reader = reader
        return reader.tables(low, high)

    def fingerprint(self) -> dict[str, str]:
        hashes = {as_key(name): file_hash(self.folder / name) for name in self.names}
        return hashes | self.columns.fingerprint()


def open_parquet(spec: InputSpec, model: Any) -> ParquetFiles:
    """Open Parquet files. Of them footers alone are read, and keys, which must be unique.

    Raises ValueError, OSError and ImportError as `open_source` does.
    """
    parquet = require("pyarrow.parquet", "jobs", PURPOSE)
    folder, names = input_files(spec.path, ENDINGS)
    groups: list[RowGroup] = []
    columns: Columns | None = None
    for file, name in enumerate(names):
        try:
            with parquet.ParquetFile(folder / name) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
        except Exception as error:  # pyarrow raises errors of many types.
            if not is_of_one_file(error):
                raise
            text = " ".join(str(error).split())
            raise ValueError(f"input.path: {name} is no Parquet file ({text})") from None
        try:
            columns_of_file = find_columns(spec, model, schema, folder)
        except ValueError as error:
            raise ValueError(f"{error} ({name})") from None
        columns = columns_of_file if columns is None else columns
        if columns_of_file != columns:
            raise ValueError(f"input.path: {names[0]} and {name} have images of different types")
        before = 0
        for number in range(metadata.num_row_groups):
            count = metadata.row_group(number).num_rows
            groups.append(RowGroup(file, number, before, count))
            before += count
    assert columns is not None
    source = ParquetFiles(folder, names, groups, columns)
    if columns.key is not None:
        check_unique(_keys(source, columns.key))
    return source


def _keys(source: ParquetFiles, key: str) -> Iterator[list[str]]:
    for group in source.groups:
        path = source.folder / source.names[group.file]
        try:
            for table in GroupReader(path, group, [key], KEY_ROWS).tables(0, group.count):
                yield as_texts(table[key])
        except Exception as error:  # pyarrow raises errors of many types.
            if not is_of_one_file(error):
                raise
            text = " ".join(str(error).split())
            raise ValueError(f"{text} ({source.names[group.file]})") from None
