"""Training of the package's small networks in torch, with seeds and the paper's weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .._extras import require
from .seeding import seeded

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


def train(
    model: torch.nn.Module,
    images: NDArray[Any] | torch.Tensor,
    labels: NDArray[Any] | torch.Tensor,
    *,
    weight_decay: float | Sequence[float] = 0.0,
    epochs: int = 60,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
    extra_loss: Callable[[], torch.Tensor] | None = None,
) -> list[float]:
    """Train `model` in place and leave it in eval mode.

    The objective is the mean cross-entropy plus the sum over the Linear layers of
    `lambda * sum w^2 / k`. Here k is the number of the layer's units (outputs) and w are its
    weights without the bias. That is the penalty of Szegedy et al. The learning rate falls by a
    cosine to 0.

    Parameters
    ----------
    images : (N, ...) float32, on the CPU.
    labels : (N,) integers.
    weight_decay : lambda of every Linear layer, or one value per Linear layer in module order.
    optimizer : "adam", or "sgd" with Nesterov momentum 0.9.
    seed : seed of the order of the batches and of torch's global generator (dropout). The same
        seed, model, data and thread count give the same weights.
    extra_loss : function that is called at every step. Its value is added to the objective.
    callback : function that is called after each epoch with the number of finished epochs and the
        mean objective of that epoch.

    Returns
    -------
    The mean objective of each epoch.
    """
    require("torch", "torch", "advcore.models.training")
    import torch

    x = torch.as_tensor(images, dtype=torch.float32)
    y = torch.as_tensor(labels, dtype=torch.int64)
    if len(x) == 0 or y.shape != (len(x),):
        raise ValueError(
            f"images and labels must be (N, ...) and (N,) with N > 0, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    penalties = _penalties(model, weight_decay)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    if optimizer == "adam":
        descent: torch.optim.Optimizer = torch.optim.Adam(parameters, learning_rate)
    elif optimizer == "sgd":
        descent = torch.optim.SGD(parameters, learning_rate, momentum=0.9, nesterov=True)
    else:
        raise ValueError(f'optimizer must be "adam" or "sgd", got {optimizer!r}')
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    model.train()
    with seeded(seed):
        for epoch in range(epochs):
            total = 0.0
            for batch in torch.randperm(len(x), generator=generator).split(batch_size):
                objective = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
                for factor, weight in penalties:
                    objective = objective + factor * weight.square().sum()
                if extra_loss is not None:
                    objective = objective + extra_loss()
                descent.zero_grad()
                objective.backward()
                descent.step()
                schedule.step()
                total += float(objective.detach()) * len(batch)
            history.append(total / len(x))
            if callback is not None:
                callback(epoch + 1, history[-1])
    model.eval()
    return history


def train_autoencoder(
    encoder: torch.nn.Linear,
    images: NDArray[Any] | torch.Tensor,
    *,
    activity: float = 0.05,
    sparsity: float = 1.0,
    weight_decay: float = 1e-4,
    epochs: int = 30,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train `encoder` in place as the first layer of a sparse autoencoder with sigmoid units.

    Adam minimises half the squared error of the reconstruction (sum over the pixels, mean over the
    images) + sparsity * sum over the units of KL(activity, mean activity in the batch)
    + weight_decay / 2 * sum w^2. This is the form of Ng's lecture notes, as was usual in 2013. The
    decoder, a Linear layer with sigmoids, is dropped.

    Returns
    -------
    The mean objective of each epoch.
    """
    require("torch", "torch", "advcore.models.training")
    import torch

    x = torch.as_tensor(images, dtype=torch.float32).flatten(1)
    with seeded(seed):
        decoder = torch.nn.Linear(encoder.out_features, encoder.in_features)
    weights = [encoder.weight, decoder.weight]
    descent = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], learning_rate)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, steps)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(x), generator=generator).split(batch_size):
            pixels = x[batch]
            code = encoder(pixels).sigmoid()
            rate = code.mean(0).clamp(1e-6, 1 - 1e-6)
            divergence = (
                activity * (activity / rate).log()
                + (1 - activity) * ((1 - activity) / (1 - rate)).log()
            )
            objective = 0.5 * (decoder(code).sigmoid() - pixels).square().sum(1).mean()
            objective = objective + sparsity * divergence.sum()
            for weight in weights:
                objective = objective + 0.5 * weight_decay * weight.square().sum()
            descent.zero_grad()
            objective.backward()
            descent.step()
            schedule.step()
            total += float(objective.detach()) * len(batch)
        history.append(total / len(x))
    return history


def error_rate(
    model: torch.nn.Module,
    images: NDArray[Any] | torch.Tensor,
    labels: NDArray[Any] | torch.Tensor,
    *,
    batch_size: int = 10_000,
) -> float:
    """Return the share of the images whose largest logit is not the label, in [0, 1]."""
    require("torch", "torch", "advcore.models.training")
    import torch

    x = torch.as_tensor(images, dtype=torch.float32)
    y = torch.as_tensor(labels, dtype=torch.int64)
    errors = 0
    with torch.inference_mode():
        for part, classes in zip(x.split(batch_size), y.split(batch_size), strict=True):
            errors += int((model(part).argmax(1) != classes).sum())
    return errors / len(x)


def _penalties(
    model: torch.nn.Module, weight_decay: float | Sequence[float]
) -> list[tuple[float, torch.Tensor]]:
    """Return (lambda / k, weight) of every Linear layer with lambda > 0."""
    require("torch", "torch", "advcore.models.training")
    import torch

    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    if isinstance(weight_decay, (int, float)):
        weight_decay = [float(weight_decay)] * len(linear)
    if len(weight_decay) != len(linear):
        raise ValueError(
            f"weight_decay must be one number or one per Linear layer ({len(linear)}), "
            f"got {len(weight_decay)}"
        )
    if not all(math.isfinite(value) and value >= 0 for value in weight_decay):
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay!r}")
    return [
        (value / layer.out_features, layer.weight)
        for value, layer in zip(weight_decay, linear, strict=True)
        if value > 0
    ]
