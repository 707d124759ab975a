"""The networks of Szegedy et al., "Intriguing properties of neural networks", section 4.

Each builder returns a `torch.nn.Sequential`. Those for MNIST map (B, 784) or (B, 1, 28, 28) float32
images in [0, 1] to (B, 10) logits. Hidden units are sigmoids, as in the paper, except in `quocnet`
and in `small_cnn`, which the paper does not have. The initial weights depend on `seed` alone, and
torch's global generator is left as it was. `alexnet` and `squeezenet1_0` come with published
weights. The builders need torch (``pip install "advcore[torch]"``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._extras import require
from .seeding import seeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

PRETRAINED = ("alexnet", "squeezenet1_0")
"""Names of the builders with published weights."""

BUILDERS = (
    *PRETRAINED,
    "fc10",
    "fc100_100_10",
    "fc200_200_10",
    "fc123_456_10",
    "autoencoder400_10",
    "small_cnn",
    "quocnet",
)
"""Names of all builders, which `advcore.load_model` and ``--model`` take."""

PIXELS = 784
"""Number of values of an MNIST image."""

CLASSES = 10
"""Number of classes of MNIST."""

WEIGHT_DECAY: dict[str, tuple[float, ...]] = {
    "fc10": (1e-4,),
    "fc100_100_10": (1e-5, 1e-5, 1e-6),
    "fc200_200_10": (1e-5, 1e-5, 1e-6),
    "fc123_456_10": (1e-5, 1e-5, 1e-6),
    "autoencoder400_10": (1e-6,),
    "small_cnn": (0.0, 0.0, 0.0),
}
"""lambda of each Linear layer in the paper's penalty `lambda * sum w^2 / k` of a layer of k units.
The paper has the linear softmax model with 1e-4, 1e-2 and 1. The value of the autoencoder is for
its softmax layer; the paper gives none for the code layer. `small_cnn` is trained without it."""


def fully_connected(
    widths: Sequence[int],
    *,
    inputs: int = PIXELS,
    dropout: Sequence[float] | None = None,
    seed: int = 0,
) -> torch.nn.Sequential:
    """Fully connected network: Linear layers of the given widths, with sigmoids between them.

    Parameters
    ----------
    widths : sequence of int
        Number of units of each Linear layer.
    inputs : int
        Number of values of an image, which is flattened.
    dropout : sequence of float, optional
        Rate in [0, 1) of a dropout layer before each Linear layer. The first one acts on the
        pixels. Dropout acts in training mode only.
    seed : int
        Seed of the initial weights.

    Raises
    ------
    ValueError
        A width is not positive, or a rate is outside [0, 1).
    """
    require("torch", "torch", "a network of advcore.models")
    import torch

    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive layer widths, got {widths!r}")
    if dropout is not None and (len(dropout) != len(widths) or not 0 <= min(dropout) < 1):
        raise ValueError(f"dropout must be {len(widths)} rates in [0, 1), got {dropout!r}")
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    with seeded(seed):
        for index, (fan_in, fan_out) in enumerate(zip([inputs, *widths], widths, strict=False)):
            if dropout is not None:
                layers.append(torch.nn.Dropout(dropout[index]))
            layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.Sigmoid()]
    return torch.nn.Sequential(*layers[:-1])


def fc10(*, seed: int = 0) -> torch.nn.Sequential:
    """Linear softmax classifier, called FC10 in the paper."""
    return fully_connected([CLASSES], seed=seed)


def fc100_100_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Two hidden layers of 100 sigmoids, called FC100-100-10 in the paper."""
    return fully_connected([100, 100, CLASSES], seed=seed)


def fc200_200_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Two hidden layers of 200 sigmoids, called FC200-200-10 in the paper."""
    return fully_connected([200, 200, CLASSES], seed=seed)


def fc123_456_10(*, seed: int = 0) -> torch.nn.Sequential:
    """Hidden layers of 123 and 456 sigmoids, called FC123-456-10 in the paper."""
    return fully_connected([123, 456, CLASSES], seed=seed)


def autoencoder400_10(*, seed: int = 0) -> torch.nn.Sequential:
    """400 sigmoid units and a softmax layer on their code, called AE400-10 in the paper.

    The first layer is the encoder of a sparse autoencoder, trained by
    `advcore.models.training.train_autoencoder` and then left as it is.
    """
    return fully_connected([400, CLASSES], seed=seed)


def small_cnn(*, seed: int = 0) -> torch.nn.Sequential:
    """The convolutional MNIST network that the robustness literature calls SmallCNN.

    Two pairs of 3x3 convolutions with 32 and 64 channels, each pair followed by 2x2 max-pooling,
    then 200, 200 and 10 units, with ReLUs (Carlini and Wagner 2017; Zhang et al. 2019, TRADES).
    """
    require("torch", "torch", "a network of advcore.models")
    import torch
    from torch import nn

    with seeded(seed):
        network = nn.Sequential(
            nn.Flatten(),
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, 200),
            nn.ReLU(),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, CLASSES),
        )
        for layer in network:
            if isinstance(layer, nn.Conv2d):  # training is 1.2 times as fast on a CPU
                layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def quocnet(
    *, width: float = 1.0, stages: int = 1, side: int = 28, channels: int = 1, seed: int = 0
) -> torch.nn.Sequential:
    """Locally connected network in the manner of QuocNet (Le et al. 2012), untrained.

    See `advcore.models.locally_connected.quocnet`. The function `train` there trains it.
    """
    require("torch", "torch", "a network of advcore.models")
    from . import locally_connected

    return locally_connected.quocnet(
        width=width, stages=stages, side=side, channels=channels, seed=seed
    )


def alexnet(*, pretrained: bool = True, seed: int = 0) -> torch.nn.Sequential:
    """torchvision's AlexNet with its published weights; see `pretrained.alexnet`."""
    require("torch", "torch", "a network of advcore.models")
    from .pretrained import alexnet as build

    return build(pretrained=pretrained, seed=seed)


def squeezenet1_0(*, pretrained: bool = True, seed: int = 0) -> torch.nn.Sequential:
    """SqueezeNet 1.0 with its published weights; see `pretrained.squeezenet1_0`."""
    require("torch", "torch", "a network of advcore.models")
    from .pretrained import squeezenet1_0 as build

    return build(pretrained=pretrained, seed=seed)


def averaged(model: torch.nn.Module, *, samples: int = 16, seed: int = 0) -> torch.nn.Module:
    """Deterministic model of the mean logits of a random one (dropout, random smoothing).

    The mean is over ``samples`` draws with the seeds ``seed``, ``seed + 1``, ..., which are the
    same for every image. See `averaging.Averaged`, also for the errors and the source.
    """
    require("torch", "torch", "advcore.models.averaged")
    from .averaging import Averaged

    return Averaged(model, samples, seed)
