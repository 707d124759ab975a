"""The adapter of torchattacks, by calls, modes and ``save`` of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

library, adapter = adapter_of("torchattacks", "torchattacks", "advcore.adapters.torchattacks")
torch = pytest.importorskip("torch")
NORMS = {"L2": 2, "Linf": float("inf"), "L1": 1}


def distance(a: Any, b: Any, norm: float) -> Any:
    return (a - b).flatten(1).double().norm(norm, dim=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["untargeted", "targeted"])
def test_success_and_distance_are_ours(digits: Any, norm: str, way: str) -> None:
    attack = adapter.MinimumDistortion(digits.model, norm)
    if way == "targeted":
        attack.set_mode_targeted_by_label(quiet=True)
        found, classes = attack(digits.x, digits.targets), {"targets": digits.targets}
        assert (digits.model(found).argmax(dim=1) == digits.targets).all()
    else:
        found, classes = attack(digits.x, digits.labels), {"labels": digits.labels}
        assert (digits.model(found).argmax(dim=1) != digits.labels).all()
    ours = advcore.minimize_distortion(digits.model, digits.x, norm=norm.lower(), **classes)
    np.testing.assert_allclose(distance(found, digits.x, NORMS[norm]), ours.distortion, rtol=1e-5)
    assert attack.last_result.engine["path"] == "native"


def test_targeted_modes(digits: Any) -> None:
    attack = adapter.MinimumDistortion(digits.model)
    attack.set_mode_targeted_least_likely(quiet=True)
    found = attack(digits.x, digits.labels)
    least = digits.model(digits.x).argmin(dim=1)
    assert (digits.model(found).argmax(dim=1) == least).all()
    attack.set_mode_targeted_by_function(lambda x, y: (y + 3) % 10, quiet=True)
    found = attack(digits.x, digits.labels)
    assert (digits.model(found).argmax(dim=1) == digits.targets).all()


@pytest.mark.parametrize("norm", NORMS)
def test_normalised_images(digits: Any, norm: str) -> None:
    class Normalised(torch.nn.Sequential):
        def forward(self, x: Any) -> Any:
            return super().forward(0.3 * x + 0.1)

    attack = adapter.MinimumDistortion(Normalised(digits.model).eval(), norm)
    attack.set_normalization_used([0.1], [0.3])
    found = attack((digits.x - 0.1) / 0.3, digits.labels)
    back = 0.3 * found + 0.1
    assert back.min() >= -1e-6
    assert back.max() <= 1 + 1e-6
    assert (digits.model(back).argmax(dim=1) != digits.labels).all()
    ours = advcore.minimize_distortion(
        digits.model, digits.x, labels=digits.labels, norm=norm.lower()
    )
    np.testing.assert_allclose(distance(back, digits.x, NORMS[norm]), ours.distortion, rtol=0.02)


def test_save_stores_what_the_call_returns(digits: Any, tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(digits.x, digits.labels)
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    attack = adapter.MinimumDistortion(digits.model, effort="fast")
    path = tmp_path / "adversarial.pt"
    accuracy, mean, _ = attack.save(loader, str(path), verbose=False, return_verbose=True)
    stored = torch.load(path)
    assert accuracy == 0
    assert stored["adv_inputs"].shape == digits.x.shape
    expected = distance(stored["adv_inputs"], digits.x, 2).mean()
    assert mean == pytest.approx(float(expected), rel=1e-4)


def test_the_mode_of_the_model_comes_back(digits: Any) -> None:
    attack = adapter.MinimumDistortion(digits.model.train(), effort="fast")
    attack(digits.x, digits.labels)
    assert digits.model.training


def test_bad_input_is_named(digits: Any) -> None:
    with pytest.raises(ValueError, match="norm must be"):
        adapter.MinimumDistortion(digits.model, "L0")
    with pytest.raises(TypeError, match="steps is no option"):
        adapter.MinimumDistortion(digits.model, steps=10)
    attack = adapter.MinimumDistortion(digits.model)
    with pytest.raises(ValueError, match=r"labels must .* \(8,\)"):
        attack(digits.x, digits.labels[:2])
    attack.set_model_training_mode(model_training=True)
    with pytest.raises(ValueError, match="model_training must be False"):
        attack(digits.x, digits.labels)
