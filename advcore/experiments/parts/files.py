"""Files that are written as a whole, and names for them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import advcore


def digest(content: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for the content and the package's version."""
    text = json.dumps({**content, "advcore": advcore.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """Open a binary file that takes the place of `path` only when it is complete."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, all of it or nothing."""
    with replacing(path) as file:
        file.write(text.encode())
