"""Read and write float32 tensors in the safetensors format with NumPy alone.

A file is an 8-byte little-endian header length, a JSON header, and the raw tensors. The package's
own networks are stored this way, and its core must not depend on anything but NumPy. Format:
https://github.com/huggingface/safetensors (README, "Format").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._files import replacing

MAX_HEADER_BYTES = 100_000_000
"""Largest length of a header in bytes. It is the format's own limit, so that a file with a longer
one is something else."""
MAX_OFFSET = 2**62
"""Largest number in an entry, so that no sum or product of NumPy overflows."""
MAX_DIMENSIONS = 32
"""Largest number of dimensions of a tensor, that of NumPy 1."""


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float32 arrays of any shape, and string metadata, to ``path``.

    The file appears only when it is complete, and then takes the place of a former one.

    Raises
    ------
    TypeError
        A tensor is not float32, or a metadata value is not a string.
    """
    header: dict[str, object] = {}
    if metadata:
        for key, note in metadata.items():
            if not isinstance(note, str):
                raise TypeError(f"metadata[{key!r}] must be a str, got {type(note).__name__}")
        header["__metadata__"] = dict(metadata)
    offset = 0
    for name, array in tensors.items():
        if array.dtype != np.float32:
            raise TypeError(f"tensor {name!r} must be float32, got {array.dtype}")
        end = offset + array.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start 8-byte aligned, as the format asks
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return the float32 tensors of a safetensors file by name, and its string metadata.

    As the format asks, the tensors fill the file without gaps or overlaps.

    Raises
    ------
    ValueError
        The file is damaged, is not safetensors, or holds a tensor that is not float32.
    """
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{path}: not a safetensors file ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + size], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(t, str) for t in metadata.values()):
        raise ValueError(f"{path}: __metadata__ of a safetensors file must map names to texts")
    body = memoryview(data)[8 + size :]
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    tensors: dict[str, NDArray[np.float32]] = {}
    place = 0
    for name, (shape, begin, end) in sorted(entries.items(), key=lambda item: item[1][1:]):
        length = 4 * math.prod(shape)
        if begin != place or end - begin != length or end > len(body):
            raise ValueError(
                f"{path}: tensor {name!r} of shape {shape} needs the {length} bytes from {place} "
                f"on, its offsets are [{begin}, {end}] of {len(body)}"
            )
        values = np.frombuffer(body[begin:end], dtype="<f4")
        try:
            tensors[name] = values.reshape(shape).astype(np.float32)
        except ValueError as error:  # Without values an extent can be too large for NumPy.
            raise ValueError(f"{path}: tensor {name!r} of shape {shape}: {error}") from error
        place = end
    if place != len(body):
        raise ValueError(f"{path}: {len(body) - place} bytes follow the last tensor")
    return {name: tensors[name] for name in header}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, which must not have a name twice."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _entry(path: str | os.PathLike[str], name: str, entry: Any) -> tuple[tuple[int, ...], int, int]:
    """Return the shape and the offsets of a tensor from its entry in the header."""
    try:
        kind, shape, offsets = entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: tensor {name!r} has a malformed entry {entry!r:.80}") from error
    if kind != "F32":
        raise ValueError(f"{path}: tensor {name!r} must be F32, got {kind!r:.20}")
    numbers = (*shape, *offsets)
    integral = all(type(n) is int and 0 <= n <= MAX_OFFSET for n in numbers)
    if not integral or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{path}: tensor {name!r} has a malformed entry {entry!r:.80}")
    return shape, *offsets
