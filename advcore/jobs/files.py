"""The files of an input: one, those of a folder, or those of a pattern."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from glob import glob
from pathlib import Path


def input_files(path: str, endings: Collection[str]) -> tuple[Path, list[str]]:
    """Return the folder of an input's files, and their paths in it in natural order.

    Files of a folder are those with one of these endings, in folders below it too. In the natural
    order numbers in a name count as numbers: ``shard-9`` comes before ``shard-10``.

    Raises
    ------
    FileNotFoundError
        There is no such file or folder, or no file matches the pattern.
    ValueError
        The folder has no such file, or a file has another ending.
    """
    expected = ", ".join(endings)
    place = Path(path)
    if place.is_dir():
        found = [p for p in place.rglob("*") if p.suffix.lower() in endings and p.is_file()]
        found = [p for p in found if not any(x.startswith(".") for x in p.relative_to(place).parts)]
        if not found:
            raise ValueError(f"input.path: no files in {path} ({expected})")
    else:
        found = [place] if place.exists() else [Path(name) for name in glob(path, recursive=True)]  # noqa: PTH207
        if not found:
            raise FileNotFoundError(f"input.path: {path} does not exist")
        for file in found:
            if file.suffix.lower() not in endings or not file.is_file():
                raise ValueError(f"input.path: expected files ({expected}), got {file}")
        place = Path(os.path.commonpath([file.absolute().parent for file in found]))
        found = [file.absolute() for file in found]
    names = [file.relative_to(place).as_posix() for file in found]
    return place, sorted(names, key=_natural)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"([0-9]+)", name)
    # A split with a group gives texts at even places and digits at odd ones.
    return [(int(p), "") if i % 2 else (0, p) for i, p in enumerate(parts)], name


def as_key(name: str) -> str:
    """Return the name of a file as text. Bytes that are not UTF-8 are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
