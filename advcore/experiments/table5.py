"""Table 5: how far can each layer, and all of them together, move two inputs apart?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import advcore
from advcore import data
from advcore.models import pretrained

from .parts.attacks import adversarial_set
from .parts.lipschitz import Bounds, Response, bounds, layers_of, response
from .parts.networks import CONVOLUTIONAL, PAPER
from .parts.table5_report import Measured, drawing, finding, layer_table, network_table, remarks
from .parts.tables import Figure, Outcome

if TYPE_CHECKING:
    from .parts.run import Run

# The paper gives these values as "upper bound" of the layers of Krizhevsky's AlexNet of 2012.
PUBLISHED = {
    "conv1": 2.75,
    "conv2": 10.0,
    "conv3": 7.0,
    "conv4": 7.5,
    "conv5": 11.0,
    "fc1": 3.12,
    "fc2": 4.0,
    "fc3": 4.0,
}
MNIST = {name: PAPER[name] for name in ("FC100-100-10", "FC200-200-10")} | CONVOLUTIONAL
ALEXNET, SQUEEZENET = "AlexNet", "SqueezeNet 1.0"
Builder = Callable[[], nn.Sequential]
# Each entry has the builder, the side of the images, and the key of the weights in the cache.
IMAGENET: dict[str, tuple[Builder, int, str]] = {
    ALEXNET: (pretrained.alexnet, pretrained.ALEXNET_SIDE, pretrained.ALEXNET_URL),
    SQUEEZENET: (
        pretrained.squeezenet1_0,
        pretrained.SQUEEZENET_SIDE,
        pretrained.SQUEEZENET_SHA256,
    ),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment at one scale.

    images, convolutional : numbers of MNIST test images that are attacked, for the fully connected
        and the convolutional networks. They are those of `figures`, so that one attack serves both.
    jacobians : number of these images, from the first on, whose Jacobian is measured.
    imagenet : names of the ImageNet networks.
    pictures : number of ImageNet pictures that are attacked.
    tolerance : residual at which power iterations stop.
    """

    images: int
    convolutional: int
    jacobians: int
    imagenet: tuple[str, ...]
    pictures: int
    tolerance: float


SETTINGS = {
    "full": Settings(2000, 500, 50, (ALEXNET, SQUEEZENET), 10, 1e-6),
    "quick": Settings(500, 60, 10, (SQUEEZENET,), 1, 1e-4),
    "tiny": Settings(60, 12, 2, (), 0, 1e-4),
}


def run(run: Run) -> Outcome:
    """Compute bounds of layers and networks, and measure how far adversarial examples move."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "table5",
        "Table 5: spectral bounds",
        "Layers with the Lipschitz constants L1, L2, ... together move no two inputs further apart "
        "than L1 L2 ... times. A small product would exclude adversarial examples nearby; a large "
        "one allows them. How large is it, and how close to what happens?",
        settings=asdict(settings) | {"split": "test", "targets": "random wrong class"},
    )
    measurements: dict[str, list[Measured]] = {}
    for name, (model, decay) in MNIST.items():
        count = settings.convolutional if name in CONVOLUTIONAL else settings.images
        networks = run.trained([run.recipe(model, seed, decay=decay) for seed in run.seeds])
        sets = [adversarial_set(run, network, split="test", count=count) for network in networks]
        measurements[name] = []
        for network, attacked in zip(networks, sets, strict=True):
            examples: tuple[NDArray[Any], ...] = (
                attacked.images,
                attacked.adversarial,
                attacked.targets,
            )
            chain: Any = network.model
            measurements[name].append(
                _measure(
                    run,
                    settings,
                    network.key,
                    chain,
                    attacked.images.shape[1:],
                    tuple(array[attacked.success & (attacked.rms > 0)] for array in examples),
                )
            )
    absent: dict[str, str] = {}
    for name, (build, side, key) in IMAGENET.items():
        if name not in settings.imagenet:
            absent[name] = f"is not part of the scale {run.scale!r}"
            continue
        try:
            chain = build()
        except pretrained.Unavailable as error:
            absent[name] = f"is left out: its weights are not to be had here ({error})"
            continue
        examples = _attacked_pictures(run, settings, key, chain, side)
        measurements[name] = [_measure(run, settings, key, chain, (3, side, side), examples)]
    measurements = {
        name: measurements[name] for name in (*IMAGENET, *MNIST) if name in measurements
    }
    outcome.tables += [
        layer_table(name, measured, PUBLISHED if name == ALEXNET else {})
        for name, measured in measurements.items()
    ]
    outcome.tables.append(network_table(measurements))
    outcome.figures.append(
        Figure(
            "table5_growth",
            "What the constants allow and what happens",
            drawing(measurements),
            "How far two inputs have moved apart at the output of each layer, over their distance "
            "at the input (layers with the constant 1 left out): the product of the constants, and "
            "the largest ratio at adversarial examples and at Gaussian noise of the same norms.",
        )
    )
    outcome.remarks += remarks(measurements, absent, PUBLISHED)
    outcome.finding = finding(measurements)
    outcome.headline = ("table5_networks", next(iter(MNIST)), "bound")
    return outcome


def _measure(
    run: Run,
    settings: Settings,
    key: str,
    network: nn.Sequential,
    shape: Sequence[int],
    examples: tuple[NDArray[Any], ...],
) -> Measured:
    """Measure one network.

    examples : N images, their adversarial images, which differ from them, and their targets; N may
        be 0.
    """
    layers = layers_of(network, shape)
    tolerance = settings.tolerance
    depends = {"network": key, "tolerance": tolerance}
    arrays = run.step("bounds", depends, lambda: asdict(bounds(layers, tolerance=tolerance)))
    measured = Measured(layers, Bounds(**arrays), None)
    images, adversarial, targets = examples
    if not len(images):
        return measured
    arrays = run.step(
        "response",
        {"network": key, **asdict(settings)},
        lambda: asdict(
            response(
                network,
                images,
                adversarial,
                targets,
                bound=measured.bound,
                jacobians=settings.jacobians,
            )
        ),
    )
    return Measured(layers, measured.bounds, Response(**arrays))


def _attacked_pictures(
    run: Run, settings: Settings, key: str, network: nn.Sequential, side: int
) -> tuple[NDArray[Any], ...]:
    """Return pictures of ImageNet, their adversarial images and their targets.

    The arrays are empty where no pictures are at hand.
    """
    try:
        images, labels = pretrained.imagenet_samples(side)
    except pretrained.Unavailable:
        images, labels = np.empty((0, 3, side, side), np.float32), np.empty(0, np.int64)
    images, labels = images[: settings.pictures], labels[: settings.pictures]
    if not len(images):
        return images, images, labels
    targets = data.random_targets(labels, classes=1000, seed=0)

    def make() -> dict[str, Any]:
        result = advcore.minimize_distortion(network, images, targets, effort="fast")
        return {"adversarial": result.adversarial, "rms": result.rms_distortion}

    attacked = run.step("attack-pictures", {"network": key, "images": len(images)}, make)
    rows = np.isfinite(attacked["rms"]) & (attacked["rms"] > 0)
    return images[rows], attacked["adversarial"][rows], targets[rows]
