"""What a run returns: one row for each image, a record of the run, and what can be said of it."""

from .core import Result
from .statistics import already_note, images_per_second, status_code

__all__ = ["Result", "already_note", "images_per_second", "status_code"]
