"""The description of a job, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..options import Options
from .inputs import InputSpec

IMAGES = ("none", "float32", "png")
"""Forms in which a job keeps the adversarial images."""


@dataclass(frozen=True)
class JobSpec:
    """Description of a job.

    Attributes
    ----------
    model : str
        The model, as `advcore.load_model` takes it.
    input : InputSpec
    output : Path
        Folder of the results.
    block : int
        Images that are attacked and written at once.
    images : str
        One of `IMAGES`.
    options : Options
    targets : str or None
        next-likeliest, random, or a number or name of a class. None: those of the input, or if it
        has none, any wrong class.
    untargeted : bool
        Any wrong class will do, also where the input has targets.
    shard : (int, int) or None
        (3, 8): the third of eight parts.
    names : Path or None
        Names of the classes, .json or one a line.
    """

    model: str
    input: InputSpec
    output: Path
    block: int = 256
    images: str = "none"
    options: Options = field(default_factory=Options)
    targets: str | None = None
    untargeted: bool = False
    shard: tuple[int, int] | None = None
    names: Path | None = None
