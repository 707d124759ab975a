"""Images of a job that are an array of the caller."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..fingerprint import hash_of
from .inputs import Rows

HASHED_IMAGES = 1024
"""Images that are hashed at once."""


class MemorySource:
    """An array of images, also a memory map, as the source of a job.

    Parameters
    ----------
    images : (N, ...) array or tensor
        Numbers inside the bounds of the run.
    labels, targets : (N,) int, optional
    keys : sequence of N str, optional
        Names of the images, each once. None: their numbers from 0.
    hashes : dict, optional
        What stands for the content where jobs are compared. None: hashes of all values.

    Raises
    ------
    TypeError, ValueError
        An argument has another shape or kind, or a key comes twice.
    """

    borders: Sequence[int] | None = None

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        targets: Any = None,
        keys: Sequence[str] | None = None,
        *,
        hashes: dict[str, str] | None = None,
    ) -> None:
        self._hashes = hashes
        self._map = _file_map(images)
        self._images = validate.array(images, "images")
        if self._images.ndim < 2:
            raise ValueError(f"images must have shape (N, ...), got {self._images.shape}")
        self.count = len(self._images)
        self._labels = self._classes(labels, "labels")
        self._targets = self._classes(targets, "targets")
        self._keys = None if keys is None else [str(key) for key in keys]
        if self._keys is not None and not len(self._keys) == len(set(self._keys)) == self.count:
            raise ValueError(
                f"keys must be {self.count} different texts, got {len(self._keys)}, "
                f"{len(set(self._keys))} of them different"
            )

    def _classes(self, value: Any, name: str) -> NDArray[np.int64] | None:
        if value is None:
            return None
        total = np.iinfo(np.int32).max  # the model, which knows its classes, is not at hand
        return validate.classes(value, name, self.count, total).astype(np.int64)

    def read(self, start: int, stop: int) -> Rows:
        """See `Source`."""
        part = slice(start, stop)
        images = np.array(self._images[part])
        self._release()
        return Rows(
            [str(number) for number in range(start, stop)]
            if self._keys is None
            else self._keys[part],
            images,
            None if self._labels is None else self._labels[part],
            None if self._targets is None else self._targets[part],
            {},
        )

    def fingerprint(self) -> dict[str, str]:
        """See `Source`."""
        if self._hashes is not None:
            return self._hashes
        digest = hashlib.sha256(f"{self._images.shape} {self._images.dtype}".encode())
        for start in range(0, self.count, HASHED_IMAGES):
            part: Any = np.ascontiguousarray(self._images[start : start + HASHED_IMAGES])
            digest.update(part.reshape(-1).view(np.uint8))
            self._release()
        found = {"images": digest.hexdigest()[:16]}
        others = {"labels": self._labels, "targets": self._targets, "keys": self._keys}
        return found | {name: hash_of(x) for name, x in others.items() if x is not None}

    def _release(self) -> None:
        """Give the pages of the file back that were read: they count as memory of the process."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _file_map(images: Any) -> mmap.mmap | None:
    """Return the map of a file behind an array that cannot be changed. None: there is none."""
    is_read_only = isinstance(images, np.memmap) and images.mode == "r"
    while is_read_only and not isinstance(images, mmap.mmap) and images is not None:
        images = getattr(images, "base", None)
    return images if is_read_only and hasattr(images, "madvise") else None
