"""Models that draw random numbers, made deterministic: the mean over fixed draws.

Importing this file imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """Mean logits of a random model over ``samples`` draws with fixed seeds.

    Every image sees the same draws, whatever the batch, so that an attack has one function to
    work on: the expectation over transformation of Athalye et al. 2018 (arXiv:1707.07397) with
    common random numbers. What it finds is adversarial for that mean, not for every new draw.

    Parameters
    ----------
    model : nn.Module
        Images (B, ...) to logits (B, K); it may be in training mode (dropout) and must run under
        ``torch.func.vmap``. Its mode stays as it is.
    samples : int >= 1
        The time of a forward grows with them.
    seed : int
        Of the first draw; the next ones follow.
    """

    draws = True  # modules in training mode are meant to be

    def __init__(self, model: nn.Module, samples: int = 16, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be an integer >= 1, got {samples!r}")
        self.model, self.samples, self.seed = model, samples, seed

    def train(self, mode: bool = True) -> Averaged:
        """Leaves the model's own mode alone."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, ...)."""

        def one(image: Tensor) -> Tensor:
            logits: Tensor = self.model(image[None])
            return logits[0]

        every = torch.func.vmap(one, randomness="same")
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            total = torch.zeros((), dtype=x.dtype, device=x.device)
            for draw in range(self.samples):
                torch.manual_seed(self.seed + draw)
                total = total + every(x)
        return total / self.samples
