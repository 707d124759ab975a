"""The source of a job's images, by the kind of its input."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .array_files import open_arrays
from .hugging_face import open_dataset
from .inputs import KINDS, InputSpec, Rows, Source
from .parquet_files import open_parquet
from .picture_folder import open_folder

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
    for entry in fields(spec):
        accepted = ("kind", "path", "scale", "leave_out", *KINDS[spec.kind])
        if entry.name not in accepted and getattr(spec, entry.name) is not None:
            raise ValueError(
                f"input.{entry.name} is not for inputs of kind {spec.kind!r}, which have "
                + ", ".join(KINDS[spec.kind])
            )
    if spec.kind == "pictures":
        return open_folder(spec, model)
    if spec.kind == "parquet":
        return open_parquet(spec, model)
    if spec.kind == "dataset":
        return open_dataset(spec, model)
    return open_arrays(spec)
