"""Numbers of rows of the batches of a run: the rule, and the memory by which it is applied."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfTime, warn_caller
from ..options import Options
from ..oracles import NumpyOracle, TorchOracle
from ..oracles.batches import BatchRule
from ..oracles.independence import FIXED_ROWS, fix_rows
from .rounds import ORACLE_SLOTS

Floats = NDArray[np.float32]


def batch_rule(options: Options, batch_size: int | None, count: int | None) -> BatchRule:
    """Numbers of rows for models that do not get batches as they are.

    A ``batch_size`` is taken as it is, else memory bounds them. A run has ``count`` images.
    """
    if options.deterministic:
        return BatchRule(batch_size or FIXED_ROWS, True, batch_size is None)
    most = batch_size or ORACLE_SLOTS
    return BatchRule(min(most, max(count or most, 1)), False, batch_size is None)


def find_rows(oracle: TorchOracle | NumpyOracle, sample: Floats, options: Options) -> None:
    """With ``deterministic`` find the number of rows of every batch, and warn where it is 1."""
    if not options.deterministic or not len(sample):
        return
    assert oracle.batches is not None
    most = oracle.batches.most
    with suppress(OutOfTime):
        fix_rows(oracle, sample)
    if most > 1 and oracle.batches.most == 1:
        warn_caller(
            "deterministic: an image's logits depend on its place in every batch of 2 to "
            f"{most} images, so the model gets one image at a time. With a torch that uses MKL, "
            "the environment variable MKL_CBWR=AUTO,STRICT may help"
        )
