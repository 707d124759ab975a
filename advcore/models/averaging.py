"""Models that draw random numbers, made deterministic: the mean over fixed draws.

Importing this file imports torch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averaged(nn.Module):
    """Mean logits of a random model over ``samples`` draws with fixed seeds.

    Every image sees the same draws, whatever the batch, so that an attack has one function to
    work on. This is the expectation over transformation of Athalye et al. 2018 (arXiv:1707.07397)
    with common random numbers. Its results are adversarial for that mean, not for every new draw.

    Parameters
    ----------
    model : nn.Module
        Maps images (B, ...) to logits (B, K), and runs under ``torch.func.vmap``. It may be in
        training mode (dropout), and its mode stays as it is.
    samples : int >= 1
        Number of draws. The time of a forward is proportional to it.
    seed : int
        Seed of the first draw. Each further draw has the next integer.

    Raises
    ------
    TypeError, ValueError
        ``model`` is not a module, or ``samples`` is not an integer >= 1.
    """

    draws = True
    """Whether the model draws on purpose. Submodules in training mode then raise no warning."""

    def __init__(self, model: nn.Module, samples: int = 16, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be an integer >= 1, got {samples!r}")
        self.model, self.samples, self.seed = model, samples, seed

    def train(self, mode: bool = True) -> Averaged:
        """Set the mode of this module; the model keeps its own."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, ...)."""

        def image_logits(image: Tensor) -> Tensor:
            logits: Tensor = self.model(image[None])
            return logits[0]

        batch_logits = torch.func.vmap(image_logits, randomness="same")
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            total = torch.zeros((), dtype=x.dtype, device=x.device)
            for draw in range(self.samples):
                torch.manual_seed(self.seed + draw)
                try:
                    total = total + batch_logits(x)
                except RuntimeError as error:
                    if "vmap" not in str(error) and "Batching rule" not in str(error):
                        raise
                    raise RuntimeError(
                        "averaged needs a model that torch.func.vmap can run: no LSTM or GRU, and "
                        f"batch norm in eval mode ({error})"
                    ) from error
        return total / self.samples
