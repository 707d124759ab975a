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
BATCH_ROWS = 64
"""Rows that are decoded at once; 64 pictures of 100 kB are 6 MB."""
BUFFER_BYTES = 1 << 20
"""Bytes of a column that are read at once, so that a row group is not in memory as a whole."""


@dataclass(frozen=True)
class RowGroup:
    """Place of a row group: its file, its number there, and its rows before and in all."""

    file: int
    number: int
    before: int  # rows of the file before it
    count: int


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
        path, name = self.folder / self.names[group.file], as_key(self.names[group.file])
        keys = [f"{name}:{group.before + row}" for row in range(low, high)]
        parts: list[Rows] = []
        done = 0
        try:
            for table in _tables(path, group.number, self.columns.names(), low, high):
                part = self.columns.decode(table, keys[done : done + table.num_rows])
                parts.append(part)
                done += table.num_rows
            if done < len(keys):
                raise ValueError(f"the row group ends after {low + done} of {group.count} rows")
        except (ValueError, OSError) as error:
            if isinstance(error, FileNotFoundError) or not is_of_one_file(error):
                raise
            reason = " ".join(str(error).split())
            parts.append(self.columns.none(dict.fromkeys(keys[done:], reason)))
        return joined(parts)

    def fingerprint(self) -> dict[str, str]:
        return {as_key(name): file_hash(self.folder / name) for name in self.names}


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
        except (ValueError, OSError) as error:
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
            for table in _tables(path, group.number, [key], 0, group.count):
                yield as_texts(table[key])
        except (ValueError, OSError) as error:
            if not is_of_one_file(error):
                raise
            text = " ".join(str(error).split())
            raise ValueError(f"{text} ({source.names[group.file]})") from None


def _tables(path: Path, group: int, columns: list[str], low: int, high: int) -> Iterator[Any]:
    """Yield tables with the rows ``low`` to ``high`` of a row group, at most `BATCH_ROWS` each."""
    arrow = require("pyarrow", "jobs", PURPOSE)
    parquet = require("pyarrow.parquet", "jobs", PURPOSE)
    # A large buffered read of one column holds a page; without buffers it holds the row group.
    with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        place = 0
        for batch in file.iter_batches(BATCH_ROWS, [group], columns, use_threads=False):
            begin, end = max(low - place, 0), min(high - place, batch.num_rows)
            place += batch.num_rows
            if begin < end:
                yield arrow.Table.from_batches([batch.slice(begin, end - begin)])
            if place >= high:
                return
