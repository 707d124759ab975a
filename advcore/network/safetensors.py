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

import numpy as np
from numpy.typing import NDArray

MAX_HEADER_BYTES = 100_000_000
"""Largest length of a header in bytes. It is the format's own limit, so that a file with a longer
one is something else."""


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, NDArray[np.float32]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write float32 arrays of any shape, and string metadata, to ``path``.

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
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def read_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """Return the float32 tensors of a safetensors file by name, and its string metadata.

    Raises
    ------
    ValueError
        The file is truncated, is not safetensors, or holds a tensor that is not float32.
    """
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{path}: not a safetensors file ({len(data)} bytes)")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError as error:
        raise ValueError(f"{path}: the safetensors header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + size :]
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in header.items():
        try:
            kind = str(entry["dtype"])
            shape = tuple(int(extent) for extent in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: tensor {name!r} has a malformed entry {entry!r}") from error
        if kind != "F32":
            raise ValueError(f"{path}: tensor {name!r} must be F32, got {kind}")
        length = 4 * math.prod(shape)
        if min(shape, default=0) < 0 or begin < 0 or end - begin != length or end > len(body):
            raise ValueError(
                f"{path}: tensor {name!r} of shape {shape} needs {length} bytes, "
                f"its offsets [{begin}, {end}] point into {len(body)}"
            )
        values = np.frombuffer(body[begin:end], dtype="<f4")
        tensors[name] = values.reshape(shape).astype(np.float32)
    return tensors, {str(key): str(text) for key, text in metadata.items()}
