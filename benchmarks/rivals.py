"""Rival attacks from their own packages, targeted and untargeted, as functions of one form.

adv-lib 0.2.8 (``pip install --no-deps adv-lib==0.2.8 tqdm``). Two packages that it imports, visdom
for its logs and torchvision for a perceptual distance, take no part in these attacks; where they
are missing, empty modules stand in for them.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable

import torch

Attack = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor, bool], torch.Tensor]


@functools.cache
def _import() -> types.ModuleType:
    for name, parts in (("torchvision", ("models", "transforms")), ("visdom", ("Visdom",))):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            for part in parts:
                setattr(module, part, types.ModuleType(part))
            sys.modules[name] = module
    return importlib.import_module("adv_lib.attacks")


class Counted(torch.nn.Module):
    """A model that counts the rows it evaluates."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.rows = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The model's logits."""
        self.rows += len(x)
        return self.model(x)


def attacks(untargeted_only: bool = False) -> dict[str, Attack]:
    """By name, at the package's defaults but for the steps; not tuned to a network.

    DDN without its 8-bit rounding; C&W with 9 searches of 1,000 steps at 0.01.
    """
    lib = _import()
    table: dict[str, Attack] = {
        "DDN-100": lambda m, x, y, t: lib.ddn(m, x, y, t, steps=100, levels=None),
        "DDN-1000": lambda m, x, y, t: lib.ddn(m, x, y, t, steps=1000, levels=None),
        "ALMA-1000": lambda m, x, y, t: lib.alma(
            m, x, y, targeted=t, num_steps=1000, distance="l2", init_lr_distance=1.0, α=0.9
        ),
        "PDGD-500": lambda m, x, y, t: lib.pdgd(m, x, y, t, num_steps=500),
        "FMN-1000": lambda m, x, y, t: lib.fmn(m, x, y, norm=2, targeted=t, steps=1000),
        "C&W 9x1000": lambda m, x, y, t: lib.carlini_wagner_l2(
            m, x, y, t, learning_rate=0.01, max_iterations=1000, binary_search_steps=9
        ),
    }
    if untargeted_only:
        table["SuperDeepFool"] = lambda m, x, y, _: lib.sdf(m, x, y)
    return table
