"""A network of others on CIFAR images, by each library's own way to run an attack."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of
from support.marks import needs_data

import advcore

pytestmark = needs_data
NAME = "abc_cifar_cnn_a_mix"


@pytest.fixture(scope="module")
def case() -> Any:
    pytest.importorskip("torch")
    return importlib.import_module("harness.networks").case(NAME, targeted=False, images=4)


def by_advlib(model: Any, x: Any, y: Any) -> Any:
    (adapter,) = adapter_of("advcore", "advcore.adapters.advlib")
    return adapter.advcore_attack(model, x, y)


def by_foolbox(model: Any, x: Any, y: Any) -> Any:
    foolbox, adapter = adapter_of("foolbox", "foolbox", "advcore.adapters.foolbox")
    wrapped = foolbox.PyTorchModel(model, (0, 1), "cpu")
    raw, _, success = adapter.L2AdvcoreAttack()(wrapped, x, y, epsilons=None)
    assert success.all()
    return raw


def by_art(model: Any, x: Any, y: Any) -> Any:
    torch = importlib.import_module("torch")
    classification, adapter = adapter_of(
        "art", "art.estimators.classification", "advcore.adapters.art"
    )
    loss = torch.nn.CrossEntropyLoss()
    classifier = classification.PyTorchClassifier(
        model, loss, tuple(x.shape[1:]), 10, clip_values=(0, 1), device_type="cpu"
    )
    return torch.from_numpy(adapter.MinimumDistortion(classifier).generate(x.numpy(), y.numpy()))


def by_torchattacks(model: Any, x: Any, y: Any) -> Any:
    (adapter,) = adapter_of("torchattacks", "advcore.adapters.torchattacks")
    return adapter.MinimumDistortion(model)(x, y)


def by_secml(model: Any, x: Any, y: Any) -> Any:
    utils = importlib.import_module("torch.utils.data")
    (adapter,) = adapter_of("secmlt", "advcore.adapters.secml")
    loader = utils.DataLoader(utils.TensorDataset(x, y), batch_size=len(x))
    ((found, _),) = adapter.MinimumDistortion()(model, loader)
    return found


@pytest.mark.parametrize("way", [by_advlib, by_foolbox, by_art, by_torchattacks, by_secml])
def test_the_images_are_ours(case: Any, way: Any) -> None:
    torch = importlib.import_module("torch")
    x, y = torch.from_numpy(case.images), torch.from_numpy(case.classes)
    found = way(case.model, x, y)
    ours = advcore.minimize_distortion(case.model, x, labels=y)
    assert ours.success.all()
    assert (case.model(found).argmax(dim=1) != y).all()
    distances = (found - x).flatten(1).double().norm(dim=1)
    np.testing.assert_allclose(distances, ours.distortion, rtol=1e-5)
