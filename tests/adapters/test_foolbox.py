"""The adapter of Foolbox, by Foolbox's own call of an attack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

foolbox, adapter = adapter_of("foolbox", "foolbox", "advcore.adapters.foolbox")
ATTACKS = {
    "l2": adapter.L2AdvcoreAttack,
    "linf": adapter.LinfAdvcoreAttack,
    "l1": adapter.L1AdvcoreAttack,
}


@pytest.mark.parametrize("norm", ATTACKS)
@pytest.mark.parametrize("way", ["untargeted", "targeted"])
def test_success_and_distance_are_ours(digits: Any, norm: str, way: str) -> None:
    model = foolbox.PyTorchModel(digits.model, (0, 1), "cpu")
    criterion, classes = digits.labels, {"labels": digits.labels}
    if way == "targeted":
        criterion = foolbox.criteria.TargetedMisclassification(digits.targets)
        classes = {"targets": digits.targets}
    attack = ATTACKS[norm]()
    raw, clipped, success = attack(model, digits.x, criterion, epsilons=None)
    ours = advcore.minimize_distortion(digits.model, digits.x, norm=norm, **classes)
    assert success.all()
    assert (raw == clipped).all()
    np.testing.assert_allclose(attack.distance(digits.x, raw), ours.distortion, rtol=1e-5)
    assert attack.last_result.engine["path"] == "native"
    assert attack.last_result.norm == norm


@pytest.mark.parametrize("norm", ATTACKS)
def test_epsilons_end_the_search_and_decide_the_success(digits: Any, norm: str) -> None:
    model = foolbox.PyTorchModel(digits.model, (0, 1), "cpu")
    full, brief = ATTACKS[norm](), ATTACKS[norm]()
    full(model, digits.x, digits.labels, epsilons=None)
    distances = full.last_result.distortion
    epsilons = [float(1.05 * np.median(distances)), float(2 * distances.max())]
    raw, clipped, success = brief(model, digits.x, digits.labels, epsilons=epsilons)
    assert len(raw) == len(clipped) == 2
    np.testing.assert_array_equal(success[0], distances <= epsilons[0])
    assert success[1].all()
    assert (brief.distance(digits.x, clipped[0]) <= epsilons[0] * 1.0001).all()
    assert brief.last_result.evaluations.sum() < full.last_result.evaluations.sum()


def test_preprocessing_and_bounds_are_the_models(digits: Any) -> None:
    class Normalised(type(digits.model[0])):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return digits.model(0.3 * x + 0.1)

    kept = {"mean": 0.1, "std": 0.3}
    model = foolbox.PyTorchModel(Normalised().eval(), (0, 1), "cpu", kept)
    plain = adapter.L2AdvcoreAttack()
    plain(foolbox.PyTorchModel(digits.model, (0, 1), "cpu"), digits.x, digits.labels, epsilons=None)
    expected = plain.last_result.distortion
    attack = adapter.L2AdvcoreAttack()
    raw, _, success = attack(model, digits.x, digits.labels, epsilons=None)
    assert success.all()
    np.testing.assert_allclose(attack.distance(digits.x, raw), expected, rtol=0.01)
    bytes_model = model.transform_bounds((0, 255))
    raw, _, success = attack(bytes_model, 255 * digits.x, digits.labels, epsilons=None)
    assert success.all()
    assert raw.max() <= 255
    np.testing.assert_allclose(attack.distance(255 * digits.x, raw) / 255, expected, rtol=0.01)


def test_repeat_and_run(digits: Any) -> None:
    model = foolbox.PyTorchModel(digits.model, (0, 1), "cpu")
    attack = adapter.L2AdvcoreAttack(effort="fast")
    raw, _, success = attack.repeat(2)(model, digits.x, digits.labels, epsilons=None)
    assert success.all()
    assert (attack.run(model, digits.x, digits.labels) == raw).all()
    assert "effort" in repr(attack)


def test_bad_input_is_named(digits: Any) -> None:
    model = foolbox.PyTorchModel(digits.model, (0, 1), "cpu")
    attack = adapter.L2AdvcoreAttack()
    with pytest.raises(TypeError, match="bounds is no option of this attack"):
        adapter.L2AdvcoreAttack(bounds=(0, 1))
    with pytest.raises(TypeError, match="norm is no option of this attack"):
        adapter.LinfAdvcoreAttack(norm=2)
    with pytest.raises(ValueError, match="effort must be"):
        adapter.L2AdvcoreAttack(effort="most")
    with pytest.raises(ValueError, match=r"labels must .* \(8,\)"):
        attack.run(model, digits.x, digits.labels[:3])
    with pytest.raises(TypeError, match="inputs must be a torch tensor, got ndarray"):
        attack.run(model, digits.x.numpy(), digits.labels)

    class Other(foolbox.criteria.Criterion):  # type: ignore[misc]
        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            return outputs

        def __repr__(self) -> str:
            return "Other()"

    with pytest.raises(ValueError, match=r"criterion must be Misclassification.* got Other"):
        attack.run(model, digits.x, Other())
