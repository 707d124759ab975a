"""How far a job is, read from its folder, also while it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .._durations import rough
from . import manifest
from .store import TABLE, BlockNote, block_notes
from .table import Counts

RECENT_BLOCKS = 20
"""Number of the last blocks that give the rate."""


@dataclass(frozen=True)
class JobStatus:
    """State of a job.

    Attributes
    ----------
    folder : Path
    images : int
        Images of the whole job, of all shards.
    blocks, blocks_done : int
        Number of blocks, and of those that are on disk.
    done : Counts
        Sums over the blocks on disk: images, succeeded, unreadable, failed, distortion and
        evaluations.
    rate : float or None
        Images per second between the last blocks that were written. None: there are too few.
    is_complete : bool
        Whether all blocks and the whole table are there.
    blocks_left : int
        Blocks that are not on disk; of what `advcore.jobs.run` returns, those of its shard.
    """

    folder: Path
    images: int
    blocks: int
    blocks_done: int
    done: Counts
    rate: float | None
    is_complete: bool
    blocks_left: int

    @property
    def remaining_seconds(self) -> float | None:
        """Time for the rest at this rate. None: the rate is not known."""
        return None if not self.rate else (self.images - self.done.images) / self.rate

    def text(self) -> str:
        """Return the state as a few lines."""
        done = self.done
        attacked = done.images - done.unreadable - done.failed
        lines = [
            f"{done.images:,} of {self.images:,} images in {self.blocks_done:,} of "
            f"{self.blocks:,} blocks",
            f"success: {done.succeeded:,} of {attacked:,}"
            + (f" ({done.succeeded / attacked:.1%})" if attacked else ""),
        ]
        if done.succeeded:
            lines.append(f"distortion ||r||: mean {done.distortion / done.succeeded:.4f}")
        if attacked:
            lines.append(f"evaluations per image: mean {done.evaluations / attacked:.1f}")
        if done.unreadable:
            lines.append(f"unreadable: {done.unreadable:,} images")
        if done.failed:
            lines.append(f"failed: {done.failed:,} images of blocks on which the model raised")
        if self.is_complete:
            lines.append(f"complete: {self.folder / TABLE}")
        elif self.remaining_seconds is not None:
            lines.append(
                f"rate of the last blocks: {self.rate:.3g} images/s, "
                f"{rough(self.remaining_seconds)} left at it"
            )
        return "\n".join(lines)


def status(folder: str | os.PathLike[str]) -> JobStatus:
    """Read how far a job is. The files may change meanwhile.

    Raises
    ------
    FileNotFoundError
        The folder holds no job.
    ValueError
        Its manifest is damaged.
    """
    place = Path(folder)
    job = manifest.read(place).get("job", {})
    try:
        images, blocks = int(job["images"]), int(job["blocks"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{place / manifest.NAME} is damaged (no number of images)") from None
    notes = block_notes(place)
    return JobStatus(
        folder=place,
        images=images,
        blocks=blocks,
        blocks_done=len(notes),
        done=sum((note.counts for note in notes), Counts()),
        rate=_rate(notes),
        is_complete=len(notes) == blocks and (place / TABLE).exists(),
        blocks_left=blocks - len(notes),
    )


def _rate(notes: list[BlockNote]) -> float | None:
    last = sorted(notes, key=lambda note: note.time)[-RECENT_BLOCKS:]
    seconds = last[-1].time - last[0].time if last else 0.0
    return sum(note.counts.images for note in last[1:]) / seconds if seconds > 0 else None
