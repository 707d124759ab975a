"""Networks with published weights, trained on ImageNet: AlexNet and SqueezeNet 1.0.

Both map (B, 3, H, W) float32 RGB images in [0, 1] to (B, 1000) logits. Their first layers scale the
images to the values of their training. Both are chains of `torch.nn.Sequential`. Importing this
file imports torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._extras import require
from ..network import Normalize
from .modules import ReverseChannels
from .seeding import seeded

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
"""Address of torchvision's weights; the end of the name is the start of their SHA-256."""

ALEXNET_SIDE = 224
"""Height and width in pixels of the images that AlexNet takes."""

SQUEEZENET_SHA256 = "dcb1522e27feaccfc8808c04ad934a9c5d5402d99096fb081c219cfcef032918"
"""SHA-256 of the file with SqueezeNet's weights."""

SQUEEZENET_SIDE = 227
"""Height and width in pixels of the images that SqueezeNet takes."""

SHORT_SIDE = 256
"""Length in pixels to which the short side of a picture is scaled before the crop."""

_TIMEOUT = 5.0
"""Seconds to wait for a server that does not answer."""

_FIRES = {
    "fire2": (96, 16, 64, 64),
    "fire3": (128, 16, 64, 64),
    "fire4": (128, 32, 128, 128),
    "fire5": (256, 32, 128, 128),
    "fire6": (256, 48, 192, 192),
    "fire7": (384, 48, 192, 192),
    "fire8": (384, 64, 256, 256),
    "fire9": (512, 64, 256, 256),
}
"""Channels of each fire module of SqueezeNet: input, squeeze, expand 1x1 and expand 3x3."""


class Unavailable(OSError):
    """Raised for weights or pictures that are not on disk and cannot be downloaded."""


class Expand(nn.Module):
    """The 1x1 and 3x3 convolutions of one input, with their outputs concatenated."""

    def __init__(self, channels: int, ones: int, threes: int) -> None:
        super().__init__()
        self.expand1x1 = nn.Conv2d(channels, ones, 1)
        self.expand3x3 = nn.Conv2d(channels, threes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1)


def alexnet(*, pretrained: bool = True, seed: int = 0) -> nn.Sequential:
    """Build torchvision's AlexNet, of "One weird trick" (Krizhevsky 2014), for 224x224 images.

    Its state dict has torchvision's keys. The weights come from
    ``$ADVCORE_DATA/models/alexnet-owt-7be5be79.pth`` if that file exists, else from torch's cache
    or pytorch.org (233 MB). Without `pretrained` it has torch's initial weights.

    Raises
    ------
    Unavailable : there is no file, and no server answers within a few seconds.
    ValueError : the file is not the published one.
    """
    with seeded(seed):
        network = nn.Sequential(
            OrderedDict(
                normalize=_constant(Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
                features=nn.Sequential(
                    nn.Conv2d(3, 64, 11, stride=4, padding=2),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2),
                    nn.Conv2d(64, 192, 5, padding=2),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2),
                    nn.Conv2d(192, 384, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(384, 256, 3, padding=1),
                    nn.ReLU(),
                    nn.Conv2d(256, 256, 3, padding=1),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2),
                ),
                avgpool=nn.AdaptiveAvgPool2d((6, 6)),
                flatten=nn.Flatten(),
                classifier=nn.Sequential(
                    nn.Dropout(),
                    nn.Linear(9216, 4096),
                    nn.ReLU(),
                    nn.Dropout(),
                    nn.Linear(4096, 4096),
                    nn.ReLU(),
                    nn.Linear(4096, 1000),
                ),
            )
        )
    if pretrained:
        network.load_state_dict(_alexnet_weights())
    vars(network)["input_shape"] = (3, ALEXNET_SIDE, ALEXNET_SIDE)
    return network.eval().requires_grad_(False)


def squeezenet1_0(*, pretrained: bool = True, seed: int = 0) -> nn.Sequential:
    """Build SqueezeNet 1.0 (Iandola et al. 2016) for 227x227 images.

    The weights are those of the authors' Deep-Compression file, and are read from
    ``$ADVCORE_DATA/imagenet/squeezenet_v1_0.npz``. Without `pretrained` it has torch's initial
    weights.

    Raises
    ------
    Unavailable : ADVCORE_DATA is not set, or the file does not exist.
    ValueError : the file is not the published one.
    """
    mean, scale = (104 / 255, 117 / 255, 123 / 255), 1 / 255
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        bgr=ReverseChannels(),
        normalize=_constant(Normalize(mean, (scale, scale, scale))),
    )
    with seeded(seed):
        layers |= {"conv1": nn.Conv2d(3, 96, 7, stride=2), "relu1": nn.ReLU(), "pool1": _pool()}
        for name, (channels, squeeze, expand1x1, expand3x3) in _FIRES.items():
            layers[name] = nn.Sequential(
                OrderedDict(
                    squeeze1x1=nn.Conv2d(channels, squeeze, 1),
                    relu=nn.ReLU(),
                    expand=Expand(squeeze, expand1x1, expand3x3),
                    relu_expand=nn.ReLU(),
                )
            )
            if name in ("fire4", "fire8"):
                layers[f"pool{name[-1]}"] = _pool()
        layers |= {"conv10": nn.Conv2d(512, 1000, 1, padding=1), "relu10": nn.ReLU()}
    layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(layers)
    if pretrained:
        path = _data("imagenet/squeezenet_v1_0.npz")
        content = path.read_bytes()
        _check(path, content, SQUEEZENET_SHA256)
        with np.load(io.BytesIO(content)) as arrays:
            # The file's fire2_expand1x1.weight becomes fire2.expand.expand1x1.weight.
            network.load_state_dict(
                {
                    re.sub(r"_(?=squeeze)", ".", re.sub(r"_(?=expand)", ".expand.", key)): (
                        torch.from_numpy(arrays[key])
                    )
                    for key in arrays.files
                }
            )
    vars(network)["input_shape"] = (3, SQUEEZENET_SIDE, SQUEEZENET_SIDE)
    return network.eval().requires_grad_(False)


def imagenet_samples(side: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the pictures ``imagenet_NUMBER_CLASS.jpg`` of ``$ADVCORE_DATA/imagenet/samples``.

    Returns
    -------
    The images (N, 3, side, side), float32 RGB in [0, 1], and the classes (N,) int64. An image is
    the middle of a picture whose short side is scaled to 256.

    Raises
    ------
    Unavailable : ADVCORE_DATA is not set, or there are no such pictures.
    """
    require("matplotlib", "plots", "reading pictures")
    from matplotlib.image import imread

    paths = sorted(_data("imagenet/samples").glob("imagenet_*_*.jpg"))
    if not paths:
        raise Unavailable("no pictures in $ADVCORE_DATA/imagenet/samples")
    images = []
    for path in paths:
        pixels = np.array(imread(path))  # (H, W, 3) uint8, or (H, W) if it is grey
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        height, width = picture.shape[2:]
        ratio = SHORT_SIDE / min(height, width)
        size = (round(height * ratio), round(width * ratio))
        picture = nn.functional.interpolate(picture, size, mode="bilinear", antialias=True)
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        images.append(picture[0, :, top : top + side, left : left + side].clamp(0, 1).numpy())
    labels = [int(path.stem.rpartition("_")[2]) for path in paths]
    return np.stack(images), np.array(labels, np.int64)


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _constant(layer: Normalize) -> Normalize:
    """Take the layer's buffers out of the state dict, which then has the published keys alone."""
    for name, buffer in list(layer.named_buffers()):
        layer.register_buffer(name, buffer, persistent=False)
    return layer


def _data(name: str) -> Path:
    root = os.environ.get("ADVCORE_DATA")
    if not root:
        raise Unavailable(f"ADVCORE_DATA is not set and {name} is to be found there")
    path = Path(root) / name
    if not path.exists():
        raise Unavailable(f"$ADVCORE_DATA/{name} does not exist")
    return path


def _check(path: Path, content: bytes, digest: str) -> None:
    """Raise ValueError unless the SHA-256 of the content begins with `digest`."""
    actual = hashlib.sha256(content).hexdigest()
    if not actual.startswith(digest):
        raise ValueError(f"{path} is not the published file: SHA-256 {actual}, not {digest}")


def _alexnet_weights() -> dict[str, Any]:
    name = ALEXNET_URL.rpartition("/")[2]
    try:
        path = _data(f"models/{name}")
    except Unavailable as absent:
        try:
            with _patience():
                weights: dict[str, Any] = torch.hub.load_state_dict_from_url(
                    ALEXNET_URL,
                    None,
                    "cpu",
                    progress=False,
                    check_hash=True,
                    weights_only=True,
                )
        except (OSError, RuntimeError) as error:  # RuntimeError: another hash
            reason = getattr(error, "reason", error)
            raise Unavailable(f"{ALEXNET_URL}: {reason}; {absent}") from error
        return weights
    content = path.read_bytes()
    _check(path, content, path.stem.rpartition("-")[2])
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


@contextmanager
def _patience() -> Iterator[None]:
    """Set the timeout of new sockets to `_TIMEOUT`, as torch.hub has none of its own."""
    default = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(default)
