"""`minimize_distortion` in five steps: options, back end, job, run, finish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, validate
from .effort import Effort
from .errors import OutOfTime, warn_caller
from .options import Options, Progress, split_former_norm
from .oracles.logits import batched, squashing
from .result import Result
from .solve.backends import Backend, Results
from .solve.choose import choose_backend
from .solve.finish import Stop, finish, make_result
from .solve.interrupts import Interrupts
from .solve.job import Job, RunMonitor, TrialClock
from .solve.params import Facts, engine_params
from .solve.probes import PROBE_IMAGES, are_probed, check_backward, probed_noise, trial_images
from .solve.queries import LEAST_SEARCH, Queries
from .solve.record import make_record
from .solve.starts import nearest_starts
from .solve.verify import NOISE_FACTOR, Judge

Floats = NDArray[np.float32]


def minimize_distortion(
    model: Any,
    images: Any,
    targets: Any = None,
    *,
    labels: Any = None,
    starts: Any = None,
    loss: str = "margin",
    penalty: str = "l2",
    norm: str | float = "l2",
    bounds: Any = (0.0, 1.0),
    confidence: float = 1e-4,
    effort: str | Effort = "default",
    history: int = 5,
    max_evaluations: int | None = None,
    max_queries: int | None = None,
    stop_at: float | None = None,
    smoothing: bool = True,
    tolerance: float = 1e-3,
    c_init: float | str = "auto",
    c_search: str = "fused",
    levels: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: Any = None,
    threads: int | None = None,
    time_limit: float | None = None,
    progress: bool = False,
    callback: Callable[[Progress], object] | None = None,
    deterministic: bool = False,
    record: bool | None = None,
) -> Result:
    """Find, for each image, the smallest ``||r||`` that gives ``x0 + r`` another class.

    ``docs/options.md`` lists all options with their values and defaults.

    Parameters
    ----------
    model : torch.nn.Module, advcore.Network, or object with NumPy forward and backward
        Maps images to logits (B, K). On the CPU, chains of fully connected and convolutional layers
        (`Network.from_torch` lists them; up to eight million weights of convolutions), and such
        networks with branches (up to 20,000), are lowered to the native engine. Other modules and
        differentiable callables run through torch, in eval mode. A callable that only runs a module
        counts as that module, a Foolbox ``PyTorchModel`` and an ART ``PyTorchClassifier`` too. A
        NumPy model has ``forward(x) -> logits`` and ``backward(dlogits) -> dx``. A model with a
        single logit z counts as one with the two logits (0, z). The result's ``engine`` says what
        ran. Where the output is a tuple, list or dictionary with one tensor, or has ``logits``,
        that is taken. It is one class for an image, that of the largest logit.
        The model is tried on a few of the images, and on random ones inside the bounds.
    images : array or tensor (N, ...), inside ``bounds``
        Contiguous float32 arrays are used as they are, others are copied once.
    targets : (N,) int, or an int for all images, optional
        Class that each image shall be taken for. None: untargeted. The first class reached is not
        always the nearest, so further classes are ranked by their
        linearised distance and searched (``effort="fast"``: none).
    labels : (N,) int, or an int for all images, optional
        True classes of an untargeted run. None: the model's own prediction. With targets the
        labels are checked and otherwise ignored.
    starts : array (N, ...) or (N, S, ...), or (pool images, pool classes), optional
        Adversarial images from which further searches start. The smallest result counts. A pool
        gives each image the three nearest of its images with the target's class (untargeted: with
        another class than the label).
    loss : "margin" or "cross_entropy"
        "margin" minimises smoothed log-odds and then polishes on the exact margin.
        "cross_entropy" is the loss of Szegedy et al. 2013, solved as they wrote it.
    penalty : "l2" or "l2_unsquared"
        The distortion term is ``c * ||r||^2`` or ``c * ||r||``. Both have the same minimisers, with
        c of the second equal to 2 c ||r|| of the first. The result's ``c`` and ``c_init`` belong to
        the chosen form. A larger c gives a smaller r.
    norm : "l2", "linf" or "l1"; also 2, inf or 1
        Norm of r that is smallest in the result, and in which its distances are given. ``loss``,
        ``penalty``, ``c_init`` and ``c_search`` belong to "l2": with another norm they have their
        defaults, and the result has no c. "l2_unsquared", a former way to give the penalty, warns.
    bounds : (lower, upper)
        Numbers, or arrays that broadcast to the images. float64 bounds are rounded inward.
    confidence : float >= 0
        Margin required, in logits. The margin is the target's logit minus the largest other one
        (untargeted: the largest other one minus the label's). Four times the rounding noise of the
        model's logits is added.
    effort : "fast", "default", "thorough" or "exhaustive"
        Each begins with the searches of the one before. More effort takes more evaluations and
        finds smaller distortions. An image for which no search succeeds (``not_found``) costs 200
        to 1,500 evaluations, "thorough" up to 2,000, unless ``max_evaluations`` is less.
    history : int in [3, 8]
        Pairs (s, y) of L-BFGS.
    max_evaluations : int, optional
        Budget of an image, in pairs of a forward and a backward. The repair of ``levels`` takes up
        to 27 more; with 8 levels or fewer up to 90 more, and 700 further forwards. It cuts the
        searches of an effort off; the efforts begin alike, so a smaller budget needs no lower
        effort.
    max_queries : int >= 10, optional
        Budget of an image in queries: each of its forwards and each of its backwards counts one.
        The search, the label of an untargeted run without ``labels``, and the verification are in
        it, so that no image ever takes more; two queries are kept for the verification. Not in it
        are the trials of the model, which are on random images then, some hundred queries a call.
        With bounds of each value or image, or wider than 256, it must be 30 or more, as 20 go to
        the rounding at the result. Not with ``levels``.
    stop_at : float >= 0, optional
        Distortion that is small enough, in the norm of the run. The search of an image ends at the
        first adversarial image that is no further, with the status ``good_enough``.
    smoothing : bool
        Whether the search may evaluate the network with smoothed kinks. False: every evaluation is
        one of the model as it is, for harnesses that watch its forwards and take the smallest
        adversarial image that they see. Distortions are a little larger then.
    tolerance : float > 0
        Relative change of c and of x at which a search stops.
    c_init : "auto" or float > 0
        First c. "auto": from the linearised problem.
    c_search : "fused" or "bisection"
        "fused" chooses c anew in each iteration, at no evaluation. With ``loss="cross_entropy"`` an
        image for which that fails is bisected. "bisection" does a full solve for each c, as the
        paper does.
    levels : int >= 2, optional
        Number of equidistant values between two scalar ``bounds`` (256 for 8 bits). The results
        take these values alone, and are repaired and verified there. With 8 or fewer, such as
        binary features, a search by forwards looks for fewer moves from level to level.
    seed : int >= 0
        Seed of random directions, which are needed only where a gradient is zero.
    batch_size : int, optional
        Images in work at once. In the native engine it is the number of each thread. A model that
        does not run there never gets more images at once: with 1 it gets one image, always.
    device : optional
        Device of torch on which the model is evaluated. None: the module's own, else the CPU. On a
        GPU the solver runs there too if advcore was built with CUDA and the solver passes a test
        there. A native network then runs with it, without Python. Else the solver runs on the CPU.
        There networks run in the engine, and the model on the GPU verifies. The result's ``engine``
        says what ran.
    threads : int, optional
        Threads of the CPU. None: ADVCORE_NUM_THREADS, else all CPUs. A model that runs through
        torch has as many as torch. In the child of a fork, after torch has used threads, only
        ``threads=1`` does not hang.
    time_limit : float > 0, optional
        Seconds for the trials of the model and the search; the last call of the model is waited
        for, and what was found is verified after it. Images that are not finished by then have the
        status "interrupted". They keep the best image that was found, or the point that the search
        has reached if the model confirms it.
    progress : bool
        Show a progress bar (needs ``advcore[cli]``), or a line in a notebook without ipywidgets.
    callback : callable, optional
        Called with a `Progress` some 20 times a second. The run stops when it returns True. What
        it raises is raised again after the verification, with the attribute ``result`` unless it
        has one already.
    deterministic : bool
        Whether the bits of an image's result may depend on that image, its target, the model and
        the options alone also where the model does not run in the native engine: not on the other
        images, its place among them, or where a data set is cut into blocks. Every batch then has
        one number of rows, ``batch_size`` at most, and the model is tried on random images.
    record : bool, optional
        Whether the result's ``record`` holds hashes of the model and of the inputs. None: where
        there are 32 images or more.

    Returns
    -------
    Result
        ``success`` is True for images that the model's own forward has confirmed. The line from
        each to its clean image was looked along by forwards for a nearer one. An image's result
        depends on that image, its target, the model and the options alone.

    Raises
    ------
    TypeError, ValueError
        An argument is not as described.
    Interrupted
        Ctrl-C was pressed after the search began. It is a KeyboardInterrupt whose ``result`` holds
        what was computed. After the search the verification still ends; a second Ctrl-C ends it.
    ModelError
        The model raised in the middle of the run, as where a harness ends its budget. It has a
        ``result`` too, with the best image so far of each (`ModelError` says which are successes).
    DeviceError
        The GPU or its memory failed in the solver after images were delivered, or it hangs. It has
        a ``result`` too. Before that the solver goes on without the part that failed.

    Warns
    -----
    UserWarning
        (1) Most targets are what the model predicts already, as with labels passed for targets,
        or most labels are not, as where preprocessing is missing.
        (2) The gradient of the model is zero at the first images, as that of a quantised model is,
        or the ``backward`` of a NumPy model is not the gradient of its ``forward``. Where it has
        the wrong sign, or is off by a constant factor, that is a ValueError. A straight-through
        gradient of torch, along which the logits are constant, is warned of too.
        (3) Images look normalised.
    RuntimeWarning
        The solver cannot use the GPU of the model, or a part of it has failed there. Once each.
    FutureWarning
        The penalty was given as ``norm``.
    """
    begin = time.perf_counter()
    norm, penalty = split_former_norm(norm, penalty)
    arrays, extent = validate.images_with_range(images)
    options = Options(
        loss=loss,
        penalty=penalty,
        norm=norm,
        bounds=bounds,
        confidence=confidence,
        effort=effort,
        history=history,
        max_evaluations=max_evaluations,
        max_queries=max_queries,
        stop_at=stop_at,
        smoothing=smoothing,
        tolerance=tolerance,
        c_init=c_init,
        c_search=c_search,
        levels=levels,
        seed=seed,
        batch_size=batch_size,
        device=device,
        threads=threads,
        time_limit=time_limit,
        progress=progress,
        callback=callback,
        deterministic=deterministic,
        record=record,
    )
    flat, lo, hi = validate.box(options.bounds, arrays.shape, arrays, extent)
    validate.warn_if_normalised(arrays)
    clock = TrialClock(options.time_limit, begin)
    sample, tried, box = flat[:PROBE_IMAGES].copy(), flat, (lo, hi)
    if (options.deterministic or options.max_queries is not None) and len(flat):
        tried, box = trial_images(lo, hi)
        sample = tried
    backend = choose_backend(model, sample, arrays.shape[1:], options, clock, len(flat))
    with backend.verifier.limit_threads(options.threads):
        judge = _make_judge(backend, options, flat, (lo, hi), targets, labels)
        pool = None
        with contextlib.suppress(OutOfTime):
            check_backward(backend, tried, box, options)
            pool = nearest_starts(starts, arrays.shape, flat, judge, (lo, hi))
        clock.ended = True
        job = _make_job(backend, options, judge, flat, (lo, hi), pool)
        with Interrupts() as interrupts:
            results, error, monitor = _run(backend, job, options, begin, interrupts)
            stop = finish(job, results, error, judge, options, monitor)
            result = make_result(images, arrays.shape, job, results, backend.info, options, judge)
            result.seconds = time.perf_counter() - begin
            known_starts = None if pool is None else starts
            result.record = make_record(model, flat, known_starts, arrays.shape, judge, options)
    if interrupts.pending and stop.error is None:
        stop = Stop(KeyboardInterrupt())
    stop.raise_with(result)
    _warn_of_classes(result, judge.targeted, labels is not None)
    return result


def _make_judge(
    backend: Backend,
    options: Options,
    flat: Floats,
    bounds: tuple[Floats, Floats],
    targets: Any,
    labels: Any,
) -> Judge:
    """Return the classes of the images and the required margin, which covers the rounding."""
    count, required = len(flat), options.confidence
    if count:
        with contextlib.suppress(OutOfTime):
            required += NOISE_FACTOR * probed_noise(backend, *bounds)
    classes, label, label_source = None, np.full(count, -1, np.int64), "none"
    if labels is not None:
        classes = validate.classes(labels, "labels", count, backend.classes)
        label, label_source = classes.astype(np.int64), "given"
    if targets is not None:
        classes = validate.classes(targets, "targets", count, backend.classes)
    queries = Queries(np.zeros(count, np.int32), options.max_queries)
    if classes is None:
        queries.count(np.arange(count))
        verifier = backend.verifier
        classes = np.zeros(count, np.int32)
        if count:
            with contextlib.suppress(OutOfTime):
                logits = batched(verifier.forward, flat, verifier.rows)
                classes = logits.argmax(axis=1).astype(np.int32)
                label, label_source = classes.astype(np.int64), "predicted"
    judge = Judge(
        verifier=backend.verifier,
        labels=classes,
        targeted=targets is not None,
        confidence=options.confidence,
        required_margin=required,
        search=backend,
        images_are_probed=are_probed(*bounds),
        queries=queries,
        label=label,
        label_source=label_source,
    )
    least = LEAST_SEARCH + judge.kept_back
    if options.max_queries is not None and options.max_queries < least:
        raise ValueError(
            f"max_queries must be at least {least} with bounds of each value or image, or wide "
            f"ones, got {options.max_queries}"
        )
    return judge


def _make_job(
    backend: Backend,
    options: Options,
    judge: Judge,
    flat: Floats,
    bounds: tuple[Floats, Floats],
    starts: Floats | None,
) -> Job:
    """Return the engine's job."""
    facts = Facts(
        n=flat.shape[1],
        classes=backend.classes,
        kind=backend.kind if options.smoothing else "exact",
        targeted=judge.targeted,
        required_margin=judge.required_margin,
        starts=0 if starts is None else starts.shape[1],
        squashing=squashing(backend.squash, judge.least_margin),
        kept_queries=judge.kept_back,
    )
    return Job(engine_params(options, facts), flat, judge.labels, *bounds, starts)


def _run(
    backend: Backend, job: Job, options: Options, begin: float, interrupts: Interrupts
) -> tuple[Results, BaseException | None, RunMonitor]:
    """Run the search, and return results, the error that ended it early if any, and the monitor."""
    with contextlib.ExitStack() as stack:
        callback = options.callback
        if options.progress:
            from .solve.progress import bar

            callback = stack.enter_context(bar(len(job.images), callback))
        monitor = RunMonitor(len(job.images), options.time_limit, callback, begin, interrupts)
        results, error = backend.run(job, monitor)
        if error is None:
            try:
                monitor.report_whole(results)
            except (Exception, KeyboardInterrupt) as raised:
                error = raised
    return results, error, monitor


def _warn_of_classes(result: Result, targeted: bool, labels_given: bool) -> None:
    """Warn where most images have the wanted class as they are.

    Targets are then what the model predicts: labels, passed as targets. Labels are then not those
    of the images, or not in the order of the model's classes.
    """
    already = int((result.status == _core.Status.already_adversarial).sum())
    count = len(result.status)
    if count < 5 or (already < count and (count < 10 or 2 * already <= count)):
        return
    if targeted:
        warn_caller(
            f"targets equals the model's own prediction for {already} of {count} images; for an "
            "untargeted run pass them as labels="
        )
    elif labels_given:
        warn_caller(
            f"the model gives {already} of {count} images another class than labels says: are "
            "the labels those of the images, in the order of the model's classes, and is the "
            "preprocessing part of the model?"
        )
