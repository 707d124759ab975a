"""Files of results, ``.npz`` without pickles: written as a whole, and read without trust."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import read_archive
from .._files import replacing
from ..validate import to_numpy
from .record import is_record
from .statistics import status_codes

FORMAT = 2
"""Version of the format. The first one, without this number, had neither labels nor a record."""
TEXTS = ("engine", "penalty", "loss", "norm", "record")
"""Fields that are stored as JSON texts."""
_OPTIONAL = ("penalty_distortion", "norm", "queries", "label", "record", "format")
"""Members that a stored result may lack."""
_KINDS = {
    "adversarial": "f",
    "success": "b",
    "distortion": "f",
    "rms_distortion": "f",
    "margin": "f",
    "prediction": "iu",
    "target": "iu",
    "c": "f",
    "status": "iu",
    "evaluations": "iu",
    "forwards": "iu",
    "iterations": "iu",
    "rescues": "iu",
    "penalty_distortion": "f",
    "queries": "iu",
    "label": "iu",
}
"""Kind of the values of each field that has a row for each image, as letters of ``dtype.kind``."""


def write(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write the fields of a result, as `Result.save` says."""
    name = os.fspath(path)
    if not name.endswith(".npz"):
        raise ValueError(f"path must end in .npz, got {name!r}")
    arrays: dict[str, Any] = {"format": np.array(FORMAT)}
    for field, value in values.items():
        if field in TEXTS:
            arrays[field] = np.array(json.dumps(value))
        elif value is not None:
            arrays[field] = to_numpy(value)
    with replacing(name) as file:
        np.savez_compressed(file, **arrays)


def read(path: str | os.PathLike[str], fields: Collection[str]) -> dict[str, Any]:
    """Return the fields of a stored result, as `Result.load` says."""
    try:
        values: dict[str, Any] = dict(
            read_archive(path, lambda names: _check_names(names, set(fields)))
        )
        _check_format(values.pop("format", None))
        values = of_now(values)
        for name in TEXTS:
            if name in values:
                values[name] = _json(values[name], name)
        values["seconds"] = _number(values["seconds"], "seconds")
        _check_fields(values)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: not a stored result: {error}") from error
    return values


def _check_format(value: NDArray[Any] | None) -> None:
    if value is not None and (value.dtype.kind not in "iu" or value.shape or value > FORMAT):
        raise ValueError(f"format is {value!s:.20}, this version of advcore reads up to {FORMAT}")


def of_now(values: dict[str, Any]) -> dict[str, Any]:
    """Rename the fields of former versions: their ``norm`` was the penalty, and all were in l2."""
    if "norm" not in values or "penalty" in values:
        return values
    return {("penalty" if name == "norm" else name): values[name] for name in values}


def _check_names(names: Collection[str], fields: set[str]) -> None:
    """Raise ValueError unless a stored result has members of these names."""
    expected = {*fields, "format"}
    present = set(of_now(dict.fromkeys(names)))
    missing, unknown = sorted(expected - present - set(_OPTIONAL)), sorted(present - expected)
    if missing or unknown:
        later = "; a later version may have written it" if "format" in present and unknown else ""
        raise ValueError(f"missing {missing}, unknown {unknown}{later}")


def _json(value: NDArray[Any], name: str) -> Any:
    """Return what a stored JSON text holds: ``engine`` and ``record`` are mappings."""
    try:
        content = json.loads(str(value))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    if name == "record":
        if not is_record(content):
            raise ValueError(f"record must map names to names and values, got {content!r:.60}")
    elif name != "engine":
        if not isinstance(content, str):
            raise ValueError(f"{name} must be a text, got {content!r:.60}")
    elif not isinstance(content, dict) or not all(
        isinstance(entry, (str, int, float)) for entry in content.values()
    ):
        raise ValueError(f"engine must map names to texts and numbers, got {content!r:.60}")
    return content


def _number(value: NDArray[Any], name: str) -> float:
    """Return a stored finite number that is not negative."""
    if value.shape != () or value.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be a number, got {value.dtype} of shape {value.shape}")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {float(value)}")
    return float(value)


def _check_fields(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless all fields with a row for each image fit together."""
    images = values["success"].shape[:1]
    for name, kinds in _KINDS.items():
        array = values.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kinds:
            raise ValueError(f"{name} holds {array.dtype}")
        fits = array.ndim > 1 if name == "adversarial" else array.ndim == 1
        if not fits or array.shape[:1] != images:
            raise ValueError(f"{name} has shape {array.shape} for {images} images")
    unknown = set(np.unique(values["status"]).tolist()) - set(status_codes().values())
    if unknown:
        raise ValueError(f"status holds {sorted(unknown)}, which are no values of advcore.Status")
