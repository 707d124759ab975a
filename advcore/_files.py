"""Files that are written as a whole or not at all. All files of the package are written here."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a binary file that takes the place of ``path`` when the block ends without an error.

    The bytes go to a hidden file beside it, ``.<process>.<random>.part``, which is synced and then
    renamed. So at any moment ``path`` is the former file or the new one, also after a kill, on a
    full disk or after a power failure. A former file keeps its permissions. A symbolic link at
    ``path`` is replaced, never followed. A device or a pipe, such as ``/dev/null``, is written to
    directly.

    Raises
    ------
    OSError
        The file cannot be written. The former one is as it was.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder, expected the name of a file")
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    # The name is short, so that any name that the folder can hold has room for it.
    part = target.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            if target.is_file() and not target.is_symlink():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.absolute().parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write ``content``, all of it or nothing."""
    with replacing(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, all of it or nothing.

    File names in it that are not UTF-8 keep their bytes.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure, where the file system can sync folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
