"""The module behind a callable: where it is found, where not, and that it has the same logits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.oracles.module_of import module_of

torch = pytest.importorskip("torch")
nn = torch.nn
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).random((5, 3, 6, 6), dtype=np.float32)


def only_calls(net: Any) -> Any:
    def call(x: Any) -> Any:
        return net(x)

    return call


FOUND = {
    "itself": lambda net: net,
    "forward": lambda net: net.forward,
    "call": lambda net: net.__call__,
    "partial": lambda net: functools.partial(net),
    "lambda": lambda net: lambda x: net(x),
    "function": only_calls,
    "partial of a method": lambda net: functools.partial(net.forward),
    "DataParallel without devices": lambda net: nn.DataParallel(net).eval(),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_module_is_found(name: str, net: Any, images: Any) -> None:
    model = FOUND[name](net)
    found = module_of(model)
    assert found.module is found.inner is net
    assert bool(found.note) == (name != "itself")
    result = advcore.minimize_distortion(model, images, effort="fast")
    assert result.engine["path"] == "native"
    assert found.note in result.engine["reason"]
    same = advcore.minimize_distortion(net, images, effort="fast")
    np.testing.assert_array_equal(result.distortion, same.distortion)


class Doubled:
    def __init__(self, net: Any) -> None:
        self.net = net

    def logits(self, x: Any) -> Any:
        return 2 * self.net(x)


class WithMethod(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def doubled(self, x: Any) -> Any:
        return 2 * self.net(x)


def hooked(net: Any) -> Any:
    net.register_forward_hook(lambda module, args, output: 2 * output)
    return net.forward


NOT_FOUND = {
    "more than a call": (lambda net: lambda x: 2 * net(x), "more than call"),
    "a default": (lambda net: lambda x, scale=2: net(x), "more than call"),
    "a call with two arguments": (lambda net: lambda x: net(x, x), "more than call"),
    "another value": (lambda net: lambda x: net(net), "more than call"),
    "arguments": (lambda net: functools.partial(net, 1), "partial with arguments"),
    "method of an object": (lambda net: Doubled(net).logits, "logits of a Doubled"),
    "method of a module": (lambda net: WithMethod(net).doubled, "the method doubled"),
    "forward of a module with hooks": (hooked, "hooks"),
    "object": (lambda net: Doubled(net), "not a module"),
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_may_do_more_is_not_taken_for_the_module(name: str, net: Any) -> None:
    wrap, text = NOT_FOUND[name]
    found = module_of(wrap(net))
    assert found.module is found.inner is None
    assert text in found.note


def test_a_variable_that_is_not_set_yet(net: Any) -> None:
    function = lambda x: later(x)  # noqa: E731
    assert module_of(function).module is None
    later = net
    assert module_of(function).module is net


def test_a_compiled_module_is_searched_as_the_module(net: Any) -> None:
    compiled = torch.compile(net, backend="eager")
    assert module_of(compiled).module is net
    assert module_of(torch.compile(lambda x: net(x), backend="eager")).module is net


def test_the_reason_names_what_a_callable_does(net: Any, images: Any) -> None:
    result = advcore.minimize_distortion(lambda x: 2 * net(x), images, effort="fast")
    assert result.engine["reason"] == module_of(lambda x: 2 * net(x)).note


def test_a_module_with_other_logits_is_not_used(
    net: Any, images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callable is what counts, whatever was found in it."""
    from advcore.oracles.module_of import ModuleOf
    from advcore.solve import choose

    monkeypatch.setattr(choose, "module_of", lambda model: ModuleOf(net, net, "a mistake"))
    result = advcore.minimize_distortion(lambda x: 3 * net(x), images, effort="fast")
    assert result.engine["path"] == "torch"
    assert "other logits" in result.engine["reason"]


PREPROCESSING: dict[str, dict[str, Any]] = {
    "none": {},
    "channels": {"mean": MEAN, "std": STD, "axis": -3},
    "mean": {"mean": MEAN, "axis": -3},
    "flipped": {"mean": MEAN, "std": STD, "axis": -3, "flip_axis": -3},
}


@pytest.mark.parametrize("name", PREPROCESSING)
@pytest.mark.parametrize("bounds", ["own", "others", "wrapped"])
def test_foolbox(name: str, bounds: str, net: Any, images: Any) -> None:
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(net, (0, 1), "cpu", PREPROCESSING[name])
    high = 1.0
    if bounds != "own":
        high = 255.0
        model = model.transform_bounds(
            (0, 255), **({"wrapper": True} if bounds == "wrapped" else {})
        )
        images = 255 * images
    found = module_of(model)
    assert found.inner is net
    assert "Foolbox" in found.note
    x = torch.from_numpy(images)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), model(x))
    result = advcore.minimize_distortion(model, images, bounds=(0, high), effort="fast")
    by_torch = advcore.minimize_distortion(
        lambda x: 1 * model(x), images, bounds=(0, high), effort="fast"
    )
    np.testing.assert_allclose(result.distortion, by_torch.distortion, rtol=1e-2)


def test_a_foolbox_model_of_other_precision(net: Any, images: Any) -> None:
    foolbox = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(net.double(), (0, 1), "cpu")
    assert advcore.minimize_distortion(model, images, effort="fast").success.all()


def art_classifier(net: Any, **options: Any) -> Any:
    pytest.importorskip("art")
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        net, nn.CrossEntropyLoss(), (3, 6, 6), 4, clip_values=(0, 1), device_type="cpu", **options
    )


@pytest.mark.parametrize(
    "preprocessing", [(0.0, 1.0), (0.5, 0.25), (np.float32(MEAN), np.float32(STD))]
)
def test_art(preprocessing: Any, net: Any, images: Any) -> None:
    classifier = art_classifier(net, preprocessing=preprocessing)
    found = module_of(classifier)
    assert found.inner is net
    with torch.no_grad():
        logits = found.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, classifier.predict(images), rtol=1e-4, atol=1e-5)
    result = advcore.minimize_distortion(classifier, images, effort="fast")
    assert result.engine["path"] == "native"
    predicted = classifier.predict(result.adversarial).argmax(1)
    assert (predicted != classifier.predict(images).argmax(1)).all()


def test_art_with_a_defence(net: Any, images: Any) -> None:
    pytest.importorskip("art")
    from art.defences.preprocessor import SpatialSmoothing

    classifier = art_classifier(net, preprocessing_defences=SpatialSmoothing())
    with pytest.raises(TypeError, match="SpatialSmoothing"):
        advcore.minimize_distortion(classifier, images)


def test_art_whose_predictions_differ(net: Any, images: Any) -> None:
    classifier = art_classifier(net)
    classifier.predict = lambda x: 2 * type(classifier).predict(classifier, x)
    with pytest.raises(ValueError, match="pass the module"):
        advcore.minimize_distortion(classifier, images)
