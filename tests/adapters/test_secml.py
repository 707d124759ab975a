"""The adapter of secml-torch, by calls on a data loader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

adapter, classifiers, metrics = adapter_of(
    "secmlt",
    "advcore.adapters.secml",
    "secmlt.models.pytorch.base_pytorch_nn",
    "secmlt.metrics.classification",
)
torch = pytest.importorskip("torch")
NORMS = {"l2": 2, "linf": float("inf"), "l1": 1}


def loader(digits: Any, batch_size: int = 8) -> Any:
    data = torch.utils.data.TensorDataset(digits.x, digits.labels)
    return torch.utils.data.DataLoader(data, batch_size=batch_size)


def joined(batches: Any) -> Any:
    return torch.cat([samples for samples, _ in batches])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("target", [None, 3])
def test_success_and_distance_are_ours(digits: Any, norm: str, target: int | None) -> None:
    model = classifiers.BasePyTorchClassifier(digits.model)
    attack = adapter.MinimumDistortion(norm, y_target=target)
    adversarial = attack(model, loader(digits))
    accuracy = metrics.Accuracy()(model, adversarial)
    classes: dict[str, Any] = {"labels": digits.labels}
    if target is None:
        assert accuracy == 0
    else:
        classes = {"targets": target}
        success = metrics.AttackSuccessRate(y_target=target)(model, adversarial)
        assert success == 1
    ours = advcore.minimize_distortion(digits.model, digits.x, norm=norm, **classes)
    found = (joined(adversarial) - digits.x).flatten(1).double().norm(NORMS[norm], dim=1)
    np.testing.assert_allclose(found, ours.distortion, rtol=1e-5, atol=1e-7)
    assert attack.last_result.engine["path"] == "native"


@pytest.mark.parametrize("kind", ["module", "function"])
def test_preprocessing_is_the_classifiers(digits: Any, kind: str) -> None:
    class Scale(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x / 255

    scale = Scale() if kind == "module" else lambda x: x / 255
    model = classifiers.BasePyTorchClassifier(digits.model, preprocessing=scale)
    attack = adapter.MinimumDistortion(ub=255.0)
    data = digits._replace(x=255 * digits.x)
    adversarial = joined(attack(model, loader(data)))
    assert (model.predict(adversarial) != digits.labels).all()
    ours = advcore.minimize_distortion(digits.model, digits.x, labels=digits.labels)
    np.testing.assert_allclose(attack.last_result.distortion / 255, ours.distortion, rtol=0.1)
    path = "native" if kind == "module" else "torch"
    assert attack.last_result.engine["path"] == path


def test_streams_and_bare_modules(digits: Any) -> None:
    attack = adapter.MinimumDistortion(effort="fast")
    stream = attack(digits.model, loader(digits, 3), stream=True)
    assert [len(samples) for samples, _ in stream] == [3, 3, 2]


def test_bad_input_is_named(digits: Any) -> None:
    with pytest.raises(NotImplementedError, match="perturbation model"):
        adapter.MinimumDistortion("l0")
    with pytest.raises(NotImplementedError, match="backend"):
        adapter.MinimumDistortion(backend="foolbox")
    with pytest.raises(NotImplementedError, match="Trackers"):
        adapter.MinimumDistortion(trackers=[])
    with pytest.raises(TypeError, match="num_steps is no option"):
        adapter.MinimumDistortion(num_steps=10)
    with pytest.raises(ValueError, match=r"targets must .* 10"):
        adapter.MinimumDistortion(y_target=11)(digits.model, loader(digits))
