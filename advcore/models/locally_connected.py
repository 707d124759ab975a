"""A locally connected network in the manner of QuocNet, and its training.

Le, Ranzato, Monga, Devin, Chen, Corrado, Dean and Ng, "Building high-level features using large
scale unsupervised learning", ICML 2012. A stage has three parts. The first is linear filters over
local receptive fields, with separate weights at each place. The second is L2 pooling, the root of a
sum of squares over neighbours. The third is local contrast normalisation. The filters are learned
without labels by reconstruction TICA. Then a classifier is trained on top.

In the paper the pictures are 200x200x3 and there are three stages, with receptive fields of 18x18,
8 maps, L2 pooling of 5x5 and normalisation over 5x5. They have a billion weights in all. `quocnet`
gives that network with ``side=200, channels=3, stages=3, field=18, maps=8``. Its defaults are for
28x28 digits. Importing this file imports torch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from . import training
from .seeding import seeded

EPS = 1e-3
"""Constant that is added inside the roots, so that they are smooth at zero."""


class LocallyConnected(nn.Module):
    """Filters over the receptive fields of (B, C, H, W), with separate weights at each place.

    weight : (places, maps, C * field**2)

    Raises
    ------
    ValueError : the field does not fit into the images.
    """

    def __init__(self, shape: tuple[int, int, int], maps: int, field: int, stride: int = 1) -> None:
        super().__init__()
        channels, height, width = shape
        if not 1 <= field <= min(height, width) or maps < 1 or stride < 1:
            raise ValueError(f"no field of {field} with {maps} maps, stride {stride} in {shape}")
        self.field, self.stride = field, stride
        rows, columns = ((side - field) // stride + 1 for side in (height, width))
        self.shape = (maps, rows, columns)
        inputs = channels * field**2
        self.weight = nn.Parameter(torch.randn(rows * columns, maps, inputs) / math.sqrt(inputs))

    def fields(self, x: Tensor) -> Tensor:
        """Return the receptive fields (places, C * field**2, B)."""
        return F.unfold(x, self.field, stride=self.stride).permute(2, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, maps, rows, columns)."""
        out = (self.weight @ self.fields(x)).permute(2, 1, 0)
        return torch.unflatten(out, 2, self.shape[1:])

    def extra_repr(self) -> str:
        return f"shape={self.shape}, field={self.field}, stride={self.stride}"


class L2Pool(nn.Module):
    """The pooling ``sqrt(EPS + sum of h^2)`` over windows of ``size`` in each map."""

    def __init__(self, size: int, stride: int = 1) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, h: Tensor) -> Tensor:
        """Pool (B, maps, H, W) to smaller maps."""
        total = F.avg_pool2d(h.square(), self.size, self.stride) * self.size**2
        return (total + EPS).sqrt()

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


class LocalContrast(nn.Module):
    """The normalisation by mean and deviation over all maps of a Gaussian window.

    The mean is subtracted first. The divisor is ``sqrt(variance + least^2)``, which is at least
    ``least``. This is a smooth form of the paper's maximum (Jarrett et al. 2009).
    """

    window: Tensor

    def __init__(self, size: int, least: float = 0.1) -> None:
        super().__init__()
        self.least = least
        place = torch.arange(size) - (size - 1) / 2
        line = torch.exp(-(place**2) / (2 * (size / 4) ** 2))
        window = line[:, None] * line
        self.register_buffer("window", (window / window.sum())[None, None])

    def mean(self, h: Tensor) -> Tensor:
        """Return the means (B, 1, H, W). Windows at the edge use the part inside the maps."""
        size = self.window.shape[-1]
        margins = [(size - 1) // 2, size // 2] * 2
        coverage = F.conv2d(F.pad(torch.ones_like(h[:1, :1]), margins), self.window)
        return F.conv2d(F.pad(h.mean(1, keepdim=True), margins), self.window) / coverage

    def forward(self, h: Tensor) -> Tensor:
        """Normalise (B, maps, H, W), and return the same shape."""
        h = h - self.mean(h)
        return h / (self.mean(h.square()) + self.least**2).sqrt()


def quocnet(
    *,
    width: float = 1.0,
    stages: int = 1,
    side: int = 28,
    channels: int = 1,
    classes: int = 10,
    field: int = 7,
    maps: int = 8,
    pool: int = 5,
    contrast: int = 5,
    stride: int = 2,
    seed: int = 0,
) -> nn.Sequential:
    """Build the untrained network.

    It maps (B, channels, side, side) or flat images in [0, 1] to (B, classes) logits. The modules
    are ``stage1``, ..., each with ``filters``, ``pool`` and ``contrast``, and ``classifier``.

    Parameters
    ----------
    width : factor of the number of maps
    stages : number of stages
    field, pool, contrast : sides of the windows of filters, pooling and normalisation
    stride : stride of the pooling

    Raises
    ------
    ValueError : a stage's windows do not fit into its input.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        flat=nn.Flatten(), picture=nn.Unflatten(1, (channels, side, side))
    )
    shape = (channels, side, side)
    count = max(1, round(width * maps))
    with seeded(seed):
        for number in range(1, stages + 1):
            filters = LocallyConnected(shape, count, field)
            rows = [(size - pool) // stride + 1 for size in filters.shape[1:]]
            if min(rows) < 1:
                raise ValueError(f"stage {number} has no place left: its filters {filters.shape}")
            shape = (count, rows[0], rows[1])
            layers[f"stage{number}"] = nn.Sequential(
                OrderedDict(
                    filters=filters, pool=L2Pool(pool, stride), contrast=LocalContrast(contrast)
                )
            )
        layers |= {"flatten": nn.Flatten(), "classifier": nn.Linear(math.prod(shape), classes)}
    network = nn.Sequential(layers)
    vars(network)["input_shape"] = (channels, side, side)
    return network


def train(
    network: nn.Sequential,
    images: NDArray[Any] | Tensor,
    labels: NDArray[Any] | Tensor,
    *,
    sparsity: float = 0.1,
    unsupervised_epochs: int = 2,
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    callback: Callable[[str, float], object] | None = None,
) -> None:
    """Train a network of `quocnet` in place, and leave it in eval mode.

    The filters are trained without the labels, one stage after the other. Then the classifier is
    trained on the output of the last stage.

    Parameters
    ----------
    images : (N, ...) float32 in [0, 1].
    labels : (N,) integers.
    sparsity : lambda of `reconstruction_tica`.
    callback : function that is called after each part with its name and its last objective.
    """
    x = torch.as_tensor(images, dtype=torch.float32)
    network.eval()
    previous_parts = [network.get_submodule("flat"), network.get_submodule("picture")]
    for name, part in network.named_children():
        if not name.startswith("stage"):
            continue
        x = features(previous_parts, x, batch_size)
        history = reconstruction_tica(
            part.get_submodule("filters"),  # type: ignore[arg-type]
            part.get_submodule("pool"),  # type: ignore[arg-type]
            x,
            sparsity=sparsity,
            epochs=unsupervised_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        if callback is not None:
            callback(name, history[-1])
        previous_parts = [part]
    x = features([*previous_parts, nn.Flatten()], x, batch_size)
    objective = training.train(
        network.get_submodule("classifier"),
        x,
        labels,
        weight_decay=1e-3,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    network.eval().requires_grad_(False)
    if callback is not None:
        callback("classifier", objective[-1])


def reconstruction_tica(
    filters: LocallyConnected,
    pool: L2Pool,
    x: Tensor,
    *,
    sparsity: float = 0.1,
    epochs: int = 2,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> list[float]:
    """Train the filters W of a stage in place by Adam, and return the objective of each epoch.

    The objective is the mean over images and places of
    ``|W' W x - x|^2 + lambda * sum_j pool_j(W x)`` with the receptive field x and the transpose W',
    as in Le, Karpenko, Ngiam and Ng 2011. The paper has a separate matrix in place of W'.
    """
    descent = torch.optim.Adam([filters.weight], learning_rate)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            part = x[batch]
            fields = filters.fields(part)  # (places, inputs, B)
            h = filters.weight @ fields
            back = filters.weight.transpose(1, 2) @ h
            maps = h.permute(2, 1, 0).unflatten(2, filters.shape[1:])
            objective = (back - fields).square().sum()
            objective = objective + sparsity * pool(maps).sum()
            objective = objective / (len(part) * len(filters.weight))
            descent.zero_grad()
            objective.backward()
            descent.step()
            schedule.step()
            total += float(objective.detach()) * len(part)
        history.append(total / len(x))
    return history


def features(parts: Sequence[nn.Module], x: Tensor, batch_size: int) -> Tensor:
    """Apply the modules one after the other to the images, in batches."""
    out = []
    with torch.no_grad():
        for batch in x.split(batch_size):
            h = batch
            for part in parts:
                h = part(h)
            out.append(h)
    return torch.cat(out)
