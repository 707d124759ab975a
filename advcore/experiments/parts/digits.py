"""The digits of the experiments: all of MNIST, or the 1,000 that the package contains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advcore import data

CLASSES = 10
EMBEDDED_TRAINING = 800
"""Number of the package's 1,000 digits that are training images; the others are test images."""


@dataclass(frozen=True)
class Digits:
    """Images (N, 784) float32 in [0, 1] and labels (N,) int64 of both splits."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]

    @staticmethod
    @cache
    def load(dataset: str) -> Digits:
        """Load "mnist", or "embedded": the package's digits, 800 to train and 200 to test.

        Raises
        ------
        ValueError : `dataset` is neither.
        OSError, ImportError : the files of MNIST are missing and cannot be downloaded.
        """
        if dataset == "mnist":
            return Digits(*data.mnist("train"), *data.mnist("test"))
        if dataset != "embedded":
            raise ValueError(f'dataset must be "mnist" or "embedded", got {dataset!r}')
        images, labels = data.embedded_digits()
        cut = EMBEDDED_TRAINING
        return Digits(images[:cut], labels[:cut], images[cut:], labels[cut:])

    def sample(self, split: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return `count` images (at most all) of "train" or "test", and their labels.

        The same images are drawn each time.
        """
        images, labels = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }[split]
        rows = np.random.default_rng(0).permutation(len(images))[:count]
        return images[rows], labels[rows]

    def training_part(self, half: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return all training images (half 0), or one of the halves (1, 2) that `seed` gives."""
        if half == 0:
            return self.train_images, self.train_labels
        order = np.random.default_rng(seed).permutation(len(self.train_images))
        middle = len(order) // 2
        rows = order[:middle] if half == 1 else order[middle:]
        return self.train_images[rows], self.train_labels[rows]


def gaussian_noise(
    images: NDArray[np.float32], stddev: float, seed: int, *, clip: bool = False
) -> NDArray[np.float32]:
    """Add noise of the given standard deviation, and cut the sum to [0, 1] if `clip`."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, dtype=np.float32)
    noisy: NDArray[Any] = images + np.float32(stddev) * noise
    return np.clip(noisy, 0, 1) if clip else noisy


def mean(values: NDArray[np.floating[Any]]) -> float:
    """Return the mean, or NaN where there are no values."""
    return float(values.mean()) if len(values) else math.nan
