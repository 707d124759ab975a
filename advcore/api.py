"""`minimize_distortion`: checks, run, verification, result."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, validate
from .errors import DeviceError, Interrupted, ModelError, ModelRaised
from .models.preprocessing import warn_if_normalised
from .network import Network
from .oracles import TorchOracle
from .oracles.logits import batched, margins
from .result import Result
from .solve import verify
from .solve.backends import SAMPLE, Path, choose_path, logit_noise, probes
from .solve.job import Job, Progress, Watch
from .solve.native import default_threads, run_native
from .solve.rounds import run_oracle
from .solve.settings import EFFORTS, affordable, engine_params
from .solve.starts import keep_starts, nearest_starts

Floats = NDArray[np.float32]


def minimize_distortion(
    model: Any,
    images: Any,
    targets: Any = None,
    *,
    labels: Any = None,
    loss: str = "margin",
    norm: str = "l2",
    bounds: Any = (0.0, 1.0),
    confidence: float = 1e-4,
    effort: str = "default",
    history: int = 5,
    max_evaluations: int | None = None,
    tolerance: float = 1e-3,
    c_init: float | str = "auto",
    c_search: str = "fused",
    levels: int | None = None,
    starts: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: Any = None,
    threads: int | None = None,
    time_limit: float | None = None,
    progress: bool = False,
    callback: Callable[[Progress], object] | None = None,
) -> Result:
    """Smallest ``||r||_2`` that makes the model see another class in ``x0 + r``, for each image.

    Parameters
    ----------
    model : torch.nn.Module, advcore.Network, or object with NumPy forward and backward
        Images in, logits (B, K) out. On the CPU, chains of fully connected and convolutional layers
        (`Network.from_torch` says which; up to two million weights of convolutions) are lowered to
        the native engine (the result's ``engine`` says so); other modules and differentiable
        callables run through torch, in eval mode. ``forward(x) -> logits`` and
        ``backward(dlogits) -> dx`` make a NumPy model. One logit z counts as two, (0, z).
    images : array or tensor (N, ...), inside ``bounds``
        float32; other real dtypes, and arrays that are not contiguous, are copied once.
    targets : (N,) int, or an int for all images, optional
        Class that each image shall be taken for. None: untargeted, any class but ``labels``: one
        search for the class that is reached first, and two (``effort="thorough"``: four,
        ``"fast"``: none) for others, as that is not always the nearest.
    labels : (N,) int, or an int for all images, optional
        True classes, for untargeted runs; None: the model's own prediction. Where targets are
        given they decide alone, and labels are only checked.
    loss : "margin" or "cross_entropy"
        "margin": smoothed log-odds, then a polish on the exact margin. "cross_entropy": the loss
        of Szegedy et al. 2013, solved as they wrote it.
    norm : "l2" or "l2_unsquared"
        The penalty is ``c * ||r||^2`` or ``c * ||r||``; both have the same minimisers, with
        c of the second = 2 c ||r|| of the first. The result's ``c``, and ``c_init``, multiply
        the penalty of this norm: a larger c gives a smaller r.
    bounds : (lower, upper)
        Numbers, or arrays that broadcast to the images. float64 bounds are rounded inward.
    confidence : float >= 0
        Margin required, in logits: target's minus the best other (untargeted: best other minus
        the label's). It is raised to the rounding noise of the model's logits where that is more.
    effort : "fast", "default" or "thorough"
        Evaluations against distortion. An image that no search reaches (``not_found``) costs 200
        to 1,500 evaluations, "thorough" up to 2,000, unless ``max_evaluations`` says less.
    history : int in [3, 8]
        Pairs (s, y) of L-BFGS.
    max_evaluations : int, optional
        Forward+backward pairs of one image; the repair of ``levels`` takes up to 27 more. Where an
        effort needs more (`settings.NEEDED`) the next lower one is taken; ``engine`` says so.
    tolerance : float > 0
        Relative change of c and of x at which a search stops.
    c_init : "auto" or float > 0
        First c; "auto": from the linearised problem.
    c_search : "fused" or "bisection"
        "fused": c is chosen anew each iteration at no evaluation (``loss="cross_entropy"``: an
        image for which that fails is bisected). "bisection": a full solve for each c, the
        paper's way.
    levels : int >= 2, optional
        Results on the grid of that many equidistant values of scalar ``bounds`` (256 for 8 bits),
        repaired and verified there.
    starts : array (N, ...) or (N, S, ...), or (pool images, pool classes), optional
        Adversarial images to start further searches from; of a pool the three nearest with the
        target's class (untargeted: another class than the label). The smallest result counts.
    seed : int >= 0
        Of random directions, which are needed only where a gradient is zero.
    batch_size : int, optional
        Images in work at once (a thread, on the native path).
    device : optional
        Device of torch for the model's evaluations; None: the module's own, else the CPU. The
        solver runs there too where that is a GPU and advcore was built with CUDA, and a native
        network with it, in one launch; the result's ``engine`` says what ran.
    threads : int, optional
        Of the CPU. None: ADVCORE_NUM_THREADS, else all CPUs; where a model runs through torch,
        as many as torch has.
    time_limit : float > 0, optional
        Seconds; images that are not finished then keep their best, or what the search has reached
        where the model confirms it, and get status "interrupted".
    progress : bool
        Show a progress bar (needs ``advcore[cli]``).
    callback : callable, optional
        Called with a `Progress` some 20 times a second; returning True stops the run.

    Returns
    -------
    Result
        Success is claimed for images that the model's own forward confirmed. An image's result
        depends on that image, its target, the model and the options alone.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    Interrupted
        Ctrl-C; a KeyboardInterrupt whose ``result`` holds what was computed.
    ModelError
        The model raised in the middle of the run; ``result`` as above.
    DeviceError
        The GPU or its memory failed in the solver; ``result`` as above.

    Warns
    -----
    UserWarning
        Most targets are what the model sees already, as with labels passed for targets; the
        gradient of the model is zero at the first images, as of a quantised one; images look
        normalised.
    """
    begin = time.perf_counter()
    given = validate.images(images)
    bounds = validate.pair(bounds, "bounds")
    flat, lo, hi = validate.box(bounds, given.shape, given)
    warn_if_normalised(given)
    validate.choice(loss, "loss", ("margin", "cross_entropy"))
    validate.choice(norm, "norm", ("l2", "l2_unsquared"))
    validate.choice(effort, "effort", EFFORTS)
    validate.choice(c_search, "c_search", ("fused", "bisection"))
    confidence = validate.number(confidence, "confidence", least=0, most=validate.LARGE)
    tolerance = validate.number(tolerance, "tolerance", above=0, most=0.5)
    history = validate.integer(history, "history", least=3, most=8)
    seed = validate.integer(seed, "seed", least=0, most=2**63)
    first_c = None
    if not isinstance(c_init, str) or c_init != "auto":
        first_c = validate.number(c_init, "c_init", least=1 / validate.LARGE, most=validate.LARGE)
    if max_evaluations is not None:
        validate.integer(max_evaluations, "max_evaluations", least=1)
    if batch_size is not None:
        validate.integer(batch_size, "batch_size", least=1, most=2**20)
    if threads is not None:
        validate.integer(threads, "threads", least=1, most=1024)
    if time_limit is not None:
        validate.number(time_limit, "time_limit", above=0)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    if levels is not None:
        from .solve.levels import check_levels

        check_levels(levels, bounds)

    count, targeted = len(given), targets is not None
    path = choose_path(model, flat[:SAMPLE], given.shape[1:], device)
    with _torch_threads(path, threads):
        size = path.rows if path.network is not None else min(path.rows, batch_size or path.rows)
        required = confidence
        if count:
            required += 4 * logit_noise(path, probes(lo, hi))
        truth = None
        if labels is not None:
            truth = validate.classes(labels, "labels", count, path.classes)
        if targeted:
            aim = validate.classes(targets, "targets", count, path.classes)
        elif truth is not None:
            aim = truth
        else:
            aim = _predict(path, flat, size)
        pool = None
        if starts is not None:
            pool = nearest_starts(starts, given.shape, flat, aim, targeted, lo, hi)
        n = math.prod(given.shape[1:])
        if loss == "margin" and c_search == "fused":  # the others have no efforts
            asked, effort = effort, affordable(effort, path.kind, n, max_evaluations)
            if effort != asked:
                path.info["effort"] = f"{effort} (max_evaluations is too small for {asked})"
        job = Job(
            engine_params(
                n=n,
                classes=path.classes,
                targeted=targeted,
                kind=path.kind,
                loss=loss,
                norm=norm,
                c_search=c_search,
                c_init=first_c,
                confidence=required,
                effort=effort,
                history=history,
                tolerance=tolerance,
                max_evaluations=max_evaluations,
                starts=0 if pool is None else pool.shape[1],
                seed=seed,
            ),
            flat,
            aim,
            lo,
            hi,
            pool,
        )
        with contextlib.ExitStack() as stack:
            if progress:
                from .solve.progress import bar

                callback = stack.enter_context(bar(count, callback))
            watch = Watch(count, time_limit, callback, begin)
            if path.network is not None and path.cuda:
                from .solve.cuda_native import run_queue

                assert isinstance(path.oracle, TorchOracle)
                found, error = run_queue(
                    path.network,
                    job,
                    device=path.oracle.device,
                    slots=batch_size,
                    watch=watch,
                    info=path.info,
                )
            elif path.network is not None:
                threads = threads or default_threads()
                path.info["threads"] = threads
                found, error = run_native(
                    path.network, job, threads=threads, slots=batch_size, watch=watch
                )
            else:
                assert path.oracle is not None
                found, error = run_oracle(
                    path.oracle, job, slots=batch_size, watch=watch, cuda=path.cuda
                )
            if error is None:
                try:
                    watch.before = (0, 0, 0)  # these are of the whole run
                    watch(
                        int((found["status"] != _core.Status.interrupted).sum()),
                        int(found["success"].sum()),
                        int(found["evaluations"].sum()),
                    )
                except (Exception, KeyboardInterrupt) as raised:
                    error = raised
        cut = (found["status"] == _core.Status.interrupted) & ~found["success"]
        if error is not None:
            found["adversarial"][cut] = flat[cut]
        if isinstance(error, ModelRaised):
            error = error.__cause__
        model_failed = isinstance(error, Exception) and error is not watch.error
        if model_failed and levels is not None:  # not on the grid, so no result; the images stay
            found["status"][found["success"]] = _core.Status.interrupted
            found["success"][:] = False
        elif not model_failed:
            unverified = found["success"].copy()
            grid = None if levels is None else (levels, float(bounds[0]), float(bounds[1]))
            try:
                if error is None and cut.any():  # by the time limit or the callback
                    saved = verify.salvage(
                        path.forward,
                        size,
                        flat,
                        aim,
                        targeted,
                        required,
                        lo,
                        hi,
                        found["adversarial"],
                        np.flatnonzero(cut),
                    )
                    found["success"][saved] = True
                if pool is not None and not isinstance(error, KeyboardInterrupt):
                    keep_starts(path.forward, size, job, found, confidence)
                interrupted = isinstance(error, KeyboardInterrupt)
                _verify(path, job, found, grid, confidence, size, watch, interrupted)
            except (Exception, KeyboardInterrupt) as raised:
                unverified |= found["success"]  # given starts that took the place of a result
                found["success"][unverified] = False  # the images stay, as they are
                found["status"][unverified] = _core.Status.interrupted
                error = raised.__cause__ if isinstance(raised, ModelRaised) else raised
                model_failed = isinstance(raised, Exception)
    result = _result(path, images, given, job, found, norm, loss)
    result.seconds = time.perf_counter() - begin
    if isinstance(error, KeyboardInterrupt):
        raise Interrupted(result) from error
    if isinstance(error, DeviceError):
        error.result = result
        raise error
    if model_failed:
        raise ModelError(
            f"the model raised {type(error).__name__}: {error}; "
            "the exception's .result holds what was computed",
            result,
        ) from error
    if error is not None:
        raise error
    already = int((result.status == _core.Status.already_adversarial).sum())
    if targeted and count >= 5 and (already == count or (count >= 10 and 2 * already > count)):
        warnings.warn(
            f"targets equals the model's own prediction for {already} of {count} images; for an "
            "untargeted run pass them as labels=",
            stacklevel=2,
        )
    return result


@contextlib.contextmanager
def _torch_threads(path: Path, count: int | None) -> Iterator[None]:
    """``count`` CPU threads of torch inside, where a model runs through it."""
    if count is None or not isinstance(path.oracle, TorchOracle):
        yield
        return
    torch = sys.modules["torch"]
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _verify(
    path: Path,
    job: Job,
    found: dict[str, NDArray[Any]],
    grid: tuple[int, float, float] | None,
    confidence: float,
    size: int,
    watch: Watch,
    interrupted: bool,
) -> None:
    """The model's own forward on the results, after moving them to the grid; changes ``found``."""
    success, adversarial, targeted = found["success"], found["adversarial"], job.params.targeted
    before = success.copy()
    if grid is not None:
        from .solve.levels import to_grid

        stopped = bool((found["status"] == _core.Status.interrupted).any())
        model = path.model
        if isinstance(model, Network):  # it remembers its last forward, for all threads that use it
            model = Network(model.layers)
        found["evaluations"] += to_grid(
            model,
            *grid,
            job.images,
            job.labels,
            targeted,
            confidence,
            adversarial,
            success,
            size,
            hurry=lambda: stopped or watch.late(),
        )
        if job.starts is not None and not interrupted:
            keep_starts(path.forward, size, job, found, confidence, grid)
        before |= success
    seen, predicted = verify.confirm(
        path.forward,
        size,
        job.images,
        job.labels,
        targeted,
        confidence,
        job.lo,
        job.hi,
        adversarial,
        success,
        pushes=0 if interrupted or grid is not None else verify.PUSHES,
    )
    lost = np.flatnonzero(before & ~success)
    if len(lost):
        adversarial[lost] = job.images[lost]
        z = batched(path.forward, job.images[lost], size)
        seen[lost], predicted[lost] = margins(z, job.labels[lost], targeted)
        found["status"][lost] = _core.Status.interrupted if interrupted else _core.Status.not_found
    if grid is not None:
        rows = np.flatnonzero(success & (found["status"] == _core.Status.already_adversarial))
        moved = rows[(adversarial[rows] != job.images[rows]).any(axis=1)]
        found["status"][moved] = _core.Status.stalled
    found["margin"] = np.where(before, seen, found["margin"])
    found["prediction"] = np.where(before, predicted, found["prediction"])


def _predict(path: Path, flat: Floats, size: int) -> NDArray[np.int32]:
    if not len(flat):
        return np.empty(0, np.int32)
    logits = batched(path.forward, flat, size)
    return np.asarray(logits.argmax(axis=1), dtype=np.int32)


def _result(
    path: Path,
    images: Any,
    given: NDArray[Any],
    job: Job,
    found: dict[str, NDArray[Any]],
    norm: str,
    loss: str,
) -> Result:
    """The engine's arrays in the shape and kind of the images."""
    adversarial, success = found["adversarial"], found["success"]
    r = verify.distances(adversarial, job.images)
    distortion = np.where(success, r, np.inf).astype(np.float32)
    c = found["c"]
    if norm == "l2_unsquared":
        c = np.where(success, 2 * c * r, np.nan).astype(np.float32)
    count, n = job.images.shape
    shaped: Any = adversarial.reshape(given.shape)
    if validate.is_tensor(images):
        shaped = sys.modules["torch"].from_numpy(shaped).to(images.device)
    targeted = job.params.targeted
    return Result(
        engine=path.info,
        adversarial=shaped,
        success=success,
        distortion=distortion,
        rms_distortion=(distortion / math.sqrt(n)).astype(np.float32),
        margin=found["margin"],
        prediction=found["prediction"].astype(np.int64),
        target=job.labels.astype(np.int64) if targeted else np.full(count, -1, np.int64),
        c=c,
        status=found["status"],
        evaluations=found["evaluations"],
        forwards=found["forwards"],
        iterations=found["iterations"],
        rescues=found["rescues"],
        seconds=0.0,
        norm=norm,
        loss=loss,
        penalty_distortion=None
        if loss != "cross_entropy"
        else np.where(success, found["penalty_distortion"], np.float32(np.nan)),
    )
