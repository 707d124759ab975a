"""Rows of a result: those that an index means, and those of several results in one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..validate import to_numpy

if TYPE_CHECKING:
    from .core import Result
    from .record import Record

_COUNTS = ("rounds", "round_seconds", "fillings")
"""Entries of ``engine`` that add up over runs."""


def row_numbers(rows: Any, count: int) -> NDArray[np.intp]:
    """Return the row numbers, from 0, that an index of `Result` means."""
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    index = to_numpy(rows)
    if index.size == 0 and index.dtype.kind == "f":  # an empty list
        index = index.astype(np.intp)
    if isinstance(rows, tuple) or index.ndim > 1 or index.dtype.kind not in "bui":
        raise TypeError(f"rows must be a slice, row numbers or a mask (N,), got {rows!r}")
    if index.dtype.kind == "b" and index.shape != (count,):
        raise IndexError(f"a mask of the rows must have shape ({count},), got {index.shape}")
    return np.atleast_1d(np.arange(count)[index])


def joined_rows(values: list[Any], parts: list[Result]) -> Any:
    """Return the rows of a field of all results; NaN where a result lacks an optional field."""
    if all(value is None for value in values):
        return None
    values = [
        np.full(len(part), np.nan, np.float32) if value is None else value
        for value, part in zip(values, parts, strict=True)
    ]
    if all(hasattr(value, "detach") for value in values):
        torch = sys.modules["torch"]
        return torch.cat([value.to(values[0].device) for value in values])
    return np.concatenate([to_numpy(value) for value in values])


def joined_engines(engines: list[dict[str, str | int | float]]) -> dict[str, str | int | float]:
    """Return one record of what ran, of those of several runs."""
    joined: dict[str, str | int | float] = {}
    for name in dict.fromkeys(name for engine in engines for name in engine):
        values = [engine[name] for engine in engines if name in engine]
        if name in _COUNTS:
            joined[name] = sum(values)  # type: ignore[arg-type]
        else:
            joined[name] = _one_or_all(values)
    return joined


def joined_records(records: list[Record]) -> Record:
    """Return one record of several runs. What differs is joined by commas."""
    joined: Record = {}
    for part in dict.fromkeys(part for record in records for part in record):
        entries = [record[part] for record in records if part in record]
        joined[part] = {
            name: _one_or_all([entry[name] for entry in entries if name in entry])
            for name in dict.fromkeys(name for entry in entries for name in entry)
        }
    return joined


def _one_or_all(values: list[Any]) -> Any:
    """Return the value that all have, else a text with all of them."""
    if all(value == values[0] for value in values):
        return values[0]
    return ", ".join(dict.fromkeys(str(value) for value in values))
