"""Random networks for the tests."""

from __future__ import annotations

import itertools

import numpy as np

from advcore import Layer, Network


def make_network(
    sizes: tuple[int, ...] = (20, 16, 5),
    activation: str = "sigmoid",
    seed: int = 0,
    gain: float = 3.0,
) -> Network:
    """A random network whose classes all occur among random images; nearly linear at gain 1."""
    rng = np.random.default_rng(seed)
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        last = i + 2 == len(sizes)
        weight = gain * rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        bias = -weight.sum(axis=1) / 2 + 0.3 * rng.standard_normal(outputs)
        layers.append(
            Layer(
                weight.astype(np.float32),
                bias.astype(np.float32),
                "identity" if last else activation,
            )
        )
    return Network(layers)
