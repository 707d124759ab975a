"""Arguments of `advcore attack`: arrays from files, checks of files to write, logits of images."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..options import Options
from ..oracles.logits import batched
from ..solve.choose import PROBE_IMAGES, choose_backend

Floats = NDArray[np.float32]
Forward = Callable[[Floats], Floats]


@dataclass(frozen=True)
class AttackInputs:
    """Model and arrays of one call of `minimize_distortion`."""

    model: Any
    images: NDArray[Any]  # (N, ...)
    labels: NDArray[Any] | None  # (N,)
    targets: NDArray[Any] | None  # (N,)
    starts: NDArray[Any] | None  # (N, ...)

    def first(self, count: int | None) -> AttackInputs:
        """Return the inputs of the first `count` images. None: of all images."""

        def cut(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[:count]

        return AttackInputs(
            self.model,
            self.images[:count],
            cut(self.labels),
            cut(self.targets),
            cut(self.starts),
        )


def array(path: Path, option: str) -> NDArray[Any]:
    """Read an array of one or more dimensions from a .npy file, without unpickling.

    Raises
    ------
    FileNotFoundError : the file does not exist.
    ValueError : it holds no such array. Both messages begin with the name of the option.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{option}: {path} does not exist") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{option}: {path} is not a .npy file of numbers ({error})") from None
    if not isinstance(values, np.ndarray):
        names = ", ".join(values.files)
        values.close()
        raise ValueError(f"{option}: {path} is an .npz archive ({names}), expected one .npy array")
    if values.ndim == 0:
        raise ValueError(f"{option}: {path} holds a single number, expected an array")
    return values


def check_writable(path: Path, option: str, suffixes: Collection[str] = ()) -> None:
    """Raise now what writing the file would raise after a long run.

    suffixes : endings that the name may have. Empty: any, and the path may be a folder.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        endings = ", ".join(sorted(suffixes))
        raise ValueError(f"{option}: expected a name that ends in {endings}, got {path}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{option}: folder {path.parent} does not exist")
    if suffixes and path.is_dir():
        raise ValueError(f"{option}: {path} is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise PermissionError(f"{option}: {path} cannot be written")


def evaluate(model: Any, images: NDArray[Any], device: str | None) -> tuple[Forward, Floats]:
    """Return the model's forward and the logits (N, K) of the images (N, ...).

    The forward maps rows (N, n) to logits (N, K).
    """
    flat = validate.images(images).reshape(len(images), math.prod(images.shape[1:]))
    flat = flat.astype(np.float32)
    options = Options(device=device)
    backend = choose_backend(model, flat[:PROBE_IMAGES], images.shape[1:], options)
    forward = backend.verifier.forward
    if not len(flat):
        return forward, np.empty((0, backend.classes), np.float32)
    return forward, batched(forward, flat, PROBE_IMAGES)
