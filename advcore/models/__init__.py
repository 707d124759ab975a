"""Models to attack: the paper's networks, published ones, and layers around a model.

Importing this package imports no torch.
"""

from .builders import (
    BUILDERS,
    CLASSES,
    PIXELS,
    PRETRAINED,
    WEIGHT_DECAY,
    alexnet,
    autoencoder400_10,
    averaged,
    fc10,
    fc100_100_10,
    fc123_456_10,
    fc200_200_10,
    fully_connected,
    quocnet,
    small_cnn,
    squeezenet1_0,
)
from .preprocessing import preprocess
from .seeding import seeded

__all__ = [
    "BUILDERS",
    "CLASSES",
    "PIXELS",
    "PRETRAINED",
    "WEIGHT_DECAY",
    "alexnet",
    "autoencoder400_10",
    "averaged",
    "fc10",
    "fc100_100_10",
    "fc123_456_10",
    "fc200_200_10",
    "fully_connected",
    "preprocess",
    "quocnet",
    "seeded",
    "small_cnn",
    "squeezenet1_0",
]
