"""The networks of ImageNet: shapes, weights, pictures."""

from __future__ import annotations

import hashlib
import os
import socket
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.marks import needs_data

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")

import torch
from torch import nn

from advcore.experiments import table5
from advcore.experiments.parts.lipschitz import (
    fourier_bound,
    layers_of,
    lipschitz,
)
from advcore.experiments.parts.spectral import (
    operator_norm,
)
from advcore.models import pretrained
from advcore.models.pretrained import ALEXNET_SIDE, SQUEEZENET_SIDE, alexnet, squeezenet1_0


@pytest.fixture(scope="module")
def random_alexnet() -> nn.Sequential:
    return alexnet(pretrained=False, seed=1)


def test_alexnet_is_torchvisions(random_alexnet: nn.Sequential) -> None:
    shapes = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
        "classifier.1": (4096, 9216),
        "classifier.4": (4096, 4096),
        "classifier.6": (1000, 4096),
    }
    state = random_alexnet.state_dict()
    assert list(state) == [f"{name}.{kind}" for name in shapes for kind in ("weight", "bias")]
    for name, shape in shapes.items():
        assert state[f"{name}.weight"].shape == shape
        assert state[f"{name}.bias"].shape == shape[:1]
    x = torch.rand(1, 3, ALEXNET_SIDE, ALEXNET_SIDE)
    scaled = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    features = random_alexnet.get_submodule("features")(scaled)
    assert features.shape == (1, 256, 6, 6)
    logits = random_alexnet.get_submodule("classifier")(features.flatten(1))
    assert torch.equal(random_alexnet(x), logits)


def test_alexnets_layers_have_the_papers_names_and_their_norms(
    random_alexnet: nn.Sequential,
) -> None:
    layers = {
        layer.name: layer for layer in layers_of(random_alexnet, (3, ALEXNET_SIDE, ALEXNET_SIDE))
    }
    assert set(table5.PUBLISHED) <= set(layers)
    assert layers["conv2"].shape == (1, 64, 27, 27)
    assert layers["conv3"].shape == (1, 192, 13, 13)
    pools = [lipschitz(layers[f"pool{k}"], tolerance=1e-4).value for k in (1, 2, 3)]
    assert pools == [2, 2, 2]
    assert lipschitz(layers["avgpool"], tolerance=1e-4).value == 1
    for name in ("conv1", "conv2"):
        norm = lipschitz(layers[name], tolerance=1e-2)
        bound = fourier_bound(layers[name])
        assert bound is not None
        assert 1 < bound / norm.value < 1.03
    weight = random_alexnet.get_parameter("classifier.6.weight").double()
    top = lipschitz(layers["fc3"], tolerance=1e-4).value
    found = operator_norm(lambda x: x @ weight.T, (1, 4096), tolerance=1e-8)
    assert top == pytest.approx(found.value, rel=1e-9)


def test_alexnet_without_file_and_network_says_so_and_leaves_the_timeout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited = []

    def unreachable(*_: Any, **options: Any) -> None:
        assert options["check_hash"]
        waited.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    before = socket.getdefaulttimeout()
    with pytest.raises(pretrained.Unavailable, match=r"no such host; \$ADVCORE_DATA/models"):
        alexnet()
    assert waited == [pretrained._TIMEOUT]
    assert socket.getdefaulttimeout() == before


def test_alexnets_weights_come_from_the_file_that_has_the_hash_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    stored = tmp_path / "weights"
    torch.save({"a": torch.arange(3)}, stored)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "ALEXNET_URL", f"https://none/alexnet-{digest[:8]}.pth")
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    stored.rename(tmp_path / "models" / f"alexnet-{digest[:8]}.pth")
    assert pretrained._alexnet_weights()["a"].tolist() == [0, 1, 2]
    (tmp_path / "models" / f"alexnet-{digest[:8]}.pth").write_bytes(b"another")
    with pytest.raises(ValueError, match="not the published file"):
        pretrained._alexnet_weights()


def test_squeezenet_without_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    with pytest.raises(pretrained.Unavailable, match="ADVCORE_DATA is not set"):
        squeezenet1_0()
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    with pytest.raises(pretrained.Unavailable, match=r"squeezenet_v1_0\.npz does not exist"):
        squeezenet1_0()
    (tmp_path / "imagenet" / "samples").mkdir(parents=True)
    (tmp_path / "imagenet" / "squeezenet_v1_0.npz").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not the published file"):
        squeezenet1_0()
    with pytest.raises(pretrained.Unavailable, match="no pictures"):
        pretrained.imagenet_samples(SQUEEZENET_SIDE)


def test_squeezenet_has_the_published_shapes() -> None:
    layers = {
        layer.name: layer for layer in layers_of(squeezenet1_0(pretrained=False), (3, 227, 227))
    }
    assert layers["pool1"].shape == (1, 96, 111, 111)
    assert layers["fire2.squeeze1x1"].shape == (1, 96, 55, 55)
    assert layers["fire5.squeeze1x1"].shape == (1, 256, 27, 27)
    assert layers["fire9.squeeze1x1"].shape == (1, 512, 13, 13)
    assert layers["mean"].shape == (1, 1000, 15, 15)
    assert lipschitz(layers["mean"], tolerance=1).value == pytest.approx(1 / 15)


@needs_data
def test_squeezenet_knows_the_sample_pictures() -> None:
    images, labels = pretrained.imagenet_samples(SQUEEZENET_SIDE)
    assert images.shape == (20, 3, 227, 227)
    assert images.min() == 0
    assert images.max() == 1
    with torch.inference_mode():
        ranked = squeezenet1_0()(torch.from_numpy(images)).argsort(1, descending=True).numpy()
    assert (ranked[:, 0] == labels).sum() == 15
    assert (ranked[:, :5] == labels[:, None]).any(1).sum() == 18


@needs_data
def test_squeezenet_fires_keep_the_channels_apart() -> None:
    path = Path(os.environ["ADVCORE_DATA"]) / "imagenet" / "squeezenet_v1_0.npz"
    network = squeezenet1_0()
    x = torch.rand(1, 512, 4, 4)
    squeezed = network.get_submodule("fire9.squeeze1x1")(x)
    both = network.get_submodule("fire9.expand")(squeezed)[0].numpy()
    with np.load(path) as stored:
        weight, bias = (
            stored["fire9_squeeze1x1.weight"][:, :, 0, 0],
            stored["fire9_squeeze1x1.bias"],
        )
        expected = np.einsum("dc,cij->dij", weight, x[0].numpy()) + bias[:, None, None]
        np.testing.assert_allclose(squeezed[0].numpy(), expected, rtol=1e-3, atol=1e-4)
        ones = np.einsum("dc,cij->dij", stored["fire9_expand1x1.weight"][:, :, 0, 0], expected)
        ones += stored["fire9_expand1x1.bias"][:, None, None]
        middle = np.einsum("dcuv,cuv->d", stored["fire9_expand3x3.weight"], expected[:, :3, :3])
        middle += stored["fire9_expand3x3.bias"]
    np.testing.assert_allclose(both[:256], ones, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(both[256:, 1, 1], middle, rtol=1e-3, atol=1e-4)
