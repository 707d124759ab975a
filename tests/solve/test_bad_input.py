"""Bad arguments: each error names the argument, what was expected and what came."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from support.networks import make_network
from support.small_models import INF, NAN, K, N, affine, images, refuse

import advcore


def spoilt(value: float, row: int = 2) -> Any:
    x = images()
    x[row, 3] = value
    return x


class Items:
    """Has a length and items, as a data set of torch, but is no array."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return images()[index]


# --- images


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("digits", TypeError, "images must be an array or tensor of numbers, got dtype <U6"),
        (None, TypeError, "images must be an array or tensor of numbers, got NoneType"),
        ([None], TypeError, "images must be an array or tensor of numbers, got dtype object"),
        (Items(), TypeError, "images must be an array or tensor of numbers, got Items"),
        ([[1, [2]]], TypeError, "images must be an array or tensor of numbers, got"),
        (images() > 0.5, TypeError, "images must be an array .* of numbers, got dtype bool"),
        (images() + 0j, TypeError, "images must be an array .* of numbers, got dtype complex64"),
        (0.5, ValueError, r"images must have shape \(N, \.\.\.\) .*, got \(\)"),
        (images()[0], ValueError, r"images must have shape \(N, \.\.\.\) .*, got \(6,\)"),
        (np.zeros((4, 0), np.float32), ValueError, r"images must have shape .*, got \(4, 0\)"),
        (images(n=7), ValueError, r"images must have 6 values each .*, got shape \(7,\)"),
        (spoilt(NAN), ValueError, r"finite, got NaN or infinity in 1 of 4 \(first: images\[2\]\)"),
        (spoilt(INF), ValueError, r"finite, got NaN or infinity in 1 of 4 \(first: images\[2\]\)"),
        (spoilt(-INF, 0), ValueError, r"images must be finite, got .* \(first: images\[0\]\)"),
        (spoilt(1.5), ValueError, r"inside bounds \[0, 1\], got 1 of 4 .* to 1\.5\)$"),
        (spoilt(-1e-3), ValueError, r"inside bounds \[0, 1\], got 1 of 4 .* from -0\.001"),
        (6 * images() - 3, ValueError, r"inside bounds \[0, 1\], got 4 of 4 .* to [\d.]+\)$"),
        (np.full((2, N), 2), ValueError, r"images must lie inside bounds \[0, 1\], got 2 of 2"),
        (
            np.arange(2 * N).reshape(2, N) * 255 // 11,
            ValueError,
            r"images must lie inside bounds \[0, 1\], got 2 of 2 images outside \(values from 0 to "
            r"255\): divide by 255, or pass bounds=\(0, 255\) if the model takes them so$",
        ),
    ],
)
def test_images(value: Any, error: type[Exception], text: str) -> None:
    refuse(error, text, affine(), value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 0), (np.zeros(N), np.ones(N))])
def test_rounding_outside_is_relative_to_the_box(dtype: Any, bounds: Any) -> None:
    """Zero has no neighbourhood of its own: what undoing a normalisation leaves is let pass."""
    low, high = (np.broadcast_to(bound, N) for bound in bounds)
    x = (low + images() * (high - low)).astype(dtype)
    eps = np.finfo(dtype).eps
    x[0], x[1] = low - eps / 4, high + 2 * eps
    x[2, 0] = -eps / 2 if high[0] == 1 else eps / 2
    result = advcore.minimize_distortion(affine(), x, bounds=bounds)
    assert (result.adversarial >= low).all()
    assert (result.adversarial <= high).all()
    x[0] = low - 40 * eps
    refuse(ValueError, "images must lie inside bounds.*, got 1 of 4", affine(), x, bounds=bounds)


def test_images_of_float64_just_outside() -> None:
    """Bounds hold for the images as given, before they are rounded to float32."""
    x = images().astype(np.float64)
    x[0, 0] = 1 + 1e-12
    refuse(ValueError, r"images must lie inside bounds \[0, 1\], got 1 of 4", affine(), x)


# --- bounds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, r"bounds must be a pair \(lower, upper\), got 0\.5"),
        (None, r"bounds must be a pair \(lower, upper\), got None"),
        ((0, 0.5, 1), r"bounds must be a pair \(lower, upper\), got \(0, 0\.5, 1\)"),
        ((1.0, 0.0), "bounds must have lower <= upper"),
        ((np.r_[np.zeros(5), 1.0], np.r_[np.ones(5), 0.5]), "bounds must have lower <= upper"),
        ((NAN, 1.0), "lower bound must not be NaN"),
        ((0.0, NAN), "upper bound must not be NaN"),
        ((np.zeros(5), 1.0), r"lower bound must be .* shape \(4, 6\), got shape \(5,\)"),
        ((0.0, np.ones((3, 6))), r"upper bound must be .* shape \(4, 6\), got shape \(3, 6\)"),
        ((0.25, 1.0), r"images must lie inside bounds \[0\.25, 1\], got"),
        ((np.full(N, 0.25), 1.0), "images must lie inside bounds, got"),
        (iter((0.0, 1.0, 2.0)), r"bounds must be a pair \(lower, upper\), got <tuple_iterator"),
        (np.zeros((3, N)), r"bounds must be a pair .*, got an array of shape \(3, 6\)$"),
    ],
)
def test_bounds(value: Any, text: str) -> None:
    refuse(ValueError, text, affine(), images(), bounds=value)


def test_bounds_that_are_no_numbers() -> None:
    refuse(TypeError, "lower bound must be an array", affine(), images(), bounds=("a", "b"))


def test_bounds_of_an_iterator() -> None:
    wanted = advcore.minimize_distortion(affine(), images(), 1, levels=256)
    found = advcore.minimize_distortion(affine(), images(), 1, levels=256, bounds=iter((0, 1)))
    np.testing.assert_array_equal(found.adversarial, wanted.adversarial)


def test_images_beyond_float32() -> None:
    large = np.zeros((3, N))
    large[1] = 1e39
    text = "images must be finite in float32, got larger values in 1 of 3"
    refuse(ValueError, text, affine(), large, bounds=(-INF, INF))
    refuse(ValueError, text, affine(), large, bounds=(-1e300, 1e300))


# --- targets and labels


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ([0, 1, 2, 3], ValueError, r"must be in \[0, 3\), got {}\[3\] = 3"),
        ([0, -1, 2, 1], ValueError, r"must be in \[0, 3\), got {}\[1\] = -1"),
        (np.array([0, 2**40, 0, 0]), ValueError, r"must be in \[0, 3\), got {}\[1\] = 1099511"),
        (
            np.float32([0, 1, 2, 0]),
            TypeError,
            r"must be integers, got float32: pass {}\.astype\(int\)$",
        ),
        (np.eye(4, 3), ValueError, r"must have .*, got \(4, 3\); one-hot\? pass argmax\(1\)$"),
        ([True, False, True, True], TypeError, "must be an array .* of numbers, got dtype bool"),
        (["a", "b", "c", "d"], TypeError, "must be an array or tensor of numbers"),
        ([0, 1, 2], ValueError, r"must have shape \(4,\), one for each image, got \(3,\)"),
        ([[0], [1], [2]], ValueError, r"must have shape \(4,\), .*, got \(3, 1\)$"),
        (3, ValueError, r"must be in \[0, 3\), got {}\[0\] = 3"),
        (1.0, TypeError, "must be integers, got float64"),
    ],
)
def test_classes(name: str, value: Any, error: type[Exception], text: str) -> None:
    refuse(error, f"^{name} {text.format(name)}", affine(), images(), **{name: value})


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_a_single_class_is_that_of_all_images(name: str) -> None:
    one: Any = {name: 1}
    every: Any = {name: [1] * 4}
    result = advcore.minimize_distortion(affine(), images(), **one)
    expected = advcore.minimize_distortion(affine(), images(), **every)
    np.testing.assert_array_equal(result.adversarial, expected.adversarial)
    np.testing.assert_array_equal(result.target, expected.target)


def test_targets_that_are_the_predictions_are_named() -> None:
    network, x = affine(), images(20)
    seen = network.forward(x).argmax(1)
    seen[:3] = (seen[:3] + 1) % K
    text = "targets equals the model's own prediction for 17 of 20 images; .* pass them as labels="
    with pytest.warns(UserWarning, match=text) as caught:
        advcore.minimize_distortion(network, x, seen)
    assert [warning.filename for warning in caught] == [__file__]
    advcore.minimize_distortion(network, x, labels=seen)
    with pytest.warns(UserWarning, match="for 5 of 5 images"):
        advcore.minimize_distortion(network, x[-5:], seen[-5:])
    advcore.minimize_distortion(network, x[-4:], seen[-4:])
    advcore.minimize_distortion(network, x[:9], seen[:9])


def test_labels_are_checked_beside_targets() -> None:
    options: Any = {"targets": [0, 1, 2, 0], "labels": [0, 1, 2, 7]}
    refuse(ValueError, r"labels must be in \[0, 3\)", affine(), images(), **options)


def test_targets_decide_where_both_are_given() -> None:
    x, network = images(20), affine()
    targets = (network.forward(x).argmax(1) + 1) % K
    alone = advcore.minimize_distortion(network, x, targets)
    both = advcore.minimize_distortion(network, x, targets, labels=(targets + 1) % K)
    np.testing.assert_array_equal(both.adversarial, alone.adversarial)
    np.testing.assert_array_equal(both.target, targets)


def test_columns_of_classes_are_classes() -> None:
    x, kinds = images(), np.array([0, 1, 2, 1])
    for name in ("targets", "labels"):
        options: Any = {name: kinds}
        flat = advcore.minimize_distortion(affine(), x, **options)
        column = advcore.minimize_distortion(affine(), x, **{name: kinds[:, None]})
        np.testing.assert_array_equal(column.adversarial, flat.adversarial)
    a, b = (
        advcore.minimize_distortion(affine(), x, kinds, starts=(images(20), pool_kinds))
        for pool_kinds in (np.arange(20) % 3, np.arange(20)[:, None] % 3)
    )
    np.testing.assert_array_equal(a.adversarial, b.adversarial)
    several = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    text = r"got \(4, 3\); an image of several classes, as in multi-label problems, is not"
    refuse(ValueError, text, affine(), x, labels=several)
    refuse(ValueError, "values of a regression, probabil", affine(), x, labels=several * 0.3)
    refuse(TypeError, "not values of a regression", affine(), x, labels=kinds + 0.5)
    text = r"got labels\[0\] = -1; a single output is the logit of class 1 of two"
    refuse(ValueError, text, affine(classes=2), x, labels=[-1, 1, 1, -1])
    refuse(ValueError, r"one for each image, got \(3, 1\)$", affine(), x, kinds[:3, None])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_integers_of_any_kind(dtype: Any) -> None:
    result = advcore.minimize_distortion(affine(), images(), np.array([0, 1, 2, 1], dtype))
    assert result.target.dtype == np.int64
    assert result.target.tolist() == [0, 1, 2, 1]


# --- options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of margin, cross_entropy, got 'hinge'"),
        ({"penalty": "linf"}, ValueError, "penalty must be one of l2, l2_unsquared, got 'linf'"),
        ({"penalty": ["l2"]}, ValueError, "penalty must be one of l2, l2_unsquared, got"),
        ({"effort": "max"}, ValueError, "effort must be one of fast, default, thorough, exh"),
        ({"c_search": 1}, ValueError, "c_search must be one of fused, bisection, got 1"),
        ({"c_init": "0.1"}, TypeError, "c_init must be a number, got str"),
        ({"c_init": 0.0}, ValueError, "c_init must be a finite number >= 1e-30.* got 0.0"),
        ({"c_init": -1}, ValueError, "c_init must be a finite number >= 1e-30.* got -1"),
        ({"c_init": 1e-31}, ValueError, "c_init must be .* >= 1e-30 .*, got 1e-31"),
        ({"c_init": np.array([1.0, 2.0])}, TypeError, "c_init must be a number, got ndarray"),
        ({"loss": np.array(["margin"])}, ValueError, r"loss must be one of .*, got array"),
        ({"confidence": -1e-9}, ValueError, "confidence must be a finite number >= 0.* got -1e-09"),
        ({"confidence": INF}, ValueError, "confidence must be a finite number >= 0.* got inf"),
        ({"confidence": NAN}, ValueError, "confidence must be a finite number >= 0.* got nan"),
        ({"confidence": "high"}, TypeError, "confidence must be a number, got str"),
        ({"confidence": True}, TypeError, "confidence must be a number, got bool"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a finite number > 0 and <= 0.5, got 0"),
        ({"tolerance": 0.6}, ValueError, "tolerance must be a finite number > 0 and <= 0.5, got 0"),
        ({"history": 2}, ValueError, r"history must be in \[3, 8\], got 2"),
        ({"history": 9}, ValueError, r"history must be in \[3, 8\], got 9"),
        ({"history": 5.0}, TypeError, "history must be an integer, got float"),
        ({"max_evaluations": 0}, ValueError, r"max_evaluations must be in \[1, \d+\], got 0"),
        ({"max_evaluations": 2.5}, TypeError, "max_evaluations must be an integer, got float"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, \d+\], got -1"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got str"),
        ({"batch_size": 0}, ValueError, r"batch_size must be in \[1, \d+\], got 0"),
        ({"threads": 0}, ValueError, r"threads must be in \[1, 1024\], got 0"),
        ({"threads": 1.0}, TypeError, "threads must be an integer, got float"),
        ({"time_limit": 0}, ValueError, "time_limit must be a finite number > 0, got 0"),
        ({"time_limit": "1s"}, TypeError, "time_limit must be a number, got str"),
        ({"callback": 3}, TypeError, "callback must be callable, got int"),
        ({"levels": 1}, ValueError, r"levels must be in \[2, 65536\], got 1"),
        ({"levels": 256.0}, TypeError, "levels must be an integer, got float"),
        ({"levels": 4, "bounds": (-INF, 1)}, ValueError, "two finite numbers .* -inf"),
        (
            {"levels": 4, "bounds": (np.zeros(N), 1)},
            ValueError,
            r"bounds must be two finite .*, got an array of shape \(6,\)$",
        ),
        ({"device": "mps"}, ValueError, "device must be cpu or cuda for a native network, got mps"),
        ({"confidance": 1.0}, TypeError, "unexpected keyword argument 'confidance'"),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    refuse(error, text, affine(), images(), **options)


def test_third_positional_argument_is_the_last() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        advcore.minimize_distortion(affine(), images(), None, [0, 1, 2, 0])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("starts", "error", "text"),
    [
        (images(3), ValueError, r"starts must have the images' shape \(4, 6\), got \(3, 6\)"),
        (images(n=5), ValueError, r"starts must have the images' shape \(4, 6\), got \(4, 5\)"),
        (np.zeros((4, 2, 5)), ValueError, r"the images' shape .*, got \(4, 2, 5\)"),
        (spoilt(NAN), ValueError, "starts must be finite in float32, got NaN"),
        ("x", TypeError, "starts must be an array or tensor of numbers"),
        ((images(), [0, 1, 2, 0], 1), ValueError, r"starts must be .* \(images, classes\), got 3"),
        ((images(), [0, 1, 2]), ValueError, r"starts must be images .* \(4, 6\) and \(3,\) int64"),
        ((images(n=5), [0] * 4), ValueError, r"starts must be images of shape \(M, 6\) .*\(4, 5\)"),
        ((images(), [0.0] * 4), ValueError, r"integer classes, got \(4, 6\) and \(4,\) float64"),
        ((spoilt(INF), [0] * 4), ValueError, "starts must be finite in float32, got NaN"),
    ],
)  # fmt: skip
def test_starts(starts: Any, error: type[Exception], text: str) -> None:
    refuse(error, text, affine(), images(), [0] * 4, starts=starts)


def test_images_that_were_normalised_are_named() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 12, 12))
    images = ((pictures / 255 - 0.45) / 0.22).astype(np.float32)
    network = make_network((432, 8, 3), "tanh")
    remedy = r"images look normalised.*advcore\.models\.preprocess"
    with pytest.raises(ValueError, match=remedy):
        advcore.minimize_distortion(network, images)
    with pytest.warns(UserWarning, match=remedy) as caught:
        found = advcore.minimize_distortion(network, images, bounds=(-3, 3))
    assert found.success.all()
    assert [warning.filename for warning in caught] == [__file__]
    few = np.random.default_rng(0).normal(size=(3, 3, 12, 12)).clip(-3, 3)  # not 256 values
    assert advcore.minimize_distortion(network, few, bounds=(-3, 3)).success.all()


@pytest.mark.parametrize(
    ("mean", "std"), [(0.1307, 0.3081), (0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]
)
def test_images_of_float32_at_bounds_of_float64(mean: float, std: float) -> None:
    x = (np.tile(np.float32([0, 1, 0.5]), (4, 2)) - np.float32(mean)) / np.float32(std)
    bounds = ((0 - mean) / std, (1 - mean) / std)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # normalised images
        result = advcore.minimize_distortion(affine(), x, bounds=bounds)
    assert result.success.all()
    assert (result.adversarial.astype(np.float64) >= bounds[0]).all()
    assert (result.adversarial.astype(np.float64) <= bounds[1]).all()


def test_no_images_with_bounds_of_each() -> None:
    none = images()[:0]
    assert len(advcore.minimize_distortion(affine(), none, bounds=(none, none)).success) == 0
