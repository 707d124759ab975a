"""Bad input: misuse raises and names argument, expectation and what came; trouble is a status."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Layer, ModelError, Network, Status

N, K = 6, 3
INF, NAN = float("inf"), float("nan")


def affine(classes: int = K, n: int = N, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, n)).astype(np.float32)
    bias = -weight.sum(axis=1) / 2 + 0.3 * rng.standard_normal(classes).astype(np.float32)
    return Network([Layer(weight, bias)])


def constant(*logits: float, n: int = N) -> Network:
    return Network([Layer(np.zeros((len(logits), n), np.float32), np.array(logits, np.float32))])


def images(rows: int = 4, n: int = N) -> Any:
    return np.random.default_rng(1).random((rows, n), dtype=np.float32)


def names(result: Any) -> list[str]:
    return [Status(int(code)).name for code in result.status]


def spoilt(value: float, row: int = 2) -> Any:
    x = images()
    x[row, 3] = value
    return x


class Model:
    """A NumPy model made of two functions; the default is affine."""

    def __init__(self, forward: Any = None, backward: Any = None, classes: int = K) -> None:
        self.a = np.random.default_rng(0).standard_normal((classes, N))
        self._forward, self._backward = forward, backward

    def forward(self, x: Any) -> Any:
        flat = x.reshape(len(x), -1).astype(np.float64)
        return self._forward(flat) if self._forward else (flat - 0.5) @ self.a.T

    def backward(self, dlogits: Any) -> Any:
        return self._backward(dlogits) if self._backward else dlogits @ self.a


def refuse(error: type[Exception], text: str, *args: Any, **options: Any) -> None:
    with pytest.raises(error, match=text):
        advcore.minimize_distortion(*args, **options)


# --- images


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("digits", TypeError, "images must be an array or tensor of numbers, got dtype <U6"),
        (None, TypeError, "images must be an array or tensor of numbers, got dtype object"),
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
        (spoilt(1.5), ValueError, r"images must lie inside bounds, got 1 of 4 .* to 1\.5\)"),
        (spoilt(-1e-3), ValueError, r"images must lie inside bounds, got 1 of 4 .* from -0\.001"),
        (255 * images(), ValueError, "images must lie inside bounds, got 4 of 4 images outside"),
        (np.full((2, N), 2), ValueError, "images must lie inside bounds, got 2 of 2"),
    ],
)
def test_images(value: Any, error: type[Exception], text: str) -> None:
    refuse(error, text, affine(), value)


def test_images_of_float64_just_outside() -> None:
    """Bounds hold for the images as given, before they are rounded to float32."""
    x = images().astype(np.float64)
    x[0, 0] = 1 + 1e-12
    refuse(ValueError, "images must lie inside bounds, got 1 of 4", affine(), x)


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
        ((0.25, 1.0), "images must lie inside bounds"),
    ],
)
def test_bounds(value: Any, text: str) -> None:
    refuse(ValueError, text, affine(), images(), bounds=value)


def test_bounds_that_are_no_numbers() -> None:
    refuse(TypeError, "lower bound must be an array", affine(), images(), bounds=("a", "b"))


# --- targets and labels


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ([0, 1, 2, 3], ValueError, r"must be in \[0, 3\), got {}\[3\] = 3"),
        ([0, -1, 2, 1], ValueError, r"must be in \[0, 3\), got {}\[1\] = -1"),
        (np.array([0, 2**40, 0, 0]), ValueError, r"must be in \[0, 3\), got {}\[1\] = 1099511"),
        ([0.0, 1.0, 2.0, 0.0], TypeError, "must be integers, got float64"),
        ([True, False, True, True], TypeError, "must be an array .* of numbers, got dtype bool"),
        (["a", "b", "c", "d"], TypeError, "must be an array or tensor of numbers"),
        ([0, 1, 2], ValueError, r"must have shape \(4,\), one for each image, got \(3,\)"),
        ([[0], [1], [2], [0]], ValueError, r"must have shape \(4,\), .*, got \(4, 1\)"),
        (1, ValueError, r"must have shape \(4,\), .*, got \(\)"),
    ],
)
def test_classes(name: str, value: Any, error: type[Exception], text: str) -> None:
    refuse(error, f"^{name} {text.format(name)}", affine(), images(), **{name: value})


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
        ({"norm": "linf"}, ValueError, "norm must be one of l2, l2_unsquared, got 'linf'"),
        ({"norm": ["l2"]}, ValueError, "norm must be one of l2, l2_unsquared, got"),
        ({"effort": "max"}, ValueError, "effort must be one of fast, default, thorough, got 'max'"),
        ({"c_search": 1}, ValueError, "c_search must be one of fused, bisection, got 1"),
        ({"c_init": "0.1"}, TypeError, "c_init must be a number, got str"),
        ({"c_init": 0.0}, ValueError, "c_init must be a finite number > 0, got 0.0"),
        ({"c_init": -1}, ValueError, "c_init must be a finite number > 0, got -1"),
        ({"confidence": -1e-9}, ValueError, "confidence must be a finite number >= 0, got -1e-09"),
        ({"confidence": INF}, ValueError, "confidence must be a finite number >= 0, got inf"),
        ({"confidence": NAN}, ValueError, "confidence must be a finite number >= 0, got nan"),
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
        ({"levels": 4, "bounds": (-INF, 1)}, ValueError, "bounds must be two finite numbers .* -inf"),
        ({"levels": 4, "bounds": (np.zeros(N), 1)}, ValueError, "bounds must be two finite numbers"),
        ({"device": "cuda"}, ValueError, "device must be cpu for a native network, got cuda"),
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
        (np.zeros((4, 2, 5)), ValueError, r"starts must have the images' shape .*, got \(4, 2, 5\)"),
        (spoilt(NAN), ValueError, "starts must be finite, got NaN or infinity"),
        ("x", TypeError, "starts must be an array or tensor of numbers"),
        ((images(), [0, 1, 2, 0], 1), ValueError, r"starts must be .* \(images, classes\), got 3"),
        ((images(), [0, 1, 2]), ValueError, r"starts must be images .* \(4, 6\) and \(3,\) int64"),
        ((images(n=5), [0] * 4), ValueError, r"starts must be images of shape \(M, 6\) .*\(4, 5\)"),
        ((images(), [0.0] * 4), ValueError, r"integer classes, got \(4, 6\) and \(4,\) float64"),
        ((spoilt(INF), [0] * 4), ValueError, "starts must be finite, got NaN or infinity"),
    ],
)  # fmt: skip
def test_starts(starts: Any, error: type[Exception], text: str) -> None:
    refuse(error, text, affine(), images(), [0] * 4, starts=starts)


# --- models


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (3, TypeError, "model must be a torch.nn.Module, .* got int"),
        (None, TypeError, "model must be a torch.nn.Module, .* got NoneType"),
        (object(), TypeError, "model must be a torch.nn.Module, .* got object"),
        (
            Model(lambda x: np.zeros(len(x))),
            ValueError,
            r"model must return logits of shape \(B, K\), here \(4, K\), got \(4,\)",
        ),
        (Model(lambda x: np.zeros((len(x), 2, 2))), ValueError, r"\(B, K\), .* got \(4, 2, 2\)"),
        (Model(lambda x: np.zeros((len(x), 0))), ValueError, r"\(B, K\), .* got \(4, 0\)"),
        (Model(lambda x: np.zeros((3, K))), ValueError, r"\(B, K\), here \(4, K\), got \(3, 3\)"),
        (Model(lambda x: np.zeros((len(x), K), int)), TypeError, "floating-point .* got int64"),
        (Model(lambda x: (np.zeros((len(x), K)), 1)), (TypeError, ValueError), ""),
        (
            Model(lambda x: np.exp(x[:, :3]) / np.exp(x[:, :3]).sum(1, keepdims=True)),
            ValueError,
            "model must return logits, got rows in .* the output of a softmax",
        ),
    ],
)
def test_models(model: Any, error: Any, text: str) -> None:
    refuse(error, text, model, images())


def test_model_that_raises_at_once_raises_its_own_error() -> None:
    def forward(x: Any) -> Any:
        raise ZeroDivisionError("broken model")

    refuse(ZeroDivisionError, "broken model", Model(forward), images())


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_model_that_raises_in_the_middle(part: str) -> None:
    """ModelError with the cause and what was computed."""
    x = images(20)
    model = Model()
    calls = 0

    def failing(value: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise ZeroDivisionError("broken model")
        return value @ model.a if part == "backward" else (value - 0.5) @ model.a.T

    broken = Model(**{part: failing})
    with pytest.raises(ModelError, match="the model raised ZeroDivisionError: broken model") as info:
        advcore.minimize_distortion(broken, x, batch_size=4)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    result = info.value.result
    assert len(result) == 20
    left = np.array(names(result)) == "interrupted"
    assert left.any()
    assert not left.all()
    whole = advcore.minimize_distortion(model, x, batch_size=4)
    np.testing.assert_array_equal(result.adversarial[~left], whole.adversarial[~left])
    np.testing.assert_array_equal(result.success[~left], whole.success[~left])
    np.testing.assert_array_equal(result.adversarial[~result.success], x[~result.success])


def test_backward_of_a_wrong_shape_is_named() -> None:
    model = Model(backward=lambda d: np.zeros((len(d), N + 1)))
    with pytest.raises(ModelError, match=r"model\.backward must return shape \(4, 6\), got"):
        advcore.minimize_distortion(model, images())


def test_number_of_classes_that_changes_is_named() -> None:
    count = 0

    def forward(x: Any) -> Any:
        nonlocal count
        count += 1
        return np.tile(np.arange(3.0 if count < 8 else 4.0), (len(x), 1))

    with pytest.raises((ModelError, ValueError), match="model returned 3 logits before, now 4"):
        advcore.minimize_distortion(Model(forward), images(40), batch_size=1)


# --- trouble of single images is a status


def test_already_adversarial() -> None:
    network, x = affine(), images(8)
    label = network.forward(x).argmax(1)
    for options in ({"targets": label}, {"labels": (label + 1) % K}):
        result = advcore.minimize_distortion(network, x, **options)
        assert names(result) == ["already_adversarial"] * 8
        assert result.success.all()
        assert (result.distortion == 0).all()
        assert (result.rms_distortion == 0).all()
        np.testing.assert_array_equal(result.adversarial, x)
        np.testing.assert_array_equal(result.prediction, label)
        assert (result.margin >= 1e-4).all()
        assert (result.evaluations <= 1).all()


def test_margin_below_the_confidence_is_not_yet_adversarial() -> None:
    network, x = affine(), images(8)
    z = np.sort(network.forward(x), axis=1)
    lead = float((z[:, -1] - z[:, -2]).max())
    targets = network.forward(x).argmax(1)
    result = advcore.minimize_distortion(
        network, x, targets, confidence=lead + 0.1, bounds=(-10, 10)
    )
    assert result.success.all()
    assert (result.distortion > 0).all()
    assert (result.margin >= lead + 0.1).all()


def assert_not_found(result: Any, x: Any) -> None:
    assert set(names(result)) == {"not_found"}
    assert not result.success.any()
    np.testing.assert_array_equal(result.adversarial, x)
    assert np.isinf(result.distortion).all()
    assert np.isinf(result.rms_distortion).all()
    assert np.isfinite(result.margin).all()
    assert (result.margin < 1e-4).all()


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
@pytest.mark.parametrize("logits", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (0.0, 0.0)])
def test_constant_network_has_no_adversarial_image(logits: Any, effort: str) -> None:
    x = images()
    untargeted = advcore.minimize_distortion(constant(*logits), x, effort=effort)
    assert_not_found(untargeted, x)
    np.testing.assert_allclose(untargeted.margin, sorted(logits)[-2] - logits[0])
    targeted = advcore.minimize_distortion(constant(*logits), x, [1] * 4, effort=effort)
    assert_not_found(targeted, x)
    assert targeted.prediction.tolist() == [0] * 4


def test_identical_rows_of_weights() -> None:
    """Two classes that are always equal: neither can win against the other."""
    weight = np.tile(np.random.default_rng(0).standard_normal(N), (2, 1)).astype(np.float32)
    x = images()
    assert_not_found(
        advcore.minimize_distortion(Network([Layer(weight, np.zeros(2, np.float32))]), x, [1] * 4),
        x,
    )


def test_zero_gradient_at_the_image_is_left_at_random() -> None:
    """All units dead at x: relu(10 * (x - 0.9)) - 0.5, flat below 0.9."""
    hidden = Layer(
        (10 * np.eye(N)).astype(np.float32), np.full(N, -9, np.float32), "relu"
    )
    last = Layer(
        np.stack([np.zeros(N), np.ones(N)]).astype(np.float32), np.array([0.5, 0], np.float32)
    )
    network, x = Network([hidden, last]), np.full((4, N), 0.85, np.float32)
    assert (network.forward(x)[:, 1] == 0).all()
    result = advcore.minimize_distortion(network, x, [1] * 4)
    assert result.success.all()
    assert (network.forward(result.adversarial).argmax(1) == 1).all()
    again = advcore.minimize_distortion(network, x, [1] * 4, seed=0)
    np.testing.assert_array_equal(again.adversarial, result.adversarial)


@pytest.mark.parametrize("as_array", [True, False])
def test_pixels_that_cannot_move_do_not(as_array: bool) -> None:
    network, x = affine(), images(40)
    frozen = np.array([True, False, True, False, False, False])
    if as_array:
        lo, hi = np.where(frozen, x, 0).astype(np.float32), np.where(frozen, x, 1)
    else:
        x[:, frozen] = 0.3
        lo, hi = (np.where(frozen, np.float32(0.3), v).astype(np.float32) for v in (0.0, 1.0))
    result = advcore.minimize_distortion(network, x, bounds=(lo, hi))
    np.testing.assert_array_equal(result.adversarial[:, frozen], x[:, frozen])
    assert result.success.sum() >= 30
    moved = np.abs(result.adversarial - x)[result.success][:, ~frozen]
    assert (moved.max(axis=1) > 0).all()


def test_no_pixel_can_move() -> None:
    x = images()
    result = advcore.minimize_distortion(affine(), x, bounds=(x, x))
    assert_not_found(result, x)
    label = affine().forward(x).argmax(1)
    aimed = advcore.minimize_distortion(affine(), x, label, bounds=(x, x))
    assert names(aimed) == ["already_adversarial"] * 4


def test_target_out_of_reach_inside_the_box() -> None:
    network, x = constant(1.0, 0.0), images()
    weight = np.zeros((2, N), np.float32)
    weight[1] = 0.1
    network = Network([Layer(weight, np.array([1, 0], np.float32))])
    result = advcore.minimize_distortion(network, x, [1] * 4)
    assert_not_found(result, x)
    free = advcore.minimize_distortion(network, x, [1] * 4, bounds=(0, 10))
    assert free.success.all()


@pytest.mark.parametrize("targeted", [True, False])
def test_nan_for_some_images(targeted: bool) -> None:
    """Status non_finite for these; the others end as without them."""
    model = Model()

    def forward(x: Any) -> Any:
        z = np.stack([(model.a * (row - 0.5)).sum(1) for row in x])
        z[x[:, 0] == 1] = NAN
        return z

    def backward(dlogits: Any) -> Any:
        return np.stack([(model.a.T * row).sum(1) for row in dlogits])

    x = images(12)
    x[:, 0] = 0
    x[[0, 5, 11], 0] = 1
    lo, hi = np.zeros(N), np.ones(N)
    bounds = (np.where(np.arange(N) == 0, x, lo), np.where(np.arange(N) == 0, x, hi))
    good = x[:, 0] == 0
    picky = Model(forward, backward)
    targets = np.arange(12) % K if targeted else None
    result = advcore.minimize_distortion(picky, x, targets, bounds=bounds)
    alone = advcore.minimize_distortion(
        picky,
        x[good],
        None if targets is None else targets[good],
        bounds=(bounds[0][good], bounds[1][good]),
    )
    assert {n for n, ok in zip(names(result), good, strict=True) if not ok} == {"non_finite"}
    assert "non_finite" not in {n for n, ok in zip(names(result), good, strict=True) if ok}
    for name in ("adversarial", "success", "distortion", "margin", "prediction", "c", "status"):
        np.testing.assert_array_equal(getattr(result, name)[good], getattr(alone, name))
    assert not result.success[~good].any()
    np.testing.assert_array_equal(result.adversarial[~good], x[~good])


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_model_that_returns_nothing_finite(value: float) -> None:
    x = images()
    result = advcore.minimize_distortion(Model(lambda v: np.full((len(v), K), value)), x)
    assert names(result) == ["non_finite"] * 4
    np.testing.assert_array_equal(result.adversarial, x)


def test_gradient_that_is_not_finite() -> None:
    x = images()
    model = Model(backward=lambda d: np.full((len(d), N), NAN))
    result = advcore.minimize_distortion(model, x)
    assert not result.success.any()
    assert set(names(result)) <= {"non_finite", "not_found"}
    np.testing.assert_array_equal(result.adversarial, x)


# --- arrays that are accepted


def variants() -> dict[str, Any]:
    x = (np.rint(8 * images(8)) / 8).astype(np.float32)  # exact in every dtype here
    wide = np.zeros((8, 2 * N), np.float32)
    wide[:, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "float32": x,
        "float64": x.astype(np.float64),
        "float16": x.astype(np.float16),
        "longdouble": x.astype(np.longdouble),
        "big endian": x.astype(">f4"),
        "Fortran": np.asfortranarray(x),
        "strided": wide[:, ::2],
        "reversed": x[::-1].copy()[::-1],
        "read-only": frozen,
        "list": x.tolist(),
    }


@pytest.mark.parametrize("kind", list(variants()))
def test_arrays_of_any_layout(kind: str) -> None:
    network, given = affine(), variants()
    expected = advcore.minimize_distortion(network, given["float32"])
    before = np.array(given[kind], dtype=np.float64)
    result = advcore.minimize_distortion(network, given[kind])
    assert result.adversarial.dtype == np.float32
    assert result.adversarial.flags.c_contiguous
    np.testing.assert_array_equal(result.adversarial, expected.adversarial)
    np.testing.assert_array_equal(np.array(given[kind], dtype=np.float64), before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int8])
def test_integer_images(dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 100, (8, N)).astype(dtype)
    network = affine()
    scaled = Network([Layer(network.layers[0].weight / 100, network.layers[0].bias)])
    result = advcore.minimize_distortion(scaled, x, bounds=(0, 127))
    same = advcore.minimize_distortion(scaled, x.astype(np.float32), bounds=(0, 127))
    np.testing.assert_array_equal(result.adversarial, same.adversarial)
    assert result.success.all()
    refuse(ValueError, "images must lie inside bounds", scaled, x)


def test_float64_images_are_rounded_into_the_bounds() -> None:
    x = np.full((2, N), 0.1)  # float32(0.1) is above 0.1
    result = advcore.minimize_distortion(affine(), x, bounds=(0.0, 0.1))
    assert (result.adversarial.astype(np.float64) <= 0.1).all()


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 2), (6, 1, 1)])
def test_shape_of_an_image_is_kept(shape: tuple[int, ...]) -> None:
    x = images()
    result = advcore.minimize_distortion(affine(), x.reshape(4, *shape))
    assert result.adversarial.shape == (4, *shape)
    flat = advcore.minimize_distortion(affine(), x)
    np.testing.assert_array_equal(result.adversarial.reshape(4, N), flat.adversarial)


@pytest.mark.parametrize("options", [{}, {"targets": []}, {"labels": np.zeros(0, int)}])
@pytest.mark.parametrize("model", [affine(), Model()], ids=["native", "numpy"])
def test_empty_batch(model: Any, options: Any) -> None:
    if options.get("targets") == []:
        options = {"targets": np.zeros(0, np.int64)}
    result = advcore.minimize_distortion(model, np.zeros((0, N), np.float32), **options)
    assert len(result) == 0
    assert result.adversarial.shape == (0, N)
    assert result.success.shape == result.distortion.shape == result.c.shape == (0,)
    assert result.summary().startswith("0 images")
    with_extras = advcore.minimize_distortion(
        model, np.zeros((0, N), np.float32), levels=256, starts=(images(), [0, 1, 2, 0])
    )
    assert len(with_extras) == 0


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (1, 3), (6, 2), (15, 3), (17, 1000), (33, 17)])
def test_batch_of_one_of_any_size(n: int, classes: int) -> None:
    network = affine(classes, n)
    x = images(1, n)
    result = advcore.minimize_distortion(network, x, bounds=(-5, 5))
    assert result.success.tolist() == [True]
    assert network.forward(result.adversarial).argmax() != network.forward(x).argmax()
    assert result.prediction[0] == network.forward(result.adversarial).argmax()


def test_single_logit_in_numpy_is_the_binary_form() -> None:
    one, x = Model(classes=1), images(12)
    z = one.forward(x)[:, 0]
    assert 2 <= (z > 0).sum() <= 10
    result = advcore.minimize_distortion(one, x)
    assert result.success.all()
    np.testing.assert_array_equal(result.prediction, z <= 0)
    exact = (np.abs(z) + 1e-4) / np.linalg.norm(one.a)
    inside = ((result.adversarial > 0) & (result.adversarial < 1)).all(axis=1)
    assert inside.sum() >= 4
    np.testing.assert_allclose(result.distortion[inside], exact[inside], rtol=1e-3)
    aimed = advcore.minimize_distortion(one, x, (z <= 0).astype(int))
    np.testing.assert_allclose(aimed.distortion, result.distortion, rtol=1e-3)
    refuse(ValueError, r"targets must be in \[0, 2\)", one, x, [2] * 12)


# --- torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def module(torch: Any, classes: int = K) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(N, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes)
        ).eval()


def test_training_mode_is_named(torch: Any) -> None:
    model = module(torch)
    model[1].train()
    text = re.escape("model must be in eval mode, 1 is in training mode; call model.eval()")
    refuse(ValueError, text, model, images())
    refuse(ValueError, "the module is in training mode", module(torch).train(), images())


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda t, m: lambda x: (m(x), x), TypeError, r"return a tensor \(B, K\), got tuple"),
        (lambda t, m: lambda x: m(x)[:, 0], ValueError, r"logits of shape \(B, K\), .* got \(4,\)"),
        (lambda t, m: lambda x: m(x)[None], ValueError, r"\(B, K\), .* got \(1, 4, 3\)"),
        (lambda t, m: lambda x: m(x).argmax(1, keepdim=True), TypeError, "got torch.int64"),
        (lambda t, m: lambda x: m(x.detach()).detach(), ValueError, "must be differentiable"),
        (lambda t, m: lambda x: t.softmax(m(x), 1), ValueError, "the output of a softmax"),
        (
            lambda t, m: t.nn.Sequential(m, t.nn.Softmax(1)).eval(),
            ValueError,
            "the output of a softmax; pass the model without it",
        ),
        (lambda t, m: t.nn.Sequential(m, t.nn.Sigmoid()).eval(), None, ""),
    ],
)
def test_torch_outputs(torch: Any, make: Any, error: Any, text: str) -> None:
    model = make(torch, module(torch))
    if error is None:
        assert advcore.minimize_distortion(model, images()).success.all()
    else:
        refuse(error, text, model, images())


def test_wrong_input_size_in_torch(torch: Any) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        advcore.minimize_distortion(module(torch), images(n=7))


@pytest.mark.parametrize("lowered", [True, False])
def test_tensors_come_back_as_tensors(torch: Any, lowered: bool) -> None:
    net, x = module(torch), images(8)
    model = net if lowered else lambda v: net(v)
    expected = advcore.minimize_distortion(model, x)
    assert isinstance(expected.adversarial, np.ndarray)
    for tensor in (
        torch.from_numpy(x.copy()),
        torch.from_numpy(x.copy()).double(),
        torch.from_numpy(x.copy()).requires_grad_(True),
        torch.from_numpy(np.ascontiguousarray(x.T)).T,
    ):
        result = advcore.minimize_distortion(
            model, tensor, labels=torch.from_numpy(expected.prediction * 0)
        )
        assert isinstance(result.adversarial, torch.Tensor)
        assert result.adversarial.dtype == torch.float32
        assert not result.adversarial.requires_grad
        same = advcore.minimize_distortion(model, x, labels=[0] * 8)
        np.testing.assert_array_equal(result.adversarial.numpy(), same.adversarial)
    half = torch.from_numpy(np.rint(8 * x) / 8)
    rounded = advcore.minimize_distortion(model, half.bfloat16())
    exact = advcore.minimize_distortion(model, half)
    np.testing.assert_array_equal(rounded.adversarial.numpy(), exact.adversarial.numpy())


@pytest.mark.parametrize("lowered", [True, False])
def test_single_logit_in_torch_is_the_binary_form(torch: Any, lowered: bool) -> None:
    net, x = module(torch, classes=1), images(12)
    model = net if lowered else lambda v: net(v)
    result = advcore.minimize_distortion(model, x, bounds=(-20, 20))
    assert result.engine["path"] == ("native" if lowered else "torch")
    with torch.no_grad():
        clean = net(torch.from_numpy(x))[:, 0].numpy() > 0
        found = net(torch.from_numpy(result.adversarial))[:, 0].numpy() > 0
    assert result.success.any()
    assert (clean != found)[result.success].all()
    np.testing.assert_array_equal(result.prediction[result.success], found[result.success])


def test_nan_in_torch_for_some_images(torch: Any) -> None:
    net, x = module(torch), images(8)
    x[:, 0] = 0
    x[3, 0] = 1

    def model(v: Any) -> Any:
        return net(v) + torch.where(v[:, :1] == 1, NAN, 0.0)

    frozen = np.arange(N) == 0
    bounds = (np.where(frozen, x, -5), np.where(frozen, x, 5))
    result = advcore.minimize_distortion(model, x, bounds=bounds)
    assert names(result)[3] == "non_finite"
    rest = np.arange(8) != 3
    assert "non_finite" not in np.array(names(result))[rest]
    alone = advcore.minimize_distortion(
        model, x[rest], bounds=(bounds[0][rest], bounds[1][rest])
    )
    np.testing.assert_array_equal(result.success[rest], alone.success)
    np.testing.assert_allclose(result.distortion[rest], alone.distortion, rtol=1e-3)


def test_torch_model_that_raises_in_the_middle(torch: Any) -> None:
    net, calls = module(torch), 0

    def model(v: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise RuntimeError("out of memory")
        return net(v)

    with pytest.raises(ModelError, match="RuntimeError: out of memory") as info:
        advcore.minimize_distortion(model, images(30), batch_size=2)
    assert len(info.value.result) == 30
    assert "interrupted" in names(info.value.result)
    assert isinstance(info.value.result.adversarial, np.ndarray)


def test_devices_that_are_not_there(torch: Any) -> None:
    with pytest.raises((RuntimeError, ValueError), match="device"):
        advcore.minimize_distortion(module(torch), images(), device="nonsense")
    result = advcore.minimize_distortion(module(torch), images(), device="cpu", bounds=(-5, 5))
    assert result.engine["device"] == "cpu"
    assert result.engine["path"] == "native"
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError, ValueError), match=r"(?i)cuda"):
            advcore.minimize_distortion(module(torch), images(), device="cuda")


def test_the_module_is_left_as_it_was(torch: Any) -> None:
    for activation in (torch.nn.Tanh(), torch.nn.ReLU()):
        net = module(torch)
        net[1] = activation.eval()
        net[0].weight.requires_grad_(False)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        for model in (net, lambda v, m=net: m(v)):
            advcore.minimize_distortion(model, images())
        assert not net.training
        assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
        assert all(p.grad is None for p in net.parameters())
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key])
        assert not net[1]._forward_hooks
