"""The adapter of the Adversarial Robustness Toolbox, by ``generate`` and ART's own predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

adapter, classification, preprocessor = adapter_of(
    "art",
    "advcore.adapters.art",
    "art.estimators.classification",
    "art.defences.preprocessor",
)
torch = pytest.importorskip("torch")
NORMS = {"l2": 2, "linf": np.inf, "l1": 1}


def classifier(model: Any, **options: Any) -> Any:
    given = {"clip_values": (0, 1), "device_type": "cpu", **options}
    return classification.PyTorchClassifier(
        model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, **given
    )


def distance(a: Any, b: Any, norm: float) -> Any:
    return np.linalg.norm((a - b).reshape(len(a), -1).astype(np.float64), ord=norm, axis=1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["untargeted", "targeted"])
def test_success_and_distance_are_ours(digits: Any, norm: str, way: str) -> None:
    estimator, x = classifier(digits.model), digits.x.numpy()
    attack = adapter.MinimumDistortion(estimator, NORMS[norm], targeted=way == "targeted")
    if way == "targeted":
        found = attack.generate(x, digits.targets.numpy())
        assert (estimator.predict(found).argmax(axis=1) == digits.targets.numpy()).all()
        classes = {"targets": digits.targets}
    else:
        found = attack.generate(x, np.eye(10)[digits.labels])
        assert (estimator.predict(found).argmax(axis=1) != digits.labels.numpy()).all()
        np.testing.assert_array_equal(attack.generate(x), found)
        classes = {"labels": digits.labels}
    ours = advcore.minimize_distortion(digits.model, x, norm=norm, **classes)
    np.testing.assert_allclose(distance(found, x, NORMS[norm]), ours.distortion, rtol=1e-5)
    assert attack.last_result.engine["path"] == "native"


@pytest.mark.parametrize("norm", NORMS)
def test_any_classifier_runs_by_its_class_gradients(digits: Any, norm: str) -> None:
    smoothing = preprocessor.SpatialSmoothing(window_size=1, channels_first=True)
    estimator, x = classifier(digits.model, preprocessing_defences=smoothing), digits.x.numpy()
    attack = adapter.MinimumDistortion(estimator, norm)
    found = attack.generate(x)
    assert attack.last_result.engine["path"] == "numpy"
    assert (estimator.predict(found).argmax(axis=1) != digits.labels.numpy()).all()
    ours = advcore.minimize_distortion(digits.model, x, norm=norm)
    np.testing.assert_allclose(
        distance(found, x, NORMS[norm]).mean(), ours.distortion.mean(), rtol=0.1
    )


@pytest.mark.parametrize("classes", [2, 3])  # ART returns gradients of p, and of log p
def test_a_classifier_of_scikit_learn(classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.random((60, 5), dtype=np.float32)
    y = x[:, :classes].argmax(axis=1)
    estimator = classification.SklearnClassifier(
        linear_model.LogisticRegression(C=100).fit(x, y), clip_values=(0, 1)
    )
    before = estimator.predict(x).argmax(axis=1)
    attack = adapter.MinimumDistortion(estimator)
    found = attack.generate(x)
    assert (estimator.predict(found).argmax(axis=1) != before).all()
    weight, bias = estimator.model.coef_, estimator.model.intercept_
    if classes == 2:
        weight, bias = np.vstack([-weight, weight]) / 2, np.append(-bias, bias) / 2
    logits = x @ weight.T + bias
    rows = np.arange(len(x))
    gaps = logits[rows, before][:, None] - logits
    lengths = np.linalg.norm(weight[before][:, None] - weight[None], axis=2)
    nearest = np.where(gaps > 0, gaps / np.maximum(lengths, 1e-9), np.inf).min(axis=1)
    assert (attack.last_result.distortion >= 0.999 * nearest).all()  # equal without the bounds
    assert np.median(attack.last_result.distortion / nearest) < 1.02


def test_preprocessing_is_the_classifiers(digits: Any) -> None:
    class Normalised(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return digits.model(0.3 * x + 0.1)

    estimator = classifier(Normalised(), preprocessing=(0.1, 0.3))
    attack = adapter.MinimumDistortion(estimator)
    found = attack.generate(digits.x.numpy())
    assert (estimator.predict(found).argmax(axis=1) != digits.labels.numpy()).all()
    ours = advcore.minimize_distortion(digits.model, digits.x, labels=digits.labels)
    np.testing.assert_allclose(attack.last_result.distortion, ours.distortion, rtol=0.01)


def test_a_mask_and_arrays_of_clip_values(digits: Any) -> None:
    x = digits.x.numpy()
    mask = np.zeros((28, 28), bool)
    mask[:, :14] = True
    found = adapter.MinimumDistortion(classifier(digits.model)).generate(x, mask=mask)
    np.testing.assert_array_equal(found[..., 14:], x[..., 14:])
    assert (digits.model(torch.from_numpy(found)).argmax(dim=1) != digits.labels).all()
    high = np.maximum(x.max(axis=0), 0.5)
    estimator = classifier(digits.model, clip_values=(np.zeros_like(high), high))
    found = adapter.MinimumDistortion(estimator).generate(x)
    assert (found <= high).all()
    free = classifier(digits.model, clip_values=None)
    unbounded = adapter.MinimumDistortion(free)
    bounded = adapter.MinimumDistortion(classifier(digits.model))
    assert unbounded.generate(x).min() < 0
    bounded.generate(x)
    assert unbounded.last_result.distortion.mean() < bounded.last_result.distortion.mean()


def test_the_model_is_in_eval_mode_as_in_predict(digits: Any) -> None:
    estimator = classifier(digits.model.train())
    assert adapter.MinimumDistortion(estimator).generate(digits.x.numpy()).dtype == np.float32
    doubles = adapter.MinimumDistortion(estimator).generate(digits.x.double().numpy())
    assert doubles.dtype == np.float64


def test_bad_input_is_named(digits: Any) -> None:
    estimator, x = classifier(digits.model), digits.x.numpy()
    attack = adapter.MinimumDistortion(estimator, options={"max_queries": 100})
    assert "max_queries" in repr(attack)
    attack.set_params(effort="fast")
    with pytest.raises(ValueError, match="effort must be"):
        attack.set_params(effort="none")
    with pytest.raises(ValueError, match="y must be the classes to reach"):
        adapter.MinimumDistortion(estimator, targeted=True).generate(x)
    with pytest.raises(TypeError, match="bounds is no option of this attack"):
        adapter.MinimumDistortion(estimator, options={"bounds": (0, 1)})
    with pytest.raises(ValueError, match=r"mask must broadcast to x of shape \(8, 1, 28, 28\)"):
        attack.generate(x, mask=np.ones((3, 3)))
    with pytest.raises(TypeError, match="generate takes x, y and mask, got masks"):
        attack.generate(x, masks=None)
