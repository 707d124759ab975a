"""Names for the files of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import advcore


def digest(content: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for the content and the package's version."""
    text = json.dumps({**content, "advcore": advcore.__version__}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
