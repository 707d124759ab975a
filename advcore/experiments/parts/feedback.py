"""Training with pools of adversarial examples, Szegedy et al. 2013, section 4.2.

A pool belongs to one layer. Layer 0 is the image, layer k the output of the k-th hidden layer. The
pool's examples are h + r. Here h is the layer's output for a training image, and r is the smallest
change that makes the layers above give another class. The examples train the layers above with the
image's label. At regular intervals a random part of every pool is replaced by examples against the
network of that moment.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import advcore
from advcore import data

from .digits import CLASSES, mean
from .networks import fit

if TYPE_CHECKING:
    import torch

    from .networks import Recipe


_CHOICES = {"targets": ("random", "untargeted"), "stored": ("example", "change")}


@dataclass(frozen=True)
class Feedback:
    """Settings of training with pools; `Recipe.feedback` holds them as pairs of name and value.

    layers : layers that have a pool.
    size : number of examples in each pool.
    share : part of a pool that is replaced at a time, in (0, 1].
    every : number of steps between two replacements.
    warmup : number of steps before the pools are filled.
    batch : number of examples of each pool in a step.
    weight : factor of each pool's mean cross-entropy in the objective. The factor of the images'
        is 1.
    targets : "untargeted", or "random" wrong classes.
    stored : with "example", h + r does not change. With "change", r is stored and added to the
        present h of its image, which changes as the layers below are trained. The sum is cut off
        at 0 and 1.
    reach : examples are h + reach * r, cut off at 0 and 1. With 1, as the paper has it, they lie on
        the decision boundary of the network that they were made for. With less they lie between
        the image and the boundary.
    effort : option of `advcore.minimize_distortion`.

    Raises
    ------
    ValueError : a setting is not in its range.
    """

    layers: tuple[int, ...]
    size: int = 10_000
    share: float = 0.1
    every: int = 100
    warmup: int = 400
    batch: int = 128
    weight: float = 1.0
    targets: str = "random"
    stored: str = "example"
    reach: float = 1.0
    effort: str = "fast"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {self!r}")
        if not self.layers or not 0 < self.share <= 1 or min(self.size, self.every) < 1:
            raise ValueError(f"pools need layers, a share in (0, 1], size and every > 0: {self!r}")

    def pairs(self) -> tuple[tuple[str, Any], ...]:
        """Return the settings in the form of `Recipe.feedback`."""
        return tuple(asdict(self).items())


def split(network: torch.nn.Sequential, layer: int) -> tuple[Any, Any]:
    """Split a network at the output of hidden layer `layer` into the modules below and above.

    At layer 0, the image, no module is below.
    """
    import torch

    linear = [place for place, part in enumerate(network) if isinstance(part, torch.nn.Linear)]
    if not 0 <= layer < len(linear):
        raise ValueError(f"layer must be in 0..{len(linear) - 1}, got {layer}")
    cut = 0 if layer == 0 else linear[layer - 1] + 2
    return network[:cut], network[cut:]


class Pool:
    """The adversarial examples of one layer, and the cost of making them.

    Attributes
    ----------
    rows : (size,) index of the training image of each example.
    labels : (size,) labels of these images.
    values : (size, n) the examples, or their differences from h (`Feedback.stored`).
    rms : mean sqrt(mean r^2) of the successes, one value a replacement.
    seconds, attacks, successes, evaluations : sums over all attacks so far.
    """

    def __init__(
        self,
        network: torch.nn.Sequential,
        images: torch.Tensor,
        labels: torch.Tensor,
        layer: int,
        settings: Feedback,
        seed: int,
    ) -> None:
        import torch

        self.layers_below, self.layers_above = split(network, layer)
        self.images, self.true_labels = images, labels
        self.settings = settings
        self.random = np.random.default_rng([seed, layer])
        width = self.outputs(torch.zeros(1, dtype=torch.int64)).shape[1]
        self.rows = torch.zeros(settings.size, dtype=torch.int64)
        self.values = torch.zeros(settings.size, width)
        self.labels = torch.zeros(settings.size, dtype=torch.int64)
        self.seconds = 0.0
        self.attacks = 0
        self.successes = 0
        self.evaluations = 0
        self.rms: list[float] = []

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """Return h of these images for the present network, without gradients."""
        import torch

        with torch.no_grad():
            h: torch.Tensor = self.layers_below(self.images[rows].flatten(1))
        return h

    def replace(self, count: int) -> NDArray[np.int64]:
        """Put new examples in `count` random places of the pool, and return the places.

        Where an attack failed, the image itself is put there.
        """
        import torch

        settings = self.settings
        places = self.random.permutation(settings.size)[:count]
        rows = torch.from_numpy(self.random.integers(len(self.images), size=count))
        true_labels = self.true_labels[rows]
        h = self.outputs(rows)
        begin = time.perf_counter()
        result = self.attack(h.numpy(), true_labels.numpy())
        self.seconds += time.perf_counter() - begin
        self.attacks += count
        self.successes += int(result.success.sum())
        self.evaluations += int(result.evaluations.sum())
        self.rms.append(mean(result.rms_distortion[result.success]))
        r = settings.reach * (torch.from_numpy(result.adversarial) - h)
        examples = (h + r).clamp(0, 1)
        self.values[places] = examples if settings.stored == "example" else examples - h
        self.rows[places] = rows
        self.labels[places] = true_labels
        return places

    def attack(self, h: NDArray[np.float32], true_labels: NDArray[np.int64]) -> advcore.Result:
        """Find the smallest changes of h, by the compiled engine on one thread."""
        targets = None
        if self.settings.targets == "random":
            targets = data.random_targets(
                true_labels, classes=CLASSES, seed=int(self.random.integers(2**31))
            )
        layers_above = self.layers_above.eval()
        try:
            network = advcore.Network.from_torch(layers_above, h.shape[1:])
        finally:
            layers_above.train()
        return advcore.minimize_distortion(
            network,
            h,
            targets,
            labels=None if targets is not None else true_labels,
            effort=self.settings.effort,
            threads=1,
        )

    def loss(self) -> torch.Tensor:
        """Return the mean cross-entropy of the layers above on random examples of the pool."""
        import torch

        picks = torch.from_numpy(self.random.integers(self.settings.size, size=self.settings.batch))
        h = self.values[picks]
        if self.settings.stored == "change":
            h = (self.outputs(self.rows[picks]) + h).clamp(0, 1)
        return torch.nn.functional.cross_entropy(self.layers_above(h), self.labels[picks])


class Feeder:
    """The pools of a network in training, called once a step.

    A call returns the pools' part of the objective.
    """

    def __init__(self, pools: Sequence[Pool], settings: Feedback) -> None:
        self.pools = pools
        self.settings = settings
        self.step = 0

    def __call__(self) -> torch.Tensor:
        import torch

        settings, step = self.settings, self.step
        self.step += 1
        if step < settings.warmup:
            return torch.zeros(())
        for pool in self.pools:
            if step == settings.warmup:
                pool.replace(settings.size)
            elif (step - settings.warmup) % settings.every == 0:
                pool.replace(max(1, round(settings.share * settings.size)))
        return settings.weight * torch.stack([pool.loss() for pool in self.pools]).sum()


def train(
    network: torch.nn.Sequential,
    images: NDArray[Any],
    labels: NDArray[Any],
    recipe: Recipe,
) -> dict[str, Any]:
    """Train in place as `training.train` does, with the pools of `recipe.feedback`.

    Returns
    -------
    The facts by name. "attack_seconds", "attacks", "success" (percent), "evaluations" (of one
    attack) and "rms" (of new examples, one value a replacement) have one entry a layer.
    "training_seconds" is the time of the training with all attacks.
    """
    import torch

    settings = Feedback(**dict(recipe.feedback or ()))
    x, y = torch.as_tensor(images), torch.as_tensor(labels)
    pools = [Pool(network, x, y, layer, settings, recipe.seed) for layer in settings.layers]
    begin = time.perf_counter()
    fit(network, images, labels, recipe, Feeder(pools, settings))
    return {
        "training_seconds": time.perf_counter() - begin,
        "attack_seconds": [pool.seconds for pool in pools],
        "attacks": [pool.attacks for pool in pools],
        "success": [100 * pool.successes / max(1, pool.attacks) for pool in pools],
        "evaluations": [pool.evaluations / max(1, pool.attacks) for pool in pools],
        "rms": [pool.rms for pool in pools],
    }
