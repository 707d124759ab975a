"""Durable attacks on data sets that do not fit into memory: inputs, job files, blocks, results."""

from .columns import Counts
from .inputs import InputSpec, Rows, Source
from .manifest import OtherJob
from .memory_source import MemorySource
from .progress import JobProgress
from .run import run
from .status import JobStatus, status
from .store import InUse, NotWritten

__all__ = [
    "Counts",
    "InUse",
    "InputSpec",
    "JobProgress",
    "JobStatus",
    "MemorySource",
    "NotWritten",
    "OtherJob",
    "Rows",
    "Source",
    "run",
    "status",
]
