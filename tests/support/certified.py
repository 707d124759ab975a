"""Small ReLU networks with certified smallest distortions, stored by tools/certify_relu.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advcore import Layer, Network
from advcore.network import safetensors as tensorfile

PATH = Path(__file__).parent / "certified_relu.safetensors"
CONFIDENCE = 1e-4
SMALL, LARGE = "49-16-16-10", "49-32-32-10"
SMALL_MNIST, LARGE_MNIST = SMALL + " mnist", LARGE + " mnist"
"""Trained on all of MNIST: larger weights, and many more basins of nearly the same depth."""


class Certified(NamedTuple):
    """Images (N, 49) in [0, 1], targets, and proven bounds of the smallest distortion of each."""

    name: str
    network: Network
    x: Any
    target: Any
    lower: Any
    upper: Any


def load(name: str) -> Certified:
    stored, notes = tensorfile.read_tensors(PATH)
    assert float(notes["confidence"]) == CONFIDENCE
    layers = [
        Layer(stored[f"{name}.weight{i}"], stored[f"{name}.bias{i}"], kind)
        for i, kind in enumerate(("relu", "relu", "identity"))
    ]
    lower, upper = (stored[f"{name}.{end}"].astype(np.float64) for end in ("lower", "upper"))
    target = stored[f"{name}.target"].astype(np.int64)
    return Certified(name, Network(layers), stored[f"{name}.image"], target, lower, upper)
