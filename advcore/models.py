"""The MNIST networks of Szegedy et al., "Intriguing properties of neural networks", section 4.

Torch builders; every one returns a `torch.nn.Sequential` that takes (B, 784) or (B, 1, 28, 28)
float32 images in [0, 1] and gives (B, 10) logits. Hidden units are sigmoids, as in the paper.
Needs torch (``pip install "advcore[torch]"``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

PIXELS = 784
CLASSES = 10

# lambda of each layer in the paper's penalty `lambda * sum w^2 / k`, k units of the layer. The
# linear softmax model appears in the paper with 1e-4, 1e-2 and 1.
WEIGHT_DECAY: dict[str, tuple[float, ...]] = {
    "fc10": (1e-4,),
    "fc100_100_10": (1e-5, 1e-5, 1e-6),
    "fc200_200_10": (1e-5, 1e-5, 1e-6),
    "fc123_456_10": (1e-5, 1e-5, 1e-6),
}


def fully_connected(
    widths: Sequence[int], *, inputs: int = PIXELS, seed: int = 0
) -> torch.nn.Sequential:
    """Flatten, then Linear layers of the given widths with sigmoids between them.

    The initial weights depend on `seed` alone; torch's global generator is left as it was.
    """
    require("torch", "torch", "the builders of advcore.models")
    import torch

    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive layer widths, got {widths!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for fan_in, fan_out in zip([inputs, *widths], widths, strict=False):
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers[:-1])


def fc10(*, seed: int = 0) -> torch.nn.Sequential:
    """Linear softmax classifier, FC10 in the paper."""
    return fully_connected([CLASSES], seed=seed)


def fc100_100_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Two hidden layers of 100 sigmoids, FC100-100-10 in the paper."""
    return fully_connected([100, 100, CLASSES], seed=seed)


def fc200_200_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Two hidden layers of 200 sigmoids, FC200-200-10 in the paper."""
    return fully_connected([200, 200, CLASSES], seed=seed)


def fc123_456_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Hidden layers of 123 and 456 sigmoids, FC123-456-10 in the paper."""
    return fully_connected([123, 456, CLASSES], seed=seed)
