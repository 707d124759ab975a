"""NumPy files of unknown origin, read without trust: every damage is a ValueError.

NumPy's own reader unpickles nothing either, but it raises a dozen kinds of errors for damaged files
and allocates whatever a header asks for.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

T = TypeVar("T")
ZIP_MAGIC = b"PK\x03\x04"
"""First bytes of an archive, such as an .npz file."""
_ENCRYPTED = 0x1
"""Bit of the flags of an encrypted member."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that NumPy writes."""


def read_array(path: str | os.PathLike[str], kinds: str = "biufc") -> NDArray[Any]:
    """Read one array from a .npy file.

    kinds : kinds of dtypes that are accepted, as letters of ``dtype.kind``.

    Raises
    ------
    ValueError
        The file is damaged, is not such a file, or holds other values. The text has no path.
    OSError
        The file cannot be read.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _checked(lambda: _read(file, size, kinds, exact=False))


def member_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of the arrays of an .npz file.

    Raises ValueError and OSError as `read_archive` does.
    """
    with _open_regular(path) as file:
        return _checked(lambda: list(_members(zipfile.ZipFile(file))))


def read_archive(
    path: str | os.PathLike[str], expected: Callable[[Collection[str]], None], kinds: str = "biufU"
) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file, by name.

    expected : function that is called with the names before any array is read. It raises
        ValueError where they are not those that the caller expects.

    Raises
    ------
    ValueError
        The file is damaged, is not such a file, or holds other values. The text has no path.
    OSError
        The file cannot be read.
    """
    with _open_regular(path) as file:
        return _checked(lambda: _read_members(file, expected, kinds))


def _open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file, but neither a folder nor a device or pipe, which may never end."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("not a regular file")
    return open(path, "rb")


def _checked(read: Callable[[], T]) -> T:
    """Call ``read``, and turn all that it raises for a damaged file into a ValueError of a line."""
    try:
        return read()
    except Exception as error:  # zipfile, zlib, ast and tokenize raise kinds of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("two members have the same name")
    for info in infos.values():
        if not info.filename.endswith(".npy"):
            raise ValueError(f"member {info.filename!r} is not an array")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise ValueError(f"member {info.filename!r} is encrypted or compressed in another way")
    return infos


def _read_members(
    file: BinaryIO, expected: Callable[[Collection[str]], None], kinds: str
) -> dict[str, NDArray[Any]]:
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        infos = _members(archive)
        expected(list(infos))
        for name, info in infos.items():
            try:
                with archive.open(info) as member:
                    arrays[name] = _read(member, info.file_size, kinds, exact=True)
            except Exception as error:
                raise ValueError(f"member {name!r}: {error or type(error).__name__}") from error
    return arrays


def _read(file: Any, size: int, kinds: str, exact: bool) -> NDArray[Any]:
    """Read an array of ``size`` bytes with its header. If ``exact``, nothing follows it."""
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    # Version 3 differs from 2 in UTF-8 names of fields, which arrays of numbers do not have.
    if version not in readers:
        raise ValueError(f"version {version} of the format holds no plain array")
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in kinds:
        raise ValueError(f"it holds {dtype}, expected numbers")
    if any(extent < 0 for extent in shape):
        raise ValueError(f"shape {shape} has a negative extent")
    needed, left = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > left or (exact and needed != left):
        raise ValueError(f"shape {shape} of {dtype} needs {needed} bytes, there are {left}")
    values = np.empty(math.prod(shape), dtype)
    if needed:
        bytes_of_values: Any = values.view(np.uint8)
        buffer = memoryview(bytes_of_values)
        done = 0
        while done < needed:
            count = file.readinto(buffer[done:])
            if not count:
                raise ValueError(f"the file ends after {done} of {needed} bytes")
            done += count
    if exact and file.read(1):  # It is at the end of a member that its checksum is compared.
        raise ValueError("bytes follow the array")
    if dtype.kind == "b" and (values.view(np.uint8) > 1).any():
        raise ValueError("a truth value is neither 0 nor 1")
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
