"""Diagnoses of networks that were made to fail, each in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data
from advcore.diagnosis import NAMES, diagnose
from advcore.diagnosis.probe import boundary_distances

DIGITS, LABELS = data.embedded_digits()
FEW = 8


def network() -> Any:
    """The network of the package as a torch module."""
    pytest.importorskip("torch")
    return data.embedded_network().to_torch().eval()


def changed(before: Callable[[Any], Any], after: Callable[[Any], Any] = lambda z: z) -> Any:
    """The network behind a change of the images, and before one of the logits."""
    inner = network()
    torch = pytest.importorskip("torch")

    class Changed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Any) -> Any:
            return after(0.5 * self.inner(before(x)))  # half as sure: its softmax is below 1

    return Changed().eval()


def names(model: Any, images: Any = DIGITS, **options: Any) -> list[str]:
    return diagnose(model, images, LABELS, count=FEW, **options).names


def test_a_sound_network_has_no_finding() -> None:
    diagnosis = diagnose(changed(lambda x: x), DIGITS, LABELS, count=16)
    assert diagnosis.findings == []
    assert diagnosis.measured["accuracy"] == "93.8% of 16 images"
    assert diagnosis.measured["differences"].startswith("1 times what the gradient says")
    assert diagnosis.text().startswith("nothing was found\n")


def test_networks_of_the_engine_are_looked_at_too() -> None:
    diagnosis = diagnose(data.embedded_network(), DIGITS, LABELS, count=16)
    assert diagnosis.names == ["saturated_softmax"]  # as it is sure of its digits
    assert "1 in float32 for 81% of the images" in diagnosis.text()


def test_the_probe_is_above_the_attack_and_not_far() -> None:
    model = data.embedded_network()
    x, y = DIGITS[:FEW], LABELS[:FEW]
    attack = advcore.minimize_distortion(model, x, labels=y).minimum_distortion()
    bounds = np.zeros(784, np.float32), np.ones(784, np.float32)

    def predict(points: Any) -> Any:
        return model.forward(np.ascontiguousarray(points)).argmax(1)

    free = boundary_distances(predict, x, y, bounds)
    assert (free > attack).all()
    assert np.median(free / attack) < 5
    np.testing.assert_array_equal(free, boundary_distances(predict, x, y, bounds))
    assert boundary_distances(predict, x, (y + 1) % 10, bounds).tolist() == [0] * FEW
    constant = boundary_distances(lambda points: np.zeros(len(points), int), x, 0 * y, bounds)
    assert np.isinf(constant).all()


def test_probabilities_and_a_saturated_softmax() -> None:
    soft = diagnose(changed(lambda x: x, lambda z: z.softmax(1)), DIGITS, LABELS, count=FEW)
    assert soft.names == ["probabilities"]
    assert "sum to 1" in soft.findings[0].evidence
    large = diagnose(changed(lambda x: x, lambda z: 100 * z), DIGITS, LABELS, count=FEW)
    assert large.names == ["saturated_softmax"]
    assert large.findings[0].level == "note"


def test_gradients_that_are_zero_or_not_finite() -> None:
    steps = diagnose(changed(lambda x: (x * 20).round() / 20), DIGITS, LABELS, count=FEW)
    assert "zero_gradient" in steps.names
    assert f"exactly zero at {FEW} of {FEW} images" in steps.text()
    assert "masked_gradient" in steps.names
    assert "non_finite_gradient" in names(changed(lambda x: x.sqrt() ** 2))


def test_outputs_that_are_random_not_finite_or_of_the_batch() -> None:
    torch = pytest.importorskip("torch")
    assert names(changed(lambda x: x + 0.1 * torch.randn_like(x))) == ["random_output"]
    assert "batch_dependence" in names(changed(lambda x: x - 0.5 * x.mean(0)))
    broken = changed(lambda x: x, lambda z: torch.where(z > z.amax(1, True) - 1e-6, z / 0 * 0, z))
    assert "non_finite_output" in names(broken)


@pytest.mark.parametrize("factor", [-1.0, 0.1, 10.0])
def test_a_backward_that_is_wrong(factor: float) -> None:
    class Wrong:
        network = data.embedded_network()

        def forward(self, x: Any) -> Any:
            return self.network.forward(x)

        def backward(self, d: Any) -> Any:
            return np.float32(factor) * self.network.backward(d)

    diagnosis = diagnose(Wrong(), DIGITS, LABELS, count=FEW)
    assert {"gradient_disagrees", "refused"} <= set(diagnosis.names)
    assert f"change by {1 / factor:.3g} times" in diagnosis.text()


def test_a_gradient_of_its_own_making_hides_the_boundary() -> None:
    torch = pytest.importorskip("torch")

    class Turned(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, d: Any) -> Any:
            return d.flip(1)  # of another pixel

    found = names(changed(Turned.apply))
    assert {"gradient_disagrees", "masked_gradient"} <= set(found)


def test_a_gradient_that_is_right_and_leads_nowhere() -> None:
    torch = pytest.importorskip("torch")
    shattered = changed(lambda x: x + 0.02 * torch.sin(1000 * x))
    diagnosis = diagnose(shattered, DIGITS, LABELS, count=16)
    assert diagnosis.names == ["masked_gradient"]
    assert diagnosis.measured["differences"].startswith("1 times")
    assert "forwards alone find nearer images for " in diagnosis.text()


def test_preprocessing_that_is_missing() -> None:
    bytes_wanted = diagnose(changed(lambda x: x / 255), DIGITS, LABELS, count=FEW)
    assert "normalisation" in bytes_wanted.names
    assert "100.0% times 255" in bytes_wanted.text()
    inverted = diagnose(changed(lambda x: 1 - x), DIGITS, LABELS, count=FEW)
    assert "100.0% with black and white exchanged" in inverted.text()
    shifted = diagnose(data.embedded_network(), DIGITS, (LABELS + 1) % 10, count=FEW)
    assert "low_accuracy" in shifted.names


def test_images_in_other_ranges() -> None:
    model = data.embedded_network()
    assert names(model, np.round(DIGITS * 255).astype(np.uint8)) == ["image_range"]
    standard = ((DIGITS - 0.1307) / 0.3081).astype(np.float32)
    assert names(changed(lambda x: x * 0.3081 + 0.1307), standard) == ["normalised_images"]


def test_training_mode_is_told_and_the_model_stays_as_it_is() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(changed(lambda x: x), torch.nn.Dropout(0.5))
    model.train()
    diagnosis = diagnose(model, DIGITS, LABELS, count=FEW)
    assert diagnosis.names == ["training_mode"]
    assert "parts are in training mode, first the module" in diagnosis.findings[0].evidence
    assert model.training
    assert diagnosis.measured["accuracy"] == "100.0% of 8 images"


def test_half_precision() -> None:
    pytest.importorskip("torch")
    diagnosis = diagnose(network().half(), DIGITS, LABELS, count=FEW)
    assert "half_precision" in diagnosis.names
    assert "weights are float16: logits are" in diagnosis.text()


def test_findings_say_what_to_do() -> None:
    found = diagnose(changed(lambda x: x, lambda z: z.softmax(1)), DIGITS, LABELS, count=FEW)
    [one] = found.findings
    assert one.name in NAMES
    lines = found.text().splitlines()
    assert lines[0].startswith("error: probabilities: ")
    assert lines[1] == "  by itself: it refuses the model"
    assert lines[2] == "  remedy: pass the model without its softmax"
    assert json.loads(json.dumps(found.as_dict()))["findings"][0]["name"] == "probabilities"
    assert "<pre>" in found._repr_html_()
    assert advcore.diagnose is diagnose


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="images must be one or more"):
        diagnose(data.embedded_network(), DIGITS[:0])
    with pytest.raises(ValueError, match="images must be finite"):
        diagnose(data.embedded_network(), np.full((9, 784), np.nan, np.float32))
    with pytest.raises(ValueError, match="count must be"):
        diagnose(data.embedded_network(), DIGITS, count=0)
    with pytest.raises(ValueError, match=r"labels must have shape \(1000,\)"):
        diagnose(data.embedded_network(), DIGITS, LABELS[:5])
