"""The record of a run: options, versions, and hashes of the model and of the inputs."""

from __future__ import annotations

import datetime as dt
import hashlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fingerprint import hash_of, text_of, versions
from ..network import Network
from ..options import Options
from ..result.record import Record
from ..validate import to_numpy
from .verify import Judge

NO_OPTIONS = ("progress", "callback", "record")
"""Fields of `Options` that change nothing in a result."""

FEWEST_IMAGES = 32
"""Images of a call that has hashes by itself. Those of a small network take 0.5 ms, which is a
third of the call with one image (docs/decisions.md)."""


def make_record(
    model: Any,
    images: NDArray[np.float32],
    starts: Any,
    shape: tuple[int, ...],
    judge: Judge,
    options: Options,
) -> Record:
    """Return the record of a run, as the docstring of `Result` describes it.

    Parameters
    ----------
    images : (N, n), and ``shape``, theirs in the call.
    starts : as in the call, where they were checked, else None.
    judge : the labels and targets of the images.
    """
    record: Record = {
        "options": {
            entry.name: _scalar(getattr(options, entry.name))
            for entry in fields(Options)
            if entry.name not in NO_OPTIONS
        },
        "model": {"name": name_of(model)},
        "input": {"count": shape[0], "shape": str(shape[1:]), "labels": judge.label_source},
        "versions": versions("torch" in sys.modules and not isinstance(model, Network))
        | {"python": platform.python_version()},
        "run": {"began": dt.datetime.now(dt.timezone.utc).isoformat("T", "seconds")},
    }
    if options.record is False or (options.record is None and shape[0] < FEWEST_IMAGES):
        return record
    record["model"]["hash"] = model_hash(model)
    arrays: dict[str, list[Any]] = {"images": [images]}
    if judge.label_source == "given":
        arrays["labels"] = [judge.label]
    if judge.targeted:
        arrays["targets"] = [judge.labels.astype(np.int64)]
    if starts is not None:
        parts = starts if isinstance(starts, tuple) else (starts,)
        kinds = (np.float32, np.int64)[: len(parts)]
        arrays["starts"] = [
            to_numpy(part).astype(kind) for part, kind in zip(parts, kinds, strict=True)
        ]
    for name, values in arrays.items():
        record["input"][f"{name}_sha256"] = _sha256(values)
    return record


def name_of(model: Any) -> str:
    """Return the name of a function, or that of the class of another model, with its module."""
    named = model if isinstance(getattr(model, "__qualname__", None), str) else type(model)
    return f"{named.__module__}.{named.__qualname__}"


def model_hash(model: Any) -> str | None:
    """Return a hash of a model, or None where it holds something that cannot be hashed."""
    try:
        return hash_of(model)
    except Exception:  # It holds anything, such as an open file or a chain of a million parts.
        return None


def _scalar(value: Any) -> Any:
    """Return an option as JSON has it: a number, a text, a truth value or None."""
    return value if isinstance(value, (bool, int, float, str, type(None))) else text_of(value)


def _sha256(arrays: Sequence[NDArray[Any]]) -> str:
    """Return the hash of all values of arrays in C order, one array after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        content: Any = np.ascontiguousarray(array)
        digest.update(content)
    return digest.hexdigest()
