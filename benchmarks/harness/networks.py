"""The networks that the benchmarks attack, and the images of each.

Dense networks are trained here on MNIST with `advcore.training`, seeded, and cached in a folder
under the temporary one, each under a hash of its configuration. The others are read from
``$ADVCORE_DATA/models``, whose INDEX.json describes each as a list of layers over the arrays of an
.npz file. Two dense networks are hard on purpose:

saturated
    784-100-100-10, sigmoids, trained for 40 epochs without decay, its logits then multiplied by 8:
    the softmax of almost all clean images is exactly 1 in float32 (`saturation` measures the
    share), so that cross-entropy is 0 there, and so is its gradient in an untargeted attack.
one_hot
    784-100-100-10, ReLU, linear last layer, trained for 40 epochs at a high rate by squared error
    toward one-hot outputs: "logits" near 0 and 1. DDN and PDGD reach a random target for about a
    third of the images, ALMA for more at several times the distortion. (With a sigmoid on the last
    layer DDN reaches three quarters; with a ReLU there some classes are never the largest output.)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from advcore import data, models
from advcore._files import replacing
from advcore.cli import pictures
from advcore.effort import Effort
from advcore.models import training
from advcore.network import Normalize
from advcore.options import Options
from advcore.solve.choose import choose_backend
from advcore.solve.probes import PROBE_IMAGES
from advcore.solve.schedules import find_effort

from . import vit

CACHE = Path(tempfile.gettempdir()) / "advcore_benchmarks"
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a dense network is trained on MNIST."""

    widths: tuple[int, ...] = (100, 100, 10)
    activation: str = "Sigmoid"
    one_hot: bool = False  # squared error toward one-hot outputs, not cross-entropy
    weight_decay: float = 1e-5
    epochs: int = 10
    learning_rate: float = 3e-3
    logit_scale: float = 1.0  # of the last layer, after training
    seed: int = 0  # of the initial weights

    def digest(self) -> str:
        """Hash of the fields that are not at their defaults, 12 hex digits, for the file's name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changes = {
            f.name: fields[f.name] for f in dataclasses.fields(self) if f.default != fields[f.name]
        }
        return hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]


RECIPES = {
    "fc10": Recipe(widths=(10,)),
    "fc100_100_10": Recipe(learning_rate=1e-2),
    "fc200_200_10": Recipe(widths=(200, 200, 10), learning_rate=1e-2),
    "fc1000_1000_10": Recipe(widths=(1000, 1000, 10), epochs=4),  # for rates, not distortions
    "tanh": Recipe(activation="Tanh"),
    "relu": Recipe(activation="ReLU"),
    "saturated": Recipe(weight_decay=0.0, epochs=40, learning_rate=1e-2, logit_scale=8.0),
    "one_hot": Recipe(
        activation="ReLU", one_hot=True, weight_decay=0.0, epochs=40, learning_rate=8e-3
    ),
}
HARD = ("saturated", "one_hot")
DENSE = (
    "embedded",
    "fc10",
    "fc100_100_10",
    "fc200_200_10",
    "tanh",
    "relu",
    "abc_mnist_2_20",
    "abc_mnist_6_100_nat",
)
CONVOLUTIONAL = (
    "smallcnn_fmn_regular",
    "colt_mnist_linf0.1",
    "wk_convex_linf0.1",
    "rays_smallcnn_bn",
)
CIFAR = ("abc_cifar_cnn_a_mix", "vnncomp_resnet2b")
NEXT = "squeezenet1_0_next"  # its targets are the next-likeliest classes, not random ones
IMAGENET = ("squeezenet1_0", NEXT)
VIT = "vit_mnist"
ALL = (*DENSE, *HARD, *CONVOLUTIONAL, *CIFAR, *IMAGENET)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with images that it classifies correctly, and the wanted or the true classes."""

    name: str
    model: torch.nn.Module  # in eval mode, logits
    images: NDArray[np.float32]  # (N, 784) or (N, channels, height, width), in [0, 1]
    classes: NDArray[np.int64]  # (N,) targets, or labels of an untargeted run
    targeted: bool
    norm: str = "l2"


def case(name: str, *, targeted: bool, images: int, held_out: bool = False) -> Case:
    """The first ``images`` correctly classified test images; ``held_out``: others, for tuning.

    MNIST's held-out images are test images from number 5,000 on, CIFAR's the correctly classified
    ones that follow the first 100; of ImageNet's 20 pictures none is left out, and held out are
    other targets alone. Random targets with seed 0, held out 1.
    """
    model = network(name)
    if name in CIFAR:
        x, y = _cifar()
    elif name in IMAGENET:
        x, y = _imagenet(model)
    else:
        x, y = data.mnist("test")
        x, y = (x[5000:], y[5000:]) if held_out else (x[:5000], y[:5000])
        if name in CONVOLUTIONAL or name == VIT:
            x = x.reshape(-1, 1, 28, 28)
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in torch.from_numpy(x).split(500)])
    correct = np.flatnonzero(logits.argmax(dim=1).numpy() == y)
    if name in CIFAR and held_out:
        correct = correct[100:]
    correct = correct[:images]
    x, y = np.ascontiguousarray(x[correct]), y[correct]
    if targeted and name == NEXT:
        y = logits[correct].topk(2).indices[:, 1].numpy()
    elif targeted:
        classes = 1000 if name in IMAGENET else CLASSES
        y = data.random_targets(y, classes=classes, seed=1 if held_out else 0)
    return Case(name, model, x, y, targeted)


def effort_of(case: Case, name: str) -> Effort:
    """The searches of an effort for the network of a case, to be changed and handed in."""
    images = case.images[:PROBE_IMAGES]
    flat = images.reshape(len(images), -1)
    backend = choose_backend(case.model, flat, images.shape[1:], Options())
    return find_effort(name, backend.kind, flat.shape[1], case.targeted)


@functools.cache
def network(name: str) -> torch.nn.Module:
    """The network of that name, in eval mode and without gradients of its weights."""
    if name == "embedded":
        model = data.embedded_network().to_torch()
    elif name in RECIPES:
        model = _trained_network(name, RECIPES[name])
    elif name in IMAGENET:
        model = models.squeezenet1_0()
    elif name == VIT:
        model = _trained_vit()
    else:
        model = stored_network(name)
    return model.eval().requires_grad_(False)


def weights_hash(model: torch.nn.Module) -> str:
    """Hash of all parameters, all buffers and the module's printed form, 12 hex digits."""
    digest = hashlib.sha256(repr(model).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def pool(name: str, per_class: int = 100) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """MNIST train images as ``starts``: the first of each class that the network gives that class.

    The classes are the network's own predictions, so every one is adversarial for its class.
    """
    x, y = data.mnist("train")
    x, y = x[:10_000], y[:10_000]
    model = network(name)
    with torch.inference_mode():
        predictions = model(torch.from_numpy(x)).argmax(dim=1).numpy()
    parts = [np.flatnonzero((predictions == k) & (y == k))[:per_class] for k in range(CLASSES)]
    rows = np.concatenate(parts)
    return x[rows], predictions[rows]


def saturation(name: str, images: int = 1000) -> float:
    """Share of clean test images whose largest softmax output is exactly 1 in float32."""
    x, _ = data.mnist("test")
    model = network(name)
    with torch.inference_mode():
        p = model(torch.from_numpy(x[:images])).softmax(dim=1)
    return float((p.max(dim=1).values == 1).float().mean())


def _trained_vit() -> torch.nn.Module:
    model, path = vit.untrained(), CACHE / f"network-{vit.RECIPE}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights whatever the caller set
    try:
        vit.train(model, *data.mnist("train"))
    finally:
        torch.set_num_threads(threads)
    CACHE.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(model.state_dict(), file)
    return model


def _trained_network(name: str, recipe: Recipe) -> torch.nn.Sequential:
    plain = models.fully_connected(recipe.widths, seed=recipe.seed)
    kind = getattr(torch.nn, recipe.activation)
    layers = [kind() if isinstance(m, torch.nn.Sigmoid) else m for m in plain]
    model = torch.nn.Sequential(*layers)
    path = CACHE / f"network-{name}-{recipe.digest()}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path))
        return model
    images, labels = data.mnist("train")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same weights whatever the caller set
    try:
        if recipe.one_hot:
            _train_one_hot(model, images, labels, recipe)
        else:
            training.train(
                model,
                images,
                labels,
                weight_decay=recipe.weight_decay,
                epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
            )
    finally:
        torch.set_num_threads(threads)
    last_layer = [m for m in model if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last_layer.weight.mul_(recipe.logit_scale)
        last_layer.bias.mul_(recipe.logit_scale)
    CACHE.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(model.state_dict(), file)
    return model


def _train_one_hot(
    model: torch.nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    recipe: Recipe,
) -> None:
    """Squared error toward one-hot outputs: Adam, batches of 128, cosine rate, seed 0."""
    x = torch.from_numpy(images)
    y = torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).float()
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    steps = recipe.epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(128):
            loss = (model(x[batch]) - y[batch]).square().sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


class Block(torch.nn.Module):
    """Residual block without batch norm: ``relu(conv2(relu(conv1(x))) + shortcut(x))``."""

    def __init__(
        self, first: torch.nn.Module, second: torch.nn.Module, shortcut: torch.nn.Module
    ) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut
        self.inner, self.outer = torch.nn.ReLU(), torch.nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) in, (B, C', H', W') out."""
        inner = self.inner(self.first(x))
        out: torch.Tensor = self.outer(self.second(inner) + self.shortcut(x))
        return out


def _models_folder() -> Path:
    root = os.environ.get("ADVCORE_DATA")
    if not root or not (Path(root) / "models" / "INDEX.json").is_file():
        raise FileNotFoundError("the stored networks need ADVCORE_DATA with models/INDEX.json")
    return Path(root) / "models"


def stored_network(name: str) -> torch.nn.Sequential:
    folder = _models_folder()
    index = json.loads((folder / "INDEX.json").read_text())["models"]
    if name not in index:
        known_names = ", ".join(["embedded", *RECIPES, *index])
        raise ValueError(f"unknown network {name!r}; known: {known_names}")
    with np.load(folder / index[name]["file"]) as arrays:
        weights = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    layers: list[torch.nn.Module] = []
    for entry in index[name]["spec"]:
        layers += _layers(entry, weights)
    return torch.nn.Sequential(*layers)


def _layers(entry: dict[str, Any], weights: dict[str, torch.Tensor]) -> list[torch.nn.Module]:
    """The torch modules of one layer of INDEX.json."""
    kind, prefix = entry["op"], entry.get("p", "")
    if kind == "sub_div":
        return [Normalize(entry["mean"], entry["std"])]
    if kind == "conv":
        return [_conv(weights, prefix, entry["stride"], entry["pad"])]
    if kind == "linear":
        weight = weights[f"{prefix}.weight"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": weights[f"{prefix}.bias"]})
        return [linear]
    if kind == "bn":
        norm = torch.nn.BatchNorm2d(len(weights[f"{prefix}.mean"]))
        names = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
        state = {key: weights[f"{prefix}.{stored_key}"] for key, stored_key in names.items()}
        norm.load_state_dict({**state, "num_batches_tracked": torch.tensor(1)})
        return [norm]
    if kind == "maxpool":
        return [torch.nn.MaxPool2d(entry["k"], entry["stride"])]
    if kind == "resnet_basic":
        return _resnet(entry, weights)
    plain = {"relu": torch.nn.ReLU, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh,
             "flatten": torch.nn.Flatten}  # fmt: skip
    if kind not in plain:
        raise ValueError(f"no module here for the layer {kind!r}")
    return [plain[kind]()]


def _conv(
    weights: dict[str, torch.Tensor], prefix: str, stride: int, padding: int
) -> torch.nn.Conv2d:
    weight, bias = weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias")
    out, channels, height, width = weight.shape
    conv = torch.nn.Conv2d(
        channels, out, (height, width), stride=stride, padding=padding, bias=bias is not None
    )
    conv.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return conv


def _resnet(entry: dict[str, Any], weights: dict[str, torch.Tensor]) -> list[torch.nn.Module]:
    """3x3 stem, residual blocks, then the plain layers of ``tail``."""
    layers = [_conv(weights, "conv1", entry["stem_stride"], 1), torch.nn.ReLU()]
    for prefix, stride in entry["blocks"]:
        shortcut: torch.nn.Module = torch.nn.Identity()
        if f"{prefix}.shortcut.0.weight" in weights:
            shortcut = _conv(weights, f"{prefix}.shortcut.0", stride, 0)
        conv = _conv(weights, f"{prefix}.conv1", stride, 1)
        layers.append(Block(conv, _conv(weights, f"{prefix}.conv2", 1, 1), shortcut))
    for part in entry["tail"].split(","):
        op, p = ("linear", part) if part.startswith("linear") else (part, "")
        layers += _layers({"op": op, "p": p}, weights)
    return layers


def _cifar() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    path = _models_folder().parent / "cifar10" / "cifar10_lossless_test_subset.npz"
    with np.load(path) as stored:
        x, y = stored["x"], stored["y"].astype(np.int64)
    x = x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)
    if x.shape[-1] == 3:
        x = x.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(x), y


def _imagenet(model: torch.nn.Module) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The pictures of ``$ADVCORE_DATA/imagenet/samples``, whose names end with the class."""
    folder = _models_folder().parent / "imagenet" / "samples"
    read = pictures.read_folder(folder, pictures.find_format(model))
    return read.pixels, np.array([int(path.stem.split("_")[-1]) for path in read.files])
