"""The record of a run, by which its result can be told from others and made again."""

from __future__ import annotations

from typing import Any

Record = dict[str, dict[str, Any]]
"""Facts of a run by part and name: numbers, texts, truth values or None, as JSON has them."""


def is_record(content: Any) -> bool:
    """Return whether a value that JSON has given is a record."""
    return isinstance(content, dict) and all(
        isinstance(part, dict)
        and all(isinstance(entry, (str, int, float, type(None))) for entry in part.values())
        for part in content.values()
    )


def labels_of(record: Record) -> str:
    """Return where the labels of a run come from.

    "given", "predicted" by the model, "none" of a targeted run, or "unknown" of an old result.
    """
    return str(record.get("input", {}).get("labels", "unknown"))
