"""Train the network of the package and write it to the folder of the package's digits.

Run ``python tools/train_embedded.py`` in the repository, with ADVCORE_DATA set or pooch installed.
It takes about a minute on one core. The result is the same for the same torch version and CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from advcore import data, models
from advcore.models import training
from advcore.network import Network

FOLDER = Path(__file__).resolve().parent.parent / "advcore" / "_data"
NAME = "fc100_100_10"
SEED = 0
EPOCHS = 60
BATCH_SIZE = 128
LEARNING_RATE = 1e-2


def write_digits(count: int = 1000) -> None:
    """Write the first test digits as (count, 28, 28) uint8 and their labels as uint8."""
    images, labels = data.mnist("test")
    pixels = np.rint(images[:count] * 255).astype(np.uint8).reshape(-1, 28, 28)
    np.savez_compressed(
        FOLDER / "mnist_test_1000.npz", images=pixels, labels=labels[:count].astype(np.uint8)
    )


def write_network() -> None:
    """Train and store the network, and print its metadata: error rates and settings."""
    torch.set_num_threads(1)
    images, labels = data.mnist("train")
    model = models.fc100_100_10(seed=SEED)
    begin = time.perf_counter()
    history = training.train(
        model,
        images,
        labels,
        weight_decay=models.WEIGHT_DECAY[NAME],
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        seed=SEED,
        callback=lambda epoch, objective: print(f"epoch {epoch}: objective {objective:.5f}"),
    )
    seconds = time.perf_counter() - begin
    metadata = {
        "name": NAME,
        "train_error": f"{training.error_rate(model, images, labels):.4%}",
        "test_error": f"{training.error_rate(model, *data.mnist('test')):.4%}",
        "objective": f"{history[-1]:.6f}",
        "weight_decay": str(models.WEIGHT_DECAY[NAME]),
        "training": f"Adam, learning rate {LEARNING_RATE} to 0 by a cosine, {EPOCHS} epochs of "
        f"batches of {BATCH_SIZE}, seed {SEED}",
        "torch": torch.__version__.partition("+")[0],
    }
    Network.from_torch(model, (models.PIXELS,)).save(FOLDER / f"{NAME}.safetensors", metadata)
    print(f"{seconds:.0f} s")
    for name, value in metadata.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", action="store_true", help="write the digits as well")
    arguments = parser.parse_args()
    if arguments.digits:
        write_digits()
    write_network()
