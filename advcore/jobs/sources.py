"""The source of a job's images, by the kind of its input."""

from __future__ import annotations

from typing import Any

from .array_files import open_arrays
from .inputs import KINDS, InputSpec, Rows, Source

__all__ = ["InputSpec", "Rows", "Source", "open_source"]


def open_source(spec: InputSpec, model: Any) -> Source:
    """Open the input of a job. No image is read yet.

    Parameters
    ----------
    spec : InputSpec
    model : object
        The model to attack. Its ``input_shape`` says how large pictures are.

    Raises
    ------
    ValueError
        The input is not as described: the message names it, what was expected and what came.
    FileNotFoundError
        There is no such file.
    ImportError
        A package that reading it needs is missing.
    """
    if spec.kind not in KINDS:
        raise ValueError(f"input.kind must be one of {', '.join(KINDS)}, got {spec.kind!r}")
    return open_arrays(spec)
