"""NumPy files of unknown origin, read without trust: every damage is a ValueError.

NumPy's own reader unpickles nothing either, but it raises a dozen kinds of errors for damaged files
and allocates whatever a header asks for.
"""

from __future__ import annotations

import math
import os
import stat
import struct
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
_LOCAL_LENGTHS = 26
"""Place of the lengths of the name and of the extra field in a member's local header."""
_PIECE = 1 << 16
"""Bytes that are decompressed at once where they are not used."""
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


def array_header(
    path: str | os.PathLike[str], kinds: str = "biuf", member: str | None = None
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of a .npy file, or of an array of an .npz file, from its header alone.

    Raises ValueError and OSError as `read_array` does.
    """
    with _open_regular(path) as file:

        def read(stream: Any, size: int, exact: bool) -> tuple[tuple[int, ...], np.dtype[Any]]:
            shape, _, dtype = _read_header(stream, size, kinds, exact)
            return shape, dtype

        if member is None:
            return _checked(lambda: read(file, os.fstat(file.fileno()).st_size, False))
        return _checked(
            lambda: _in_member(
                file, member, lambda stream, info: read(stream, info.file_size, True)
            )
        )


def map_array(path: str | os.PathLike[str], kinds: str = "biuf") -> NDArray[Any]:
    """Return the array of a .npy file without reading it: pages come from the file when used.

    Raises ValueError and OSError as `read_array` does.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size

        def map_values() -> NDArray[Any]:
            shape, fortran, dtype = _read_header(file, size, kinds, exact=False)
            if not math.prod(shape):
                return np.empty(shape, dtype)
            order: Any = "F" if fortran else "C"
            return np.memmap(path, dtype, "r", file.tell(), shape, order)

        return _checked(map_values)


def read_rows(
    path: str | os.PathLike[str],
    start: int,
    stop: int,
    kinds: str = "biuf",
    member: str | None = None,
) -> NDArray[Any]:
    """Read the rows ``start`` to ``stop`` of a .npy file, or of an array of an .npz file.

    Memory is that of the rows. In a compressed .npz file all before them is decompressed too, in
    pieces. Its checksum is compared only where the rows reach its end, that of others never.

    Raises ValueError and OSError as `read_array` does.
    """
    if member is None:
        return np.array(map_array(path, kinds)[start:stop])
    with _open_regular(path) as file:

        def read(stream: Any, info: zipfile.ZipInfo) -> NDArray[Any]:
            shape, fortran, dtype = _read_header(stream, info.file_size, kinds, exact=True)
            if fortran and len(shape) > 1:
                raise ValueError("it is in Fortran order; numpy.ascontiguousarray changes that")
            row = math.prod(shape[1:]) * dtype.itemsize
            values = (min(stop, shape[0]) - start, *shape[1:])
            if info.compress_type == zipfile.ZIP_STORED:
                file.seek(_begin(file, info) + stream.tell() + start * row)
                return _fill(file, values, dtype, at_end=False)
            _skip(stream, start * row)
            return _fill(stream, values, dtype, at_end=stop >= shape[0])

        return _checked(lambda: _in_member(file, member, read))


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


def _in_member(file: BinaryIO, member: str, read: Callable[[Any, zipfile.ZipInfo], T]) -> T:
    """Call ``read`` with the stream of a member of an .npz file."""
    with zipfile.ZipFile(file) as archive:
        infos = _members(archive)
        if member not in infos:
            raise ValueError(f"it has no array {member!r}, but {', '.join(infos) or 'none'}")
        try:
            with archive.open(infos[member]) as stream:
                return read(stream, infos[member])
        except Exception as error:
            raise ValueError(f"member {member!r}: {error or type(error).__name__}") from error


def _begin(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return the place of a member's bytes in the file, behind its local header."""
    file.seek(info.header_offset + _LOCAL_LENGTHS)
    name, extra = struct.unpack("<HH", file.read(4))
    return int(info.header_offset + _LOCAL_LENGTHS + 4 + name + extra)


def _skip(stream: Any, count: int) -> None:
    """Read bytes of a stream and drop them."""
    while count:
        piece = len(stream.read(min(count, _PIECE)))
        if not piece:
            raise ValueError(f"the file ends {count} bytes too early")
        count -= piece


def _read(file: Any, size: int, kinds: str, exact: bool) -> NDArray[Any]:
    """Read an array of ``size`` bytes with its header. If ``exact``, nothing follows it."""
    shape, fortran, dtype = _read_header(file, size, kinds, exact)
    values = _fill(file, shape[::-1] if fortran else shape, dtype, at_end=exact)
    return values.T if fortran else values


def _read_header(
    file: Any, size: int, kinds: str, exact: bool
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, Fortran order and dtype of an array of ``size`` bytes with its header."""
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
    return shape, fortran, dtype


def _fill(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any], at_end: bool) -> NDArray[Any]:
    """Read values in C order. If ``at_end``, nothing follows them."""
    values = np.empty(math.prod(shape), dtype)
    needed = values.nbytes
    if needed:
        bytes_of_values: Any = values.view(np.uint8)
        buffer = memoryview(bytes_of_values)
        done = 0
        while done < needed:
            count = file.readinto(buffer[done:])
            if not count:
                raise ValueError(f"the file ends after {done} of {needed} bytes")
            done += count
    if at_end and file.read(1):  # It is at the end of a member that its checksum is compared.
        raise ValueError("bytes follow the array")
    if dtype.kind == "b" and (values.view(np.uint8) > 1).any():
        raise ValueError("a truth value is neither 0 nor 1")
    return values.reshape(shape)
