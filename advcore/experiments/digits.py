"""The digits of the experiments: all of MNIST, or the few that travel with the package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advcore import data

EMBEDDED_TRAINING = 800


@dataclass(frozen=True)
class Digits:
    """(N, 784) float32 images in [0, 1] and (N,) int64 labels of both splits."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]

    @staticmethod
    @cache
    def load(dataset: str) -> Digits:
        """MNIST for "mnist"; for "embedded" the package's digits, 800 to train and 200 to test."""
        if dataset == "mnist":
            return Digits(*data.mnist("train"), *data.mnist("test"))
        if dataset != "embedded":
            raise ValueError(f'dataset must be "mnist" or "embedded", got {dataset!r}')
        images, labels = data.embedded_digits()
        cut = EMBEDDED_TRAINING
        return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])

    def sample(self, split: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`count` images (at most all) of "train" or "test", drawn once and for all."""
        images, labels = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }[split]
        rows = np.random.default_rng(0).permutation(len(images))[:count]
        return images[rows], labels[rows]

    def training_part(self, half: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """All training images (half 0), or one of the two halves that `seed` splits them in."""
        if half == 0:
            return self.train_images, self.train_labels
        order = np.random.default_rng(seed).permutation(len(self.train_images))
        middle = len(order) // 2
        rows = order[:middle] if half == 1 else order[middle:]
        return self.train_images[rows], self.train_labels[rows]


def gaussian_noise(
    images: NDArray[np.float32], stddev: float, seed: int, *, clip: bool = False
) -> NDArray[np.float32]:
    """The images plus noise of that standard deviation, outside [0, 1] as well unless `clip`."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    noisy: NDArray[Any] = images + np.float32(stddev) * noise
    return np.clip(noisy, 0, 1) if clip else noisy
