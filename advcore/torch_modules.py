"""The old place of `advcore.network.Normalize`: modules saved by version 0.1 look it up here."""

from .models.modules import CenterCrop, Resize
from .network.normalize import Normalize

__all__ = ["CenterCrop", "Normalize", "Resize"]
