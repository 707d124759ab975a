"""The end of a run: what it left is recovered, moved to the grid, verified and made a `Result`."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core, validate
from ..errors import DeviceError, Interrupted, ModelError, ModelRaised
from ..options import Options
from ..result import Result
from .backends import EngineInfo, Results
from .job import Job, RunMonitor
from .levels import Grid, move_to_grid
from .starts import prefer_starts
from .verify import (
    MAX_PUSHES,
    Judge,
    confirm,
    distances,
    interrupted_rows,
    recover_interrupted,
)


@dataclass(frozen=True)
class Stop:
    """The cause of an early end: nothing, the user, the callback, the model or a GPU."""

    error: BaseException | None = None
    by_model: bool = False  # or by a GPU

    def raise_with(self, result: Result) -> None:
        """Raise the error that a caller gets, if there is one."""
        error = self.error
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(result) from error
        if isinstance(error, DeviceError):
            error.result = result
            raise error
        if self.by_model:
            raise ModelError(
                f"the model raised {type(error).__name__}: {error}; "
                "the exception's .result holds what was computed",
                result,
            ) from error
        if error is not None:
            raise error


def finish(
    job: Job,
    results: Results,
    error: BaseException | None,
    judge: Judge,
    options: Options,
    monitor: RunMonitor,
) -> Stop:
    """Verify what a run left, which ``error`` may have ended; changes ``results``."""
    unfinished = interrupted_rows(results)
    if error is not None:
        results["adversarial"][unfinished] = job.images[unfinished]
    if isinstance(error, Exception) and error is not monitor.error:
        if options.levels is not None:  # what is not on the grid is no result
            _withdraw(results, results["success"].copy())
        return Stop(_cause(error), by_model=True)
    claimed = results["success"].copy()
    interrupted = isinstance(error, KeyboardInterrupt)
    try:
        if error is None and unfinished.any():  # by the time limit or the callback
            recover_interrupted(judge, job, results)
        if job.starts is not None and not interrupted:
            prefer_starts(judge, job, results)
        _verify(job, results, judge, options, monitor, interrupted)
    except (Exception, KeyboardInterrupt) as raised:
        # With the successes of before are withdrawn the starts that took the place of a result.
        _withdraw(results, claimed | results["success"])
        return Stop(_cause(raised), by_model=isinstance(raised, Exception))
    return Stop(error)


def _cause(error: BaseException) -> BaseException | None:
    """Return the error of the model itself, where the given one wraps it."""
    return error.__cause__ if isinstance(error, ModelRaised) else error


def _withdraw(results: Results, rows: NDArray[np.bool_]) -> None:
    """These images were not verified: no successes, but the images stay as they are."""
    results["success"][rows] = False
    results["status"][rows] = _core.Status.interrupted


def _verify(
    job: Job,
    results: Results,
    judge: Judge,
    options: Options,
    monitor: RunMonitor,
    interrupted: bool,
) -> None:
    """The model's own forward on the successes, after they were moved to the grid of levels."""
    adversarial, success, status = (results[key] for key in ("adversarial", "success", "status"))
    claimed = success.copy()
    max_pushes = 0 if interrupted else MAX_PUSHES
    if options.levels is not None:
        low, high = options.bounds
        grid = Grid(options.levels, float(low), float(high))
        stopped = bool((status == _core.Status.interrupted).any())
        results["evaluations"] += move_to_grid(
            grid,
            judge,
            job.images,
            adversarial,
            success,
            stop_early=lambda: stopped or monitor.timed_out(),
        )
        if job.starts is not None and not interrupted:
            prefer_starts(judge, job, results, grid)
        claimed |= success
        max_pushes = 0  # a pushed image would leave the grid
    margin, prediction = confirm(judge, job, results, max_pushes)
    refuted = np.flatnonzero(claimed & ~success)
    if len(refuted):
        adversarial[refuted] = job.images[refuted]
        margin[refuted], prediction[refuted] = judge.margins(job.images[refuted], refuted)
        status[refuted] = _core.Status.interrupted if interrupted else _core.Status.not_found
    if options.levels is not None:
        rows = np.flatnonzero(success & (status == _core.Status.already_adversarial))
        moved = rows[(adversarial[rows] != job.images[rows]).any(axis=1)]
        status[moved] = _core.Status.stalled
    results["margin"] = np.where(claimed, margin, results["margin"])
    results["prediction"] = np.where(claimed, prediction, results["prediction"])


def make_result(
    images: Any,
    shape: tuple[int, ...],
    job: Job,
    results: Results,
    info: EngineInfo,
    options: Options,
) -> Result:
    """The engine's arrays in the kind of ``images`` and their shape (N, ...); seconds are 0."""
    adversarial, success = results["adversarial"], results["success"]
    r = distances(adversarial, job.images)
    distortion = np.where(success, r, np.inf).astype(np.float32)
    c = results["c"]
    if options.penalty == "l2_unsquared":
        c = np.where(success, 2 * c * r, np.nan).astype(np.float32)
    count, n = job.images.shape
    shaped: Any = adversarial.reshape(shape)
    if validate.is_tensor(images):
        shaped = sys.modules["torch"].from_numpy(shaped).to(images.device)
    penalty_distortion = None
    if options.loss == "cross_entropy":
        penalty_distortion = np.where(success, results["penalty_distortion"], np.float32(np.nan))
    untargeted = np.full(count, -1, np.int64)
    return Result(
        engine=info.as_dict(),
        adversarial=shaped,
        success=success,
        distortion=distortion,
        rms_distortion=(distortion / math.sqrt(n)).astype(np.float32),
        margin=results["margin"],
        prediction=results["prediction"].astype(np.int64),
        target=job.labels.astype(np.int64) if job.params.targeted else untargeted,
        c=c,
        status=results["status"],
        evaluations=results["evaluations"],
        forwards=results["forwards"],
        iterations=results["iterations"],
        rescues=results["rescues"],
        seconds=0.0,
        penalty=options.penalty,
        loss=options.loss,
        penalty_distortion=penalty_distortion,
    )
