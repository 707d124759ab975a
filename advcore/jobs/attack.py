"""The attack on one block of a job's images."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import validate
from ..api import minimize_distortion
from ..errors import DeviceError, ModelError
from ..options import Options, Progress
from ..result import status_code
from ..solve.gpu_record import answers
from .classes import Classes, choose_targets, class_names, evaluate, targets_by_key
from .inputs import Rows, Source
from .plan import Block
from .table import FAILED, joined, missing_table, result_table

if TYPE_CHECKING:
    from ..result import Result


class Unfinished(Exception):
    """The time limit or the callback has ended the attack on a block."""


class BlockFailed(Exception):
    """The model raised on a block, or its images cannot be attacked. The cause is the error.

    ``table`` has the rows of the block.
    """

    def __init__(self, table: Any) -> None:
        super().__init__("a block failed")
        self.table = table


@dataclass
class Attack:
    """What is done with each block.

    Attributes
    ----------
    model : object
    source : Source
    options : Options
    images : str
        Form of the adversarial images: "none", "float32" or "png".
    targets : str or None
        See `advcore.jobs.run`.
    untargeted : bool
    names : Path or None
        File with the names of the classes.
    warned : bool
        Whether warnings were shown. They are those of the first block.
    """

    model: Any
    source: Source
    options: Options
    images: str
    targets: str | None
    untargeted: bool
    names: Path | None
    warned: bool = field(default=False, init=False)

    def table(
        self, block: Block, callback: Callable[[Progress], object], time_limit: float | None
    ) -> Any:
        """Attack the images of a block, and return its rows.

        Raises
        ------
        BlockFailed
            The model raised, or the images do not fit to the options. Errors of the callback, of
            reading and of a GPU come as they are.
        Unfinished
            The time limit has passed, or the callback has returned True.
        """
        rows = self.source.read(block.start, block.stop)
        if len(rows.keys) + len(rows.unreadable) != len(block):
            raise ValueError(
                f"the source gave {len(rows.keys) + len(rows.unreadable)} images for "
                f"{block.start} to {block.stop}"
            )
        if self.untargeted or self.targets is not None:
            rows = replace(rows, targets=None)
        raised: list[BaseException] = []

        def guarded(state: Progress) -> object:
            try:
                return callback(state)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            return self._attacked(rows, guarded, time_limit)
        except (ModelError, TypeError, ValueError) as error:
            if raised:  # of the callback
                raise
            if _gpu_is_lost():  # The error is not of these images, and the others would have it.
                raise DeviceError(f"the GPU does not answer any more ({error})") from error
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = reason.replace("; the exception's .result holds what was computed", "")
            reasons = dict.fromkeys(rows.keys, reason)
            failed = missing_table(reasons, self.images, FAILED, rows.labels, rows.targets)
            tables = [failed, missing_table(rows.unreadable, self.images)]
            raise BlockFailed(joined(tables)) from error

    def _attacked(
        self, rows: Rows, callback: Callable[[Progress], object], time_limit: float | None
    ) -> Any:
        if not rows.keys:
            return missing_table(rows.unreadable, self.images)
        try:
            result, labels = self._run(rows, callback, time_limit)
        except ValueError:
            kept = without_misfits(rows, self.options, self._class_count(rows))
            if len(kept.keys) in (0, len(rows.keys)):
                raise
            return self._attacked(kept, callback, time_limit)
        # The limit may have passed in the moves to the grid of levels, when no search is left.
        if (result.status == status_code("interrupted")).any() or (
            time_limit is not None and result.seconds >= time_limit
        ):
            raise Unfinished
        return result_table(rows, result, labels, self.images, self.options.bounds)

    def _run(
        self, rows: Rows, callback: Callable[[Progress], object], time_limit: float | None
    ) -> tuple[Result, Classes | None]:
        options = {entry.name: getattr(self.options, entry.name) for entry in fields(Options)}
        options |= {"callback": callback, "time_limit": time_limit, "record": False}
        with warnings.catch_warnings():
            if self.warned:
                warnings.simplefilter("ignore")
            labels, targets = self._classes(rows)
            result = minimize_distortion(self.model, rows.images, targets, labels=labels, **options)
        self.warned = True
        return result, labels

    def _class_count(self, rows: Rows) -> int | None:
        """Return the number of the model's classes. None: the model cannot be asked."""
        if rows.labels is None and rows.targets is None:
            return None
        try:
            low = np.float32(self.options.bounds[0])
            image = np.broadcast_to(low, (1, *rows.images.shape[1:]))
            return int(evaluate(self.model, image, self.options)[1].shape[1])
        except (ModelError, TypeError, ValueError):
            return None

    def _classes(self, rows: Rows) -> tuple[Classes | None, Classes | None]:
        """Return labels and targets (B,) of the readable images, None where there are none."""
        if self.untargeted:
            return rows.labels, None
        if self.targets is None:
            return rows.labels, rows.targets
        _, logits = evaluate(self.model, rows.images, self.options)
        labels = rows.labels if rows.labels is not None else logits.argmax(axis=1)
        labels = validate.classes(labels, "labels", len(labels), logits.shape[1]).astype(np.int64)
        names = class_names(self.names, logits.shape[1])

        def draw(labels: NDArray[Any], classes: int) -> Classes:
            return targets_by_key(rows.keys, labels, classes, self.options.seed)

        return labels, choose_targets(self.targets, logits, labels, names, draw)


def _gpu_is_lost() -> bool:
    """Return whether torch has used a GPU that it cannot use any more, as after its crash."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized() and not answers(torch.device("cuda"))


def without_misfits(rows: Rows, options: Options, classes: int | None = None) -> Rows:
    """Return the rows without images that are not finite or outside the bounds, and without those
    that have a label or target beyond the model's ``classes``, where these are given.

    These are unreadable then. Bounds of each image's own say nothing about an image alone.
    """
    reasons: dict[str, str] = {}
    for key, image in zip(rows.keys, rows.images, strict=True):
        try:
            one = validate.images(image[None])
            validate.box(options.bounds, one.shape, one)
        except ValueError as error:
            text = str(error).removeprefix("images ").replace(", got 1 of 1 images outside", "")
            reasons[key] = text.partition(" in 1 of 1")[0]
    for name, values in (("label", rows.labels), ("target", rows.targets)):
        if values is not None and classes is not None:
            for row in np.flatnonzero((values < 0) | (values >= classes)).tolist():
                text = f"{name} {int(values[row])} is none of the model's {classes} classes"
                reasons.setdefault(rows.keys[row], text)
    good = np.array([key not in reasons for key in rows.keys], bool)
    kept = [None if x is None else x[good] for x in (rows.labels, rows.targets)]
    return replace(
        rows,
        keys=[key for key in rows.keys if key not in reasons],
        images=rows.images[good],
        labels=kept[0],
        targets=kept[1],
        unreadable=rows.unreadable | reasons,
    )
