"""Durable attacks on data sets that do not fit into memory: inputs, job files, blocks, results."""

from .inputs import InputSpec, Rows, Source
from .job_file import JobFileError, JobSpec, read_job
from .manifest import OtherJob
from .memory_source import MemorySource
from .progress import JobProgress
from .run import run, run_job
from .sources import open_source
from .status import JobStatus, status
from .store import InUse, NotWritten
from .table import Counts

__all__ = [
    "Counts",
    "InUse",
    "InputSpec",
    "JobFileError",
    "JobProgress",
    "JobSpec",
    "JobStatus",
    "MemorySource",
    "NotWritten",
    "OtherJob",
    "Rows",
    "Source",
    "open_source",
    "read_job",
    "run",
    "run_job",
    "status",
]
