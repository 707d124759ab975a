"""A look into .pt2 files for what runs code when `torch.export.load` reads it.

An exported program needs neither pickled objects nor compiled libraries: torch writes tensors as
raw bytes. Importing this file imports torch.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch

PLAIN_ENTRIES = ("weight_", "tensor_")
"""Beginnings of the names of files with raw bytes of a tensor; others hold objects."""
READ_AS_JSON = "serialized_exported_program.json"
"""The one file ``serialized_...`` of former versions of torch that holds no pickles."""


class PickledEntries(ValueError):
    """Raised for a file of which a part would run code."""


def check_no_pickles(path: str) -> None:
    """Raise ``PickledEntries`` if torch would unpickle objects or load libraries of the file.

    Pickles of plain tensors are accepted. torch reads an archive by its own reader, and those of
    former versions by Python's, so that both are asked for its files.

    Notes
    -----
    It does not make the file harmless: torch evaluates formulas of sizes in it by sympy.
    """
    for members in (_members_by_torch, _members_by_python):
        for name, read in members(path):
            _check_member(path, name, read)


def _members_by_torch(path: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        reader = torch._C.PyTorchFileReader(path)
        names = reader.get_all_records()
    except RuntimeError:  # It is no such archive.
        return
    for name in names:
        yield name, lambda name=name: reader.get_record(name)  # type: ignore[misc]


def _members_by_python(path: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            yield info.filename, lambda info=info: archive.read(info)  # type: ignore[misc]


def _check_member(path: str, name: str, read: Callable[[], bytes]) -> None:
    file_name = name.rpartition("/")[2]
    if "data/aotinductor/" in name:
        raise PickledEntries(f"{path}: {name} is a compiled library, which is not loaded")
    if name.endswith(".pt") or (file_name.startswith("serialized_") and file_name != READ_AS_JSON):
        content = read()
        if content and not _is_plain(content):
            raise PickledEntries(f"{path}: {name} holds pickled objects other than tensors")
    elif name.endswith(".json"):
        for key, entry in _entries(read()):
            if entry.get("use_pickle") or not str(entry["path_name"]).startswith(PLAIN_ENTRIES):
                raise PickledEntries(f"{path}: the entry {key!r} of {name} is pickled")


def _is_plain(content: bytes) -> bool:
    """Return whether this is a pickle of tensors and numbers alone."""
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True


def _entries(content: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the entries of the list of a program's tensors; other JSON files have none."""
    parsed = json.loads(content)
    config = parsed.get("config") if isinstance(parsed, dict) else None
    if isinstance(config, dict):
        for key, entry in config.items():
            if isinstance(entry, dict) and "path_name" in entry:
                yield key, entry
