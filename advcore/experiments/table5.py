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

from .attacks import adversarial_set
from .lipschitz import Bounds, Response, bounds, layers_of, response
from .networks import CONVOLUTIONAL, PAPER
from .table5_report import Measured, drawing, finding, layer_table, network_table, remarks
from .tables import Figure, Outcome

if TYPE_CHECKING:
    from .run import Run

# The paper's "upper bound" of the layers of Krizhevsky's AlexNet of 2012.
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
# Builder, side of the images, what stands for the weights in the cache.
IMAGENET: dict[str, tuple[Builder, int, str]] = {
    ALEXNET: (pretrained.alexnet, pretrained.ALEXNET_SIDE, pretrained.ALEXNET_URL),
    SQUEEZENET: (
        *(pretrained.squeezenet1_0, pretrained.SQUEEZENET_SIDE),
        pretrained.SQUEEZENET_SHA256,
    ),
}


@dataclass(frozen=True)
class Settings:
    """images, convolutional : MNIST test images attacked; as many as in `figures`, so that one
        attack serves both.
    jacobians : of them, the first, whose Jacobian is measured.
    imagenet : networks.  pictures : of ImageNet, attacked.
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
    """Bounds of layers and networks, and the growth that adversarial examples really have."""
    settings = SETTINGS[run.scale]
    outcome = Outcome(
        "table5",
        "Table 5: spectral bounds",
        "Layers with the Lipschitz constants L1, L2, ... together move no two inputs further apart "
        "than L1 L2 ... times. A small product would exclude adversarial examples nearby; a large "
        "one allows them. How large is it, and how close to what happens?",
        settings=asdict(settings) | {"split": "test", "targets": "random wrong class"},
    )
    found: dict[str, list[Measured]] = {}
    for name, (model, decay) in MNIST.items():
        count = settings.convolutional if name in CONVOLUTIONAL else settings.images
        networks = run.trained([run.recipe(model, seed, decay=decay) for seed in run.seeds])
        sets = [adversarial_set(run, network, split="test", count=count) for network in networks]
        found[name] = []
        for network, made in zip(networks, sets, strict=True):
            examples: tuple[NDArray[Any], ...] = (made.images, made.adversarial, made.targets)
            chain: Any = network.model
            found[name].append(
                _measure(
                    *(run, settings, network.key, chain, made.images.shape[1:]),
                    tuple(array[made.success & (made.rms > 0)] for array in examples),
                )
            )
    missing: dict[str, str] = {}
    for name, (build, side, key) in IMAGENET.items():
        if name not in settings.imagenet:
            missing[name] = f"is not part of the scale {run.scale!r}"
            continue
        try:
            chain = build()
        except pretrained.Unavailable as error:
            missing[name] = f"is left out: its weights are not to be had here ({error})"
            continue
        examples = _attacked_pictures(run, settings, key, chain, side)
        found[name] = [_measure(run, settings, key, chain, (3, side, side), examples)]
    found = {name: found[name] for name in (*IMAGENET, *MNIST) if name in found}
    outcome.tables += [
        layer_table(name, measured, PUBLISHED if name == ALEXNET else {})
        for name, measured in found.items()
    ]
    outcome.tables.append(network_table(found))
    outcome.figures.append(
        Figure(
            "table5_growth",
            "What the constants allow and what happens",
            drawing(found),
            "How far two inputs have moved apart at the output of each layer, over their distance "
            "at the input (layers with the constant 1 left out): the product of the constants, and "
            "the largest ratio at adversarial examples and at Gaussian noise of the same norms.",
        )
    )
    outcome.remarks += remarks(found, missing, PUBLISHED)
    outcome.finding = finding(found)
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
    """examples : N images, adversarial images other than these, and targets; may be none."""
    layers = layers_of(network, shape)
    tolerance = settings.tolerance
    depends = {"network": key, "tolerance": tolerance}
    made = run.step("bounds", depends, lambda: asdict(bounds(layers, tolerance=tolerance)))
    measured = Measured(layers, Bounds(**made), None)
    images, adversarial, targets = examples
    if not len(images):
        return measured
    made = run.step(
        "response",
        {"network": key, **asdict(settings)},
        lambda: asdict(
            response(
                *(network, images, adversarial, targets),
                bound=measured.bound,
                jacobians=settings.jacobians,
            )
        ),
    )
    return Measured(layers, measured.bounds, Response(**made))


def _attacked_pictures(
    run: Run, settings: Settings, key: str, network: nn.Sequential, side: int
) -> tuple[NDArray[Any], ...]:
    """Pictures of ImageNet, their adversarial versions and targets; none where there are none."""
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

    made = run.step("attack-pictures", {"network": key, "images": len(images)}, make)
    kept = np.isfinite(made["rms"]) & (made["rms"] > 0)
    return images[kept], made["adversarial"][kept], targets[kept]
