"""A result as a table with a row for each image: data frame, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._extras import require
from .statistics import per_class, statistics, status_names

if TYPE_CHECKING:
    from .core import Result

FORMAT = "advcore.result.1"
"""Name of the form of the JSON text."""
COLUMNS = (
    "label", "target", "prediction", "success", "status", "distortion", "rms_distortion", "margin",
    "c", "evaluations", "forwards", "queries", "iterations", "rescues",
)  # fmt: skip
"""Columns of the table, after the number of the image."""


def columns(result: Result) -> dict[str, Any]:
    """Return the columns of the table by name, as arrays (N,). The statuses are names."""
    names = status_names()
    values: dict[str, Any] = {"image": np.arange(len(result))}
    values |= {name: getattr(result, name) for name in COLUMNS}
    values["status"] = np.array([names.get(code, str(code)) for code in result.status.tolist()])
    if result.penalty_distortion is not None:
        values["penalty_distortion"] = result.penalty_distortion
    return values


def data_frame(result: Result) -> Any:
    """Return a pandas.DataFrame, as `Result.to_dataframe` says."""
    pandas = require("pandas", "pandas", "to_dataframe")
    frame = pandas.DataFrame(columns(result)).set_index("image")
    for name in ("label", "target"):
        frame[name] = frame[name].astype("Int64").mask(frame[name] < 0)
    frame["status"] = frame["status"].astype("category")
    frame.attrs["record"] = result.record
    return frame


def csv_text(result: Result) -> str:
    """Return the table as CSV, as `Result.to_csv` says."""
    text = io.StringIO(newline="")
    table = columns(result)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(_rows(table, missing=""))
    return text.getvalue()


def json_text(result: Result, eps: Sequence[float]) -> str:
    """Return all but the images as JSON, as `Result.to_json` says."""
    table = columns(result)
    content = {
        "format": FORMAT,
        "statistics": statistics(result, eps),
        "classes": [],
        "engine": result.engine,
        "record": result.record,
        "images": [dict(zip(table, row, strict=True)) for row in _rows(table, missing=None)],
    }
    if len(result) and (result.label >= 0).all():
        content["classes"] = [vars(entry) for entry in per_class(result, eps)]
    return json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n"


def without_nan(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinity, which it lacks, are None."""
    if isinstance(value, dict):
        return {name: without_nan(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(table: dict[str, Any], missing: Any) -> Iterator[list[Any]]:
    """Yield the rows of the table. A float32 has the digits that tell it from others."""
    lists = []
    for name, values in table.items():
        entries: list[Any] = values.tolist()
        if values.dtype == np.float32:
            entries = [float(str(value)) for value in values]
        if name in ("label", "target"):
            entries = [missing if entry < 0 else entry for entry in entries]
        elif values.dtype.kind == "f":
            entries = [missing if math.isnan(entry) else entry for entry in entries]
        lists.append(entries)
    yield from (list(row) for row in zip(*lists, strict=True))
