"""Model and arrays of `advcore attack`, from the names on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import data, models, validate
from ..jobs.classes import choose_targets, class_names, evaluate
from ..models import loading
from ..options import Options
from .app import print_remark
from .arguments import AttackInputs, array, class_numbers, is_class_file
from .pictures import PictureFolder


@dataclass(frozen=True)
class Sources:
    """Sources of the model and the arrays, as the command line names them."""

    model: str | None
    images: Path | None
    labels: str | None
    targets: str | None
    untargeted: bool
    starts: Path | None
    count: int | None
    folder: PictureFolder | None


def read_inputs(sources: Sources, options: Options, shard: tuple[int, int] | None) -> AttackInputs:
    """Read model and arrays of a run, of the first images if there is a count.

    Of a shard (k, n) it is the k-th of n parts of these.
    """
    model, images, folder = None, None, sources.folder
    if folder is not None:
        model = load_model(sources.model)
        images = folder.read(model, sources.count)
    inputs = read_arrays(sources, options, images).part(slice(sources.count))
    model = load_model(sources.model) if model is None else model
    inputs = replace(inputs, model=model)
    target_spec = sources.targets if inputs.targets is None else None
    if target_spec is not None or folder is not None:
        inputs = _with_model_classes(inputs, target_spec, options, folder)
    if shard is not None:
        (part, parts), count = shard, len(inputs.images)
        rows = slice(count * (part - 1) // parts, count * part // parts)
        inputs = inputs.part(rows)
        if folder is not None:
            folder.cut(rows)
    return inputs


def read_arrays(
    sources: Sources, options: Options, images: NDArray[Any] | None = None
) -> AttackInputs:
    """Read the arrays of a run, without its model. Images of a .npy file are mapped, not read.

    ``targets`` are missing where a word names them. ``images`` are those of a folder, if any.
    """
    labels: NDArray[Any] | None = None
    targets: NDArray[Any] | None = None
    if sources.images is None:
        if sources.labels is not None or sources.starts is not None:
            raise ValueError("--labels and --starts need --images")
        images, labels = data.embedded_digits()
        if sources.targets is None and not sources.untargeted:
            targets = data.random_targets(labels, classes=10, seed=options.seed)
    elif images is None:
        images = array(sources.images, "--images", mapped=True)
    if sources.labels is not None:
        labels = class_numbers(sources.labels, "--labels", len(images))
    if sources.targets is not None and is_class_file(sources.targets):
        targets = class_numbers(sources.targets, "--targets", len(images))
    starts = None if sources.starts is None else array(sources.starts, "--starts")
    for option, values in {"--labels": labels, "--targets": targets, "--starts": starts}.items():
        if values is not None and len(values) != len(images):
            raise ValueError(f"{option} has {len(values)} entries for {len(images)} images")
    return AttackInputs(None, images, labels, targets, starts)


def load_model(source: str | None) -> Any:
    """Load the model of that name. None: the network of the package."""
    if source in models.BUILDERS and source not in models.PRETRAINED:
        print_remark(f"note: {source} has its initial weights")
    return data.embedded_network() if source is None else loading.model(source)


def _with_model_classes(
    inputs: AttackInputs,
    target_spec: str | None,
    options: Options,
    folder: PictureFolder | None,
) -> AttackInputs:
    """Return the inputs with the targets that the command line names.

    Without true labels, the classes that the model predicts take their place.
    """
    forward, logits = evaluate(inputs.model, inputs.images, options)
    labels = logits.argmax(axis=1)
    if inputs.labels is not None:
        labels = validate.classes(inputs.labels, "labels", len(labels), logits.shape[1])
    names = class_names(None if folder is None else folder.names_file, logits.shape[1])
    if folder is not None:
        folder.forward, folder.class_names, folder.labels = forward, names, labels
    targets = inputs.targets
    if target_spec is not None:

        def draw(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
            return data.random_targets(labels, classes=classes, seed=options.seed)

        targets = choose_targets(target_spec, logits, labels, names, draw)
    true_labels = inputs.labels if targets is None else labels
    return AttackInputs(inputs.model, inputs.images, true_labels, targets, inputs.starts)
