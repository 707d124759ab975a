"""Training with pools of adversarial examples, Szegedy et al. 2013, section 4.2.

A pool belongs to one layer: 0 is the image, k the output of the k-th hidden layer. Its examples are
h + r with h that layer's output for a training image and r the smallest change that the layers
above take for another class; they train the layers above with the image's label. At regular
intervals a random part of every pool gives way to examples against the network of that moment.
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

from .attacks import CLASSES, mean
from .networks import fit

if TYPE_CHECKING:
    import torch

    from .networks import Recipe


_CHOICES = {"targets": ("random", "untargeted"), "stored": ("example", "change")}


@dataclass(frozen=True)
class Feedback:
    """What `Recipe.feedback` holds, as pairs of name and value.

    layers : those with a pool.
    size : examples in each pool.
    share : part of a pool that is replaced at a time, in (0, 1].
    every : steps between two replacements.
    warmup : steps before the pools are filled.
    batch : examples of each pool in a step.
    weight : factor of each pool's mean cross-entropy in the objective; that of the images is 1.
    targets : "untargeted", or "random" wrong classes.
    stored : "example", h + r stays as it was found; "change", r is kept and added to the present
        h of its image, cut off at 0 and 1, as the layers below move on.
    reach : examples are h + reach * r, cut off at 0 and 1. At 1, the paper's reading, they lie on
        the decision boundary of the network that they were made for; below, on the way there.
    effort : of `advcore.minimize_distortion`.
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
        """For `Recipe.feedback`."""
        return tuple(asdict(self).items())


def split(network: torch.nn.Sequential, layer: int) -> tuple[Any, Any]:
    """The modules up to hidden layer `layer`'s output (0: none of them), and those above."""
    import torch

    linear = [place for place, part in enumerate(network) if isinstance(part, torch.nn.Linear)]
    if not 0 <= layer < len(linear):
        raise ValueError(f"layer must be in 0..{len(linear) - 1}, got {layer}")
    cut = 0 if layer == 0 else linear[layer - 1] + 2
    return network[:cut], network[cut:]


class Pool:
    """The adversarial examples of one layer, and what making them took.

    Attributes
    ----------
    rows : (size,) training image of each example.  labels : (size,) of these images.
    values : (size, n) the example, or its difference from h (`Feedback.stored`).
    rms : mean sqrt(mean r^2) of the successes, one value a replacement.
    seconds, attacks, found, evaluations : of all attacks so far; found: the successes.
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

        self.below, self.above = split(network, layer)
        self.images, self.truth = images, labels
        self.settings = settings
        self.random = np.random.default_rng([seed, layer])
        width = self.outputs(torch.zeros(1, dtype=torch.int64)).shape[1]
        self.rows = torch.zeros(settings.size, dtype=torch.int64)
        self.values = torch.zeros(settings.size, width)
        self.labels = torch.zeros(settings.size, dtype=torch.int64)
        self.seconds = 0.0
        self.attacks = 0
        self.found = 0
        self.evaluations = 0
        self.rms: list[float] = []

    def outputs(self, rows: torch.Tensor) -> torch.Tensor:
        """h of these images, by the present network, without gradients."""
        import torch

        with torch.no_grad():
            h: torch.Tensor = self.below(self.images[rows].flatten(1))
        return h

    def replace(self, count: int) -> NDArray[np.int64]:
        """Puts new examples in `count` random places of the pool; returns the places.

        An image that the attack failed on goes in as it is.
        """
        import torch

        settings = self.settings
        places = self.random.permutation(settings.size)[:count]
        rows = torch.from_numpy(self.random.integers(len(self.images), size=count))
        truth = self.truth[rows]
        h = self.outputs(rows)
        begin = time.perf_counter()
        result = self.attack(h.numpy(), truth.numpy())
        self.seconds += time.perf_counter() - begin
        self.attacks += count
        self.found += int(result.success.sum())
        self.evaluations += int(result.evaluations.sum())
        self.rms.append(mean(result.rms_distortion[result.success]))
        r = settings.reach * (torch.from_numpy(result.adversarial) - h)
        moved = (h + r).clamp(0, 1)
        self.values[places] = moved if settings.stored == "example" else moved - h
        self.rows[places] = rows
        self.labels[places] = truth
        return places

    def attack(self, h: NDArray[np.float32], truth: NDArray[np.int64]) -> advcore.Result:
        """Smallest changes of h, by the compiled engine on one thread."""
        targets = None
        if self.settings.targets == "random":
            targets = data.random_targets(
                truth, classes=CLASSES, seed=int(self.random.integers(2**31))
            )
        above = self.above.eval()
        try:
            network = advcore.Network.from_torch(above, h.shape[1:])
        finally:
            above.train()
        return advcore.minimize_distortion(
            network,
            h,
            targets,
            labels=None if targets is not None else truth,
            effort=self.settings.effort,
            threads=1,
        )

    def loss(self) -> torch.Tensor:
        """Mean cross-entropy of the layers above on random examples of the pool."""
        import torch

        picked = torch.from_numpy(
            self.random.integers(self.settings.size, size=self.settings.batch)
        )
        h = self.values[picked]
        if self.settings.stored == "change":
            h = (self.outputs(self.rows[picked]) + h).clamp(0, 1)
        return torch.nn.functional.cross_entropy(self.above(h), self.labels[picked])


class Feeder:
    """The pools of a network in training; called once a step for their part of the objective."""

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
    """Trains in place as `training.train` does, with the pools of `recipe.feedback`.

    Returns
    -------
    Per layer: attacks, success in percent, evaluations of one, and the distortions of the new
    examples at each replacement; over all: the seconds of the attacks and of the training.
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
        "success": [100 * pool.found / max(1, pool.attacks) for pool in pools],
        "evaluations": [pool.evaluations / max(1, pool.attacks) for pool in pools],
        "rms": [pool.rms for pool in pools],
    }
