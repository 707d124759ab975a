"""The end of a run: what it left is recovered, moved to the grid, verified and made a `Result`."""

from __future__ import annotations

import contextlib
import math
import sys
from dataclasses import dataclass, replace
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
from .native import default_threads
from .queries import Queries
from .segment import shorten
from .starts import prefer_starts
from .verify import (
    MAX_PUSHES,
    Judge,
    confirm,
    distances,
    interrupted_rows,
    keep_inside,
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
        if error is not None:  # of the callback
            if getattr(error, "result", None) is None:
                with contextlib.suppress(Exception):  # a class may refuse attributes
                    error.result = result  # type: ignore[attr-defined]
            raise error


def finish(
    job: Job,
    results: Results,
    error: BaseException | None,
    judge: Judge,
    options: Options,
    monitor: RunMonitor,
) -> Stop:
    """Verify what a run left, which ``error`` may have ended; changes ``results``.

    Successes are verified batch by batch. Where that ends early, those that were not are no
    successes, but the images stay as they are. Where the search ran on the model itself, its
    forwards there have shown all successes already, and a model that raises is not asked again.
    """
    judge.queries.end_search(results)
    unfinished = interrupted_rows(results)
    if error is not None:
        results["adversarial"][unfinished] = job.images[unfinished]
    keep_inside(job, results)
    ending = Ending(
        is_interrupted=isinstance(error, KeyboardInterrupt),
        by_model=isinstance(error, Exception) and error is not monitor.error,
        claimed=results["success"].copy(),
        verified=np.zeros(len(job.images), bool),
    )
    if ending.by_model and options.levels is not None:  # what is not on the grid is no result
        ending.withdraw(results)
        return Stop(_cause(error), by_model=True)
    if options.levels is None and judge.search_is_verification:
        ending.verified[:] = results["success"]
        if ending.by_model and not isinstance(error, DeviceError):
            return Stop(_cause(error), by_model=True)
        if ending.by_model:  # what is read from a GPU that failed is looked at again
            ending.verified &= results["status"] != _core.Status.interrupted
    try:
        with monitor.interrupts.insistent():
            if error is None and unfinished.any():  # by the time limit or the callback
                recover_interrupted(judge, job, results)
            if job.starts is not None and not ending.is_cut_short:
                prefer_starts(judge, job, results)
            _verify(job, results, judge, options, monitor, ending)
    except (Exception, KeyboardInterrupt) as raised:
        ending.withdraw(results)
        if error is None:  # else the first error is the one to tell of
            return Stop(_cause(raised), by_model=isinstance(raised, Exception))
    if error is None and monitor.interrupts.pending:
        return Stop(KeyboardInterrupt())
    return Stop(_cause(error), ending.by_model)


@dataclass
class Ending:
    """How a run ended, and which of its successes (N,) the model itself has confirmed since."""

    is_interrupted: bool  # by Ctrl-C
    by_model: bool  # or by a GPU
    claimed: NDArray[np.bool_]
    verified: NDArray[np.bool_]

    @property
    def is_cut_short(self) -> bool:
        """Whether nothing but the verification is left to do."""
        return self.is_interrupted or self.by_model

    def withdraw(self, results: Results) -> None:
        """These images were not verified: no successes, but the images stay as they are."""
        rows = (self.claimed | results["success"]) & ~self.verified
        results["success"][rows] = False
        results["status"][rows] = _core.Status.interrupted


def _cause(error: BaseException | None) -> BaseException | None:
    """What the model itself raised."""
    return error.__cause__ if isinstance(error, ModelRaised) else error


def _verify(
    job: Job,
    results: Results,
    judge: Judge,
    options: Options,
    monitor: RunMonitor,
    ending: Ending,
) -> None:
    """The model's own forward on the successes, after they were moved to the grid of levels.

    The line from each to its clean image is looked along as well.
    """
    adversarial, success, status = (results[key] for key in ("adversarial", "success", "status"))
    ending.claimed |= success
    needed = judge.needed_margins(job, results)
    # A run with own or wide bounds has asked for less than the margin that is needed.
    max_pushes = 0 if ending.is_cut_short and judge.images_are_probed else MAX_PUSHES

    def finished() -> NDArray[np.intp]:
        # A budget ends a search anywhere. A nearer point on the line from there would make the
        # result better than that of a larger budget, whose search did not look along it.
        cut = (status == _core.Status.interrupted) | (status == _core.Status.budget)
        return np.flatnonzero(success & ~cut)

    if options.levels is not None:
        if not ending.is_cut_short:
            shorten(judge, job, results, finished(), np.maximum(needed, judge.required_margin))
        _move_to_grid(job, results, judge, options, monitor, needed)
        if job.starts is not None and not ending.is_cut_short:
            prefer_starts(judge, job, results, _grid(options), needed)
        ending.claimed |= success
        max_pushes = 0  # a pushed image would leave the grid
    confirm(judge, job, results, needed, ending.verified, max_pushes)
    refuted = np.flatnonzero(ending.claimed & ~success)
    if len(refuted):
        adversarial[refuted] = job.images[refuted]
        margin, prediction = judge.margins(job.images[refuted], refuted)
        results["margin"][refuted], results["prediction"][refuted] = margin, prediction
        stopped = _core.Status.interrupted if ending.is_cut_short else _core.Status.not_found
        status[refuted] = stopped
    if options.levels is None:
        if not ending.is_cut_short:
            shorten(judge, job, results, finished(), np.maximum(needed, judge.required_margin))
    else:
        rows = np.flatnonzero(success & (status == _core.Status.already_adversarial))
        moved = rows[(adversarial[rows] != job.images[rows]).any(axis=1)]
        status[moved] = _core.Status.stalled


def _grid(options: Options) -> Grid:
    assert options.levels is not None
    low, high = options.bounds
    return Grid(options.levels, float(low), float(high))


def _move_to_grid(
    job: Job,
    results: Results,
    judge: Judge,
    options: Options,
    monitor: RunMonitor,
    needed: NDArray[np.float64],
) -> None:
    """Move the successes to the grid of levels, but clean images that are there already."""
    grid, success, status = _grid(options), results["success"], results["status"]
    stopped = bool((status == _core.Status.interrupted).any())
    already = np.flatnonzero(success & (status == _core.Status.already_adversarial))
    already = already[grid.contains(job.images[already])]
    if len(already):
        margin, prediction = judge.margins(job.images[already], already)
        already = already[judge.accepts(margin, prediction, already, needed[already])]
    success[already] = False
    try:
        evaluations, forwards = move_to_grid(
            grid,
            replace(judge, queries=Queries.unlimited(len(job.images))),  # it returns what it took
            job.images,
            results["adversarial"],
            success,
            stop_early=lambda: stopped or monitor.timed_out(),
            needed=needed,
            norm=str(options.norm),
        )
        results["evaluations"] += evaluations
        results["forwards"] += forwards
    finally:
        success[already] = True


def make_result(
    images: Any,
    shape: tuple[int, ...],
    job: Job,
    results: Results,
    info: EngineInfo,
    options: Options,
    queries: Queries,
) -> Result:
    """The engine's arrays in the kind of ``images`` and their shape (N, ...); seconds are 0."""
    adversarial, success = results["adversarial"], results["success"]
    threads = options.threads or default_threads()
    r = distances(adversarial, job.images, threads)
    euclidean = np.where(success, r, np.inf).astype(np.float32)
    distortion = euclidean
    if options.norm != "l2":
        size = distances(adversarial, job.images, norm=job.params.norm)
        distortion = np.where(success, size, np.inf).astype(np.float32)
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
        rms_distortion=(euclidean / math.sqrt(n)).astype(np.float32),
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
        norm=str(options.norm),
        queries=queries.total(results),
    )
