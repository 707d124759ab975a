"""Libraries of attacks, imported for the tests of their adapters or skipped visibly."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

import pytest

os.environ.setdefault("WANDB_MODE", "disabled")
_alive: list[Any] = []


def adapter_of(library: str, *modules: str) -> list[Any]:
    """Import modules of a library, with `advcore.adapters.*` among them, in this order.

    Their warnings at the import are their own. torchvision may be there for another torch.
    """
    pytest.importorskip("torch")
    from harness.torchvision_operators import define_missing_operators

    _alive.append(define_missing_operators())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(library)
        return [importlib.import_module(name) for name in modules]
