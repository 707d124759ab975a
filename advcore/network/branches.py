"""Layers of images of which several take the same one. Importing this file imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    """Modules in topological order, each of which takes the sum or the concatenation of others.

    Parameters
    ----------
    modules : sequence of Module
    sources : sequence of sequence of int
        Numbers of the modules whose outputs each takes; -1: the input.
    hows : sequence of str
        "sum", or "concatenate" (along dimension 1), for each.
    """

    def __init__(
        self, modules: Sequence[nn.Module], sources: Sequence[Sequence[int]], hows: Sequence[str]
    ) -> None:
        super().__init__()
        self.steps = nn.ModuleList(modules)
        self.sources = [list(numbers) for numbers in sources]
        self.hows = list(hows)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last module."""
        values = [x]
        for step, numbers, how in zip(self.steps, self.sources, self.hows, strict=True):
            value, *others = [values[number + 1] for number in numbers]
            if how == "concatenate":
                value = torch.cat([value, *others], dim=1)
            else:
                for other in others:
                    value = value + other
            values.append(step(value))
        return values[-1]
