"""Images in a data set of Hugging Face's package `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._extras import require
from .image_columns import Columns, as_texts, find_columns
from .inputs import InputSpec, Rows, check_unique, file_hash, joined

CHECKED_KEYS = 1 << 16
"""Number of keys that are read at once when they are checked."""


@dataclass
class HuggingFaceDataset:
    """Images of a data set, which is mapped into memory, never read as a whole.

    Without a column of keys an image is called by its place.
    """

    dataset: Any
    columns: Columns

    def __post_init__(self) -> None:
        self._tables = self.dataset.select_columns(self.columns.names()).with_format("arrow")
        self.borders: Sequence[int] | None = None
        self.count = len(self.dataset)

    def read(self, start: int, stop: int) -> Rows:
        parts = []
        rows = self.columns.batch_rows
        for begin in range(start, stop, rows):
            end = min(begin + rows, stop)
            keys = [str(row) for row in range(begin, end)]
            try:
                parts.append(self.columns.decode(self._tables[begin:end], keys))
            except Exception as error:  # pyarrow raises errors of many types.
                parts.append(self.columns.damaged(keys, error))
        return joined(parts)

    def fingerprint(self) -> dict[str, str]:
        """Return hashes of the Arrow files, and of the selection of rows if there is one."""
        paths = [Path(file["filename"]) for file in self.dataset.cache_files]
        hashes = {path.name: file_hash(path) for path in paths}
        hashes = hashes or {"dataset": str(self.dataset._fingerprint)}
        return hashes | self.columns.fingerprint()


def open_dataset(spec: InputSpec, model: Any) -> HuggingFaceDataset:
    """Open a data set from a folder of ``save_to_disk``, or by its name.

    Raises ValueError, OSError and ImportError as `open_source` does.
    """
    try:
        datasets = require("datasets", "jobs", "a data set of Hugging Face")
    except ImportError as error:
        raise ImportError(
            "input.kind = 'dataset' needs datasets: pip install datasets", name="datasets"
        ) from error
    is_stored = Path(spec.path).is_dir() and any(
        Path(spec.path, name).exists() for name in ("state.json", "dataset_dict.json")
    )
    try:
        if is_stored:
            dataset = datasets.load_from_disk(spec.path)
        else:
            dataset = datasets.load_dataset(spec.path, spec.config)
    except Exception as error:  # datasets raises errors of many types.
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"input.path: {spec.path} cannot be loaded ({text})") from error
    if isinstance(dataset, dict):
        splits = ", ".join(dataset)
        if spec.split not in dataset:
            raise ValueError(f"input.split must be one of {splits}, got {spec.split!r}")
        dataset = dataset[spec.split]
    elif spec.split is not None:
        raise ValueError(f"input.split: {spec.path} has no splits, got {spec.split!r}")
    columns = find_columns(spec, model, dataset.features.arrow_schema, Path())
    source = HuggingFaceDataset(dataset, columns)
    if columns.key is not None:
        keys = dataset.select_columns([columns.key]).with_format("arrow")
        check_unique(
            as_texts(keys[start : start + CHECKED_KEYS][columns.key])
            for start in range(0, len(dataset), CHECKED_KEYS)
        )
    return source
