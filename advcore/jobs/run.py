"""A job: the blocks of a source are attacked one after another, and each is kept on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from .. import validate
from .._extras import require
from ..fingerprint import hash_of
from ..models.loading import model as load
from ..options import Options, option_info
from ..solve.interrupts import sigterm_as_ctrl_c
from . import manifest
from .attack import Attack, BlockFailed, Unfinished
from .inputs import Source
from .job_file import IMAGES, PICTURE_LEVELS, JobSpec, read_job
from .memory_source import MemorySource
from .plan import Block, Plan, block_size, check_shard
from .progress import JobProgress, Reporter
from .sources import open_source
from .status import JobStatus, status
from .store import Store
from .table import Counts, arrow

MOST_FAILURES = 3
"""Failed blocks, without one that did not fail, after which a job stops: the fault is then with the
model or the options, not with some images."""


def run(
    model: Any,
    source: Source | Any,
    output: str | os.PathLike[str],
    *,
    block: int | None = None,
    images: str = "none",
    targets: str | None = None,
    untargeted: bool = False,
    names: str | os.PathLike[str] | None = None,
    shard: str | tuple[int, int] | None = None,
    retry: bool = False,
    model_name: str | None = None,
    progress: bool = False,
    callback: Callable[[JobProgress], object] | None = None,
    **options: Any,
) -> JobStatus:
    """Attack all images of a source and keep what is finished; the same call goes on.

    Each block of images is attacked by `minimize_distortion`, and its rows are written to
    ``output`` at once. A call with the same arguments attacks the blocks that are not there. The
    table of all rows is then the same, bit for bit, as if nothing had happened. One block is in
    memory at a time.

    Parameters
    ----------
    model : object
        As `minimize_distortion` takes it.
    source : Source, or array (N, ...)
        The images. `MemorySource` adds labels, targets and keys to an array.
    output : path
        Folder of the results, which is made. `docs/jobs.md` describes its files.
    block : int, optional
        Images of a block. None: 4,096, of large images fewer. Through torch, results depend on it
        in their last bits.
    images : "none", "float32" or "png"
        Form of the adversarial images in the files of the blocks. PNG needs ``levels=256`` and
        images that are pictures.
    targets : str, optional
        "next-likeliest", "random", or a number or name of a class. None: the targets of the source,
        and where it has none any wrong class. Random ones depend on the image's key and ``seed``.
    untargeted : bool
        Any wrong class will do, also where the source has targets.
    names : path, optional
        Names of the classes, .json or one a line.
    shard : "K/N" or (K, N), optional
        Every N-th block alone, from the K-th on. All shards share ``output``.
    retry : bool
        Attack blocks again on which the model raised.
    model_name : str, optional
        File of the model, of which the bytes are compared in the place of the model's values.
    progress : bool
        Show a line on the standard error, in a log one every 30 s.
    callback : callable, optional
        Called with a `JobProgress` some 20 times a second. The job stops when it returns True.
    **options
        Options of `minimize_distortion`. ``time_limit`` is for the whole call, and the block in
        work when it passes is attacked again by the next call.

    Returns
    -------
    JobStatus
        What is on disk at the end, of all shards. ``blocks_left`` is that of this shard.

    Raises
    ------
    OtherJob
        The folder holds blocks of a job with another model, options, inputs or version. It is a
        ValueError whose message names the differences.
    TypeError, ValueError
        An argument is not as described, or the first blocks all failed.
    ModelError
        The model raised on the first blocks. On later ones it is recorded in their rows.
    NotWritten
        A file could not be written, as on a full disk. It is an OSError.
    KeyboardInterrupt
        Ctrl-C or SIGTERM. Finished blocks are kept.
    """
    begin = time.perf_counter()
    arrow()  # raises at once where pyarrow is missing
    checked = _check(options, images)
    if callback is not None:
        option_info("callback").check.run(callback, "callback")
    if targets is not None and untargeted:
        raise ValueError("targets and untargeted exclude each other")
    if names is not None and not Path(names).is_file():
        raise FileNotFoundError(f"names: {names} does not exist, or is not a file")
    if not hasattr(source, "fingerprint"):
        source = MemorySource(source)
    part = check_shard(shard, "shard")
    if block is None:
        block = block_size(source)
    plan = Plan(source.count, source.borders, validate.integer(block, "block", minimum=1))
    names = None if names is None else Path(names)
    settings = {
        "blocks": len(plan),
        "block": block,
        "adversarial images": images,
        "targets": "any wrong class" if untargeted else targets or "those of the input",
        "names of classes": "none" if names is None else hash_of(names.read_bytes()),
    }
    store = Store(Path(output), plan)
    described = manifest.describe(model, model_name, source, checked, settings)
    manifest.check(store.folder, described)
    attack = Attack(model, source, checked, images, targets, untargeted, names)
    with sigterm_as_ctrl_c(), store.locked(part):
        manifest.check(store.folder, described)  # Before the lock another one may have replaced it.
        store.scan()
        _attack_blocks(attack, store, part, retry, begin, callback, progress)
        store.scan()  # Other shards may have ended meanwhile.
        store.finish()
        left = sum(block.number not in store.counts for block in plan.shard(part))
    return replace(status(store.folder), blocks_left=left)


def run_job(
    job: str | os.PathLike[str] | JobSpec,
    *,
    shard: str | tuple[int, int] | None = None,
    retry: bool = False,
    progress: bool = False,
    callback: Callable[[JobProgress], object] | None = None,
) -> JobStatus:
    """Run the job of a job file, or of what `read_job` returned; see `run`.

    ``shard`` takes the place of that of the job.

    Raises
    ------
    JobFileError
        The file has mistakes. It is a ValueError with a line for each.
    """
    spec = job if isinstance(job, JobSpec) else read_job(Path(job))
    model = load(spec.model, "model")
    names = [entry.name for entry in fields(Options) if entry.name not in ("progress", "callback")]
    return run(
        model,
        open_source(spec.input, model),
        spec.output,
        block=spec.block,
        images=spec.images,
        targets=spec.targets,
        untargeted=spec.untargeted,
        names=spec.names,
        shard=shard or spec.shard,
        retry=retry,
        model_name=spec.model,
        progress=progress,
        callback=callback,
        **{name: getattr(spec.options, name) for name in names},
    )


def _check(options: dict[str, Any], images: str) -> Options:
    """Return the options of the attack, which must fit to the form of the images."""
    checked = Options(**options)
    validate.choice(images, "images", IMAGES)
    if images == "png":
        if checked.levels != PICTURE_LEVELS:
            raise ValueError(f'images="png" needs levels={PICTURE_LEVELS}, got {checked.levels}')
        require("PIL", "pictures", "adversarial images as PNG")
    return checked


def _attack_blocks(
    attack: Attack,
    store: Store,
    shard: tuple[int, int] | None,
    retry: bool,
    begin: float,
    callback: Callable[[JobProgress], object] | None,
    progress: bool,
) -> None:
    """Attack the blocks of a shard that are not in the store."""
    if retry:
        for number in [n for n, counts in store.counts.items() if counts.failed]:
            del store.counts[number]
    blocks = list(store.plan.shard(shard))
    done = [store.counts[b.number] for b in blocks if b.number in store.counts]
    reporter = Reporter(sum(map(len, blocks)), sum(done, Counts()), callback, progress)
    good = any(map(_has_results, done))
    failed: list[tuple[Block, BlockFailed]] = []
    limit = attack.options.time_limit

    def keep(block: Block, table: Any) -> bool:
        """Write a block, and return whether the attack ran on images of it."""
        counts = store.write(block, table)
        reporter.add(counts)
        return _has_results(counts)

    try:
        for block in blocks:
            if block.number in store.counts:
                continue
            left = None if limit is None else limit - (time.perf_counter() - begin)
            if reporter.stopped or (left is not None and left <= 0):
                return
            try:
                good |= keep(block, attack.table(block, reporter.within, left))
            except Unfinished:
                return
            except BlockFailed as failure:
                failed.append((block, failure))
                if not good and len(failed) >= MOST_FAILURES:
                    break
            while good and failed:
                early, its_failure = failed.pop()
                keep(early, its_failure.table)
        if failed and (error := failed[0][1].__cause__) is not None:
            raise error
    finally:
        reporter.end()


def _has_results(counts: Counts) -> bool:
    return counts.images > counts.failed + counts.unreadable
