"""Damaged copies of a file, drawn from a seed."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

EDGES = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"[", b"{", b"-1", b"1e999", b"NaN")
"""Bytes and texts that readers of numbers, lengths and offsets go wrong at."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 2**31, 2**40, 2**63, 10**30, 0.5, -0.0, float("inf"), float("nan"),
    "", "relu", "0", "[", "\ud800", [], [[]], [1], [1, 1], [0, 4], [2**40, 0], {}, {"a": 1},
)  # fmt: skip
"""Values for the place of others in JSON."""


def damaged(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield copies that were cut, overwritten, grown, shortened or mixed at one to four places.

    Half of the places are in the first or last 512 bytes, where formats have their headers.
    """
    random = np.random.default_rng(seed)
    for _ in range(count):
        content = bytearray(whole)
        for _ in range(int(random.integers(1, 5))):
            place = _place(random, len(content))
            kind = int(random.integers(7))
            length = int(random.integers(1, 9))
            if kind == 0:
                del content[place:]
            elif kind == 1:
                content[place : place + length] = random.bytes(length)
            elif kind == 2 and place < len(content):
                content[place] ^= 1 << int(random.integers(8))
            elif kind == 3:
                del content[place : place + length]
            elif kind == 4:
                content[place:place] = random.bytes(length)
            elif kind == 5:
                edge = EDGES[int(random.integers(len(EDGES)))]
                content[place : place + len(edge)] = edge
            else:
                source = _place(random, len(content))
                content[place : place + 8 * length] = content[source : source + 8 * length]
        yield bytes(content)


def _place(random: np.random.Generator, size: int) -> int:
    """Return a place in a file of this size."""
    where = int(random.integers(4))
    if where == 0:
        return int(random.integers(min(size, 512) + 1))
    if where == 1:
        return size - int(random.integers(min(size, 512) + 1))
    return int(random.integers(size + 1))


def damaged_members(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield copies of a zip archive with one member damaged and its checksum made anew."""
    random = np.random.default_rng(seed)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for number in range(count):
        chosen = list(members)[int(random.integers(len(members)))]
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                copies = damaged(content, 1, seed + number)
                archive.writestr(name, next(copies) if name == chosen else content)
        yield file.getvalue()


def damaged_json(text: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield copies of a JSON text with another value at one to three places; texts in it too."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        content = json.loads(text)
        for _ in range(int(random.integers(1, 4))):
            content = _with_other_value(content, random)
        yield json.dumps(content).encode()


def _with_other_value(content: Any, random: np.random.Generator) -> Any:
    """Return the content with one value below it, or itself, replaced."""
    if isinstance(content, str) and content[:1] in ("[", "{") and random.random() < 0.9:
        with suppress(ValueError):
            return json.dumps(_with_other_value(json.loads(content), random))
    if isinstance(content, (list, dict)) and content and random.random() < 0.9:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = keys[int(random.integers(len(keys)))]
        content[key] = _with_other_value(content[key], random)
        return content
    return copy.deepcopy(VALUES[int(random.integers(len(VALUES)))])


def refusals(read: Callable[[Path], Any], path: Path, copies: Iterable[bytes]) -> list[str]:
    """Return the texts of the ValueErrors that ``read`` raises for copies written to ``path``.

    A copy that is accepted has none. Errors of other kinds are raised.
    """
    texts = []
    for content in copies:
        path.write_bytes(content)
        try:
            read(path)
        except ValueError as error:
            texts.append(str(error))
    return texts
