"""Names of classes, and targets as the command line and job files name them."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..options import Options
from ..oracles.logits import batched
from ..solve.choose import choose_backend
from ..solve.probes import PROBE_IMAGES

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]
Forward = Callable[[Floats], Floats]


def class_names(path: Path | None, classes: int) -> list[str] | None:
    """Read the names of the classes from a .json list or object, or from the lines of a text file.

    Without a path the names for 1,000 classes are those of
    ``$ADVCORE_DATA/imagenet/imagenet_labels.json``. Other classes have none, which gives None.

    Raises
    ------
    FileNotFoundError, ValueError : the file does not exist, or does not name so many classes.
    """
    if path is None:
        path = Path(os.environ.get("ADVCORE_DATA", "")) / "imagenet" / "imagenet_labels.json"
        if classes != 1000 or not os.environ.get("ADVCORE_DATA") or not path.is_file():
            return None
    names = read_names(path)
    if len(names) != classes:
        raise ValueError(f"names: {path} has {len(names)} names, the model {classes} classes")
    return names


def read_names(path: Path) -> list[str]:
    """Read names of classes from a .json list or object, or from the lines of a text file.

    Raises
    ------
    FileNotFoundError, ValueError : the file does not exist, or holds no names.
    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else text.splitlines()
        if isinstance(content, dict):  # It is {"0": name} or {"0": [id, name]}.
            content = [content[str(i)] for i in range(len(content))]
        return [str(name[-1] if isinstance(name, list) else name).strip() for name in content]
    except FileNotFoundError:
        raise FileNotFoundError(f"names: {path} does not exist") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"names: {path} holds no names of classes ({error})") from None


def choose_targets(
    target_spec: str,
    logits: Floats,
    labels: NDArray[np.int64],
    names: list[str] | None,
    draw: Callable[[Classes, int], Classes],
) -> Classes:
    """Return the target classes (N,) of images with these logits (N, K) and labels (N,).

    Parameters
    ----------
    target_spec : str
        "next-likeliest", "random", a class's number or one of its names.
    draw : function
        It maps labels (N,) and the number of classes to random targets (N,).
    """
    classes = logits.shape[1]
    if target_spec == "random":
        return draw(labels, classes)
    if target_spec == "next-likeliest":
        others = logits.copy()
        others[np.arange(len(labels)), labels] = -np.inf
        return np.asarray(others.argmax(axis=1), np.int64)
    return np.full(len(labels), _class(target_spec, classes, names), np.int64)


def _class(target_spec: str, classes: int, names: list[str] | None) -> int:
    if re.fullmatch(r"-?[0-9]+", target_spec):
        if not 0 <= int(target_spec) < classes:
            raise ValueError(f"targets: class {target_spec} is not in [0, {classes - 1}]")
        return int(target_spec)
    numbers_by_name: dict[str, list[int]] = {}
    for i, name in enumerate(names or []):
        for word in {part.strip().lower() for part in (name, *name.split(","))}:
            numbers_by_name.setdefault(word, []).append(i)
    matches = numbers_by_name.get(target_spec.strip().lower(), [])
    if len(matches) == 1:
        return matches[0]
    if matches:
        numbers = ", ".join(map(str, matches))
        raise ValueError(f"targets: {target_spec!r} names the classes {numbers}; give the number")
    similar_names = difflib.get_close_matches(target_spec.lower(), numbers_by_name, 3)
    hint = f"; close: {', '.join(similar_names)}" if similar_names else ""
    if names is None:
        hint = "; the names of the classes are not known (names=...)"
    raise ValueError(
        "targets: expected next-likeliest, random, a class's number or name, or a .npy file, "
        f"got {target_spec!r}{hint}"
    )


def short(names: Sequence[str] | None, number: int) -> str:
    """Return the first name of a class. It is empty if the class or its name is unknown."""
    return names[number].partition(",")[0] if names is not None and number >= 0 else ""


def evaluate(model: Any, images: NDArray[Any], options: Options) -> tuple[Forward, Floats]:
    """Return the model's forward and the logits (N, K) of the images (N, ...).

    The forward maps rows (N, n) to logits (N, K), no more than ``batch_size`` of them at once.
    """
    flat = validate.images(images).reshape(len(images), math.prod(images.shape[1:]))
    flat = flat.astype(np.float32)
    backend = choose_backend(model, flat[:PROBE_IMAGES], images.shape[1:], options)
    verifier = backend.verifier

    def forward(x: Floats) -> Floats:
        return batched(verifier.forward, x, verifier.rows)

    if not len(flat):
        return forward, np.empty((0, backend.classes), np.float32)
    return forward, batched(forward, flat, PROBE_IMAGES)


def targets_by_key(keys: Sequence[str], labels: Classes, classes: int, seed: int) -> Classes:
    """Draw targets (N,), each uniform over the classes other than the label.

    That of an image depends on its key, its label and the seed alone, not on its place.
    """
    draws = (hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogatepass")) for key in keys)
    shifts = [1 + int.from_bytes(draw.digest()[:8], "big") % (classes - 1) for draw in draws]
    return (labels.astype(np.int64) + np.array(shifts, np.int64)) % classes
