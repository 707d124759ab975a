"""Trouble of single images is a status; arrays of every kind are accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.backends import Backend
from support.small_models import INF, NAN, K, Model, N, affine, images, names, refuse

import advcore
from advcore import Layer, Network


def constant(*logits: float, n: int = N) -> Network:
    return Network([Layer(np.zeros((len(logits), n), np.float32), np.array(logits, np.float32))])


# --- trouble of single images is a status


def test_already_adversarial(backend: Backend) -> None:
    network, x = affine(), images(4)
    label = network.forward(x).argmax(1)
    for options in ({"targets": label}, {"labels": (label + 1) % K}):
        result = backend.attack(network, x, **options)
        assert names(result) == ["already_adversarial"] * 4
        assert result.success.all()
        assert (result.distortion == 0).all()
        assert (result.rms_distortion == 0).all()
        np.testing.assert_array_equal(result.adversarial, x)
        np.testing.assert_array_equal(result.prediction, label)
        assert (result.margin >= 1e-4).all()
        assert (result.evaluations <= 1).all()


def test_margin_below_the_confidence_is_not_yet_adversarial(backend: Backend) -> None:
    network, x = affine(), images(8)
    z = np.sort(network.forward(x), axis=1)
    lead = float((z[:, -1] - z[:, -2]).max())
    targets = network.forward(x).argmax(1)
    result = backend.attack(network, x, targets, confidence=lead + 0.1, bounds=(-10, 10))
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
@pytest.mark.parametrize(
    "logits", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (3.0, 2.0, 1.0), (-1.0, -1.0)]
)
def test_constant_network_has_no_adversarial_image(
    backend: Backend, logits: Any, effort: str
) -> None:
    x = images()
    untargeted = backend.attack(constant(*logits), x, effort=effort)
    assert_not_found(untargeted, x)
    np.testing.assert_allclose(untargeted.margin, sorted(logits)[-2] - logits[0])
    targeted = backend.attack(constant(*logits), x, [1] * 4, effort=effort)
    assert_not_found(targeted, x)
    assert targeted.prediction.tolist() == [0] * 4


def test_identical_rows_of_weights(backend: Backend) -> None:
    """Two classes that are always equal: neither can win against the other."""
    weight = np.tile(np.random.default_rng(0).standard_normal(N), (2, 1)).astype(np.float32)
    x = images()
    assert_not_found(
        backend.attack(Network([Layer(weight, np.zeros(2, np.float32))]), x, [1] * 4),
        x,
    )


def test_zero_gradient_at_the_image_is_left_at_random(backend: Backend) -> None:
    """All units are dead at the image: the sum of relu(10 x - 9) is flat below 0.9."""
    n = 40
    hidden = Layer((10 * np.eye(n)).astype(np.float32), np.full(n, -9, np.float32), "relu")
    last = Layer(
        np.stack([np.zeros(n), np.ones(n)]).astype(np.float32), np.array([0.5, 0], np.float32)
    )
    network = Network([hidden, last])
    x = (0.85 + 0.03 * images(8, n)).astype(np.float32)
    network.forward(x)
    assert (network.backward(np.tile(np.array([0, 1], np.float32), (8, 1))) == 0).all()
    result = backend.attack(network, x, [1] * 8)
    assert result.success.all()
    assert (network.forward(result.adversarial).argmax(1) == 1).all()
    again = backend.attack(network, x[::-1], [1] * 8)
    np.testing.assert_array_equal(again.adversarial, result.adversarial[::-1])


@pytest.mark.parametrize("as_array", [True, False])
def test_pixels_that_cannot_move_do_not(backend: Backend, as_array: bool) -> None:
    network, x = affine(), images(40)
    frozen = np.array([True, False, True, False, False, False])
    if as_array:
        lo, hi = np.where(frozen, x, 0).astype(np.float32), np.where(frozen, x, 1)
    else:
        x[:, frozen] = 0.3
        lo, hi = (np.where(frozen, np.float32(0.3), v).astype(np.float32) for v in (0.0, 1.0))
    result = backend.attack(network, x, bounds=(lo, hi))
    np.testing.assert_array_equal(result.adversarial[:, frozen], x[:, frozen])
    assert result.success.sum() >= 30
    moved = np.abs(result.adversarial - x)[result.success][:, ~frozen]
    assert (moved.max(axis=1) > 0).all()


def test_no_pixel_can_move(backend: Backend) -> None:
    x = images()
    result = backend.attack(affine(), x, bounds=(x, x))
    assert_not_found(result, x)
    label = affine().forward(x).argmax(1)
    aimed = backend.attack(affine(), x, label, bounds=(x, x))
    assert names(aimed) == ["already_adversarial"] * 4


def test_target_out_of_reach_inside_the_box(backend: Backend) -> None:
    network, x = constant(1.0, 0.0), images()
    weight = np.zeros((2, N), np.float32)
    weight[1] = 0.1
    network = Network([Layer(weight, np.array([1, 0], np.float32))])
    result = backend.attack(network, x, [1] * 4)
    assert_not_found(result, x)
    free = backend.attack(network, x, [1] * 4, bounds=(0, 10))
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
    failed = ~result.success  # the others: an image of one value has another class
    assert failed.any()
    assert set(np.array(names(result))[failed]) <= {"non_finite", "not_found"}
    np.testing.assert_array_equal(result.adversarial[failed], x[failed])


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
def test_integer_images(backend: Backend, dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 100, (8, N)).astype(dtype)
    network = affine()
    scaled = Network([Layer(network.layers[0].weight / 100, network.layers[0].bias)])
    result = backend.attack(scaled, x, bounds=(0, 127))
    same = backend.attack(scaled, x.astype(np.float32), bounds=(0, 127))
    np.testing.assert_array_equal(result.adversarial, same.adversarial)
    assert result.success.all()
    refuse(ValueError, "images must lie inside bounds", scaled, x)


def test_float64_images_are_rounded_into_the_bounds(backend: Backend) -> None:
    x = np.full((2, N), 0.1)  # float32(0.1) is above 0.1
    result = backend.attack(affine(), x, bounds=(0.0, 0.1))
    assert (result.adversarial.astype(np.float64) <= 0.1).all()


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 2), (6, 1, 1)])
def test_shape_of_an_image_is_kept(backend: Backend, shape: tuple[int, ...]) -> None:
    x = images()
    result = backend.attack(affine(), x.reshape(4, *shape))
    assert result.adversarial.shape == (4, *shape)
    flat = backend.attack(affine(), x)
    np.testing.assert_array_equal(result.adversarial.reshape(4, N), flat.adversarial)


@pytest.mark.parametrize("options", [{}, {"targets": []}, {"labels": np.zeros(0, int)}])
def test_empty_batch(backend: Backend, options: Any) -> None:
    network = affine()
    if options.get("targets") == []:
        options = {"targets": np.zeros(0, np.int64)}
    result = backend.attack(network, np.zeros((0, N), np.float32), **options)
    assert len(result) == 0
    assert result.adversarial.shape == (0, N)
    assert result.success.shape == result.distortion.shape == result.c.shape == (0,)
    assert result.summary().startswith("0 images")
    with_extras = backend.attack(
        network, np.zeros((0, N), np.float32), levels=256, starts=(images(), [0, 1, 2, 0])
    )
    assert len(with_extras) == 0


@pytest.mark.parametrize(("n", "classes"), [(1, 2), (1, 3), (6, 2), (15, 3), (17, 1000), (33, 17)])
def test_batch_of_one_of_any_size(backend: Backend, n: int, classes: int) -> None:
    network = affine(classes, n)
    x = images(1, n)
    result = backend.attack(network, x, bounds=(-5, 5))
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


@pytest.mark.parametrize("confidence", [0.0, 1e-4])
def test_a_tie_is_not_adversarial(backend: Backend, confidence: float) -> None:
    result = backend.attack(
        constant(0.0, 0.0, 0.0), images(), np.array([0, 1, 2, 1]), confidence=confidence
    )
    assert names(result) == ["not_found"] * 4
    assert not result.success.any()


def test_images_that_cannot_move_cost_one_evaluation(backend: Backend) -> None:
    x = images()
    network = affine()
    targets = network.forward(x).argmin(axis=1)
    result = backend.attack(network, x, targets, bounds=(x, x))
    assert names(result) == ["not_found"] * 4
    assert np.isnan(result.c).all()
    assert (result.evaluations == 1).all()
    assert (result.forwards == 0).all()


@pytest.mark.backends("fast")
@pytest.mark.parametrize("activation", ["relu", "tanh", "softplus"])
@pytest.mark.parametrize(
    ("effort", "most"), [("fast", 1300), ("default", 1300), ("thorough", 2000)]
)
def test_what_cannot_be_reached_costs_a_limited_search(
    backend: Backend, activation: str, effort: str, most: int
) -> None:
    """A class that is masked, and a box in which no class changes: 200 to 1,700 evaluations."""
    rng = np.random.default_rng(0)
    first = Layer(
        rng.standard_normal((30, N)).astype(np.float32), np.zeros(30, np.float32), activation
    )
    weight = rng.standard_normal((K, 30)).astype(np.float32)
    weight[0] = 0
    masked = Network([first, Layer(weight, np.float32([-50, 0, 0]))])
    network = Network(
        [first, Layer(rng.standard_normal((K, 30)).astype(np.float32), np.float32([0, 0, 0]))]
    )
    x = images(20)
    box = np.maximum(x - 1e-3, 0), np.minimum(x + 1e-3, 1)
    for found in (
        backend.attack(masked, x, 0, effort=effort),
        backend.attack(network, x, bounds=box, effort=effort),
    ):
        failed = ~found.success
        assert failed.sum() >= 10
        assert found.evaluations[failed].max() <= most


def test_a_search_that_overflows_is_no_failure_of_the_model() -> None:
    """Without bounds, on saturated units, a step may be infinite: of 1,600 images 7."""
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scale = 10.0 ** (seed % 3)
        first = Layer(
            (scale * rng.standard_normal((8, N))).astype(np.float32),
            (scale * rng.standard_normal(8)).astype(np.float32),
            "tanh",
        )
        last = Layer(rng.standard_normal((K, 8)).astype(np.float32), np.float32([-30, 0, 0]))
        result = advcore.minimize_distortion(
            Network([first, last]),
            rng.random((4, N), dtype=np.float32),
            0,
            bounds=(-INF, INF),
            c_search="bisection",
            loss="cross_entropy" if seed // 3 % 2 else "margin",
            threads=1,
        )
        assert "non_finite" not in names(result), seed


def test_nan_gradients_with_finite_logits_are_non_finite() -> None:
    model = Model(backward=lambda dlogits: np.full((len(dlogits), N), NAN))
    black = int(model.forward(np.zeros((1, N))).argmin())  # the class that no search starts in
    result = advcore.minimize_distortion(model, images(), np.full(4, black))
    assert set(names(result)) == {"non_finite", "already_adversarial"}


@pytest.mark.parametrize("classes", [2, 3])
def test_untargeted_finds_what_targeted_finds(backend: Backend, classes: int) -> None:
    """Steep tanh: many first searches fail, and leave every class to the rescue."""
    rng = np.random.default_rng(4)
    n, scale = 8, 30.0

    def layer(out: int, width: int, size: float, kind: str) -> Layer:
        weight = size * rng.standard_normal((out, width)) / np.sqrt(width)
        bias = 0.3 * size * rng.standard_normal(out)
        return Layer(weight.astype(np.float32), bias.astype(np.float32), kind)

    widths = [layer(12, n, scale, "tanh"), layer(12, 12, scale, "tanh")]
    network = Network([*widths, layer(classes, 12, 3.0, "identity")])
    x = rng.random((60, n), dtype=np.float32)
    label = network.forward(x).argmax(axis=1)
    found = np.zeros(60, bool)
    for step in range(1, classes):
        found |= backend.attack(network, x, (label + step) % classes).success
    untargeted = backend.attack(network, x, labels=label)
    assert classes > 2 or (untargeted.rescues > 0).any()
    assert (untargeted.success >= found).mean() >= 0.98


def test_a_start_that_no_gradient_leaves_stays_in_the_bounds() -> None:
    """Rounding puts the start on either side of the boundary, and there is no slope to follow."""

    class Noisy:
        calls = 0

        def forward(self, x: Any) -> Any:
            Noisy.calls += 1
            flat = np.asarray(x).reshape(len(x), -1)
            z = np.where(flat[:, 0] < 0.3, 5.0, (flat[:, 0] - 1.5) * 4)
            z += 0.004 if Noisy.calls % 2 else -0.004
            return np.stack([0 * z, z], axis=1).astype(np.float32)

        def backward(self, dlogits: Any) -> Any:
            return np.zeros((len(dlogits), 1), np.float32)

    for trial, start in enumerate(np.random.default_rng(0).uniform(1.6, 2, 100)):
        Noisy.calls = trial % 2
        with pytest.warns(UserWarning, match="backward is exactly zero"):
            result = advcore.minimize_distortion(
                Noisy(), np.full((1, 1), 0.5, np.float32), [1], bounds=(0.5, 2.0), starts=[[start]]
            )
        assert 0.5 <= result.adversarial[0, 0] <= 2


def test_success_never_comes_with_not_found() -> None:
    """Flat everywhere, another class in half of the box: only the random start finds it."""

    def step(x: Any) -> Any:
        up = (x[:, 0] > 0.5).astype(np.float64)
        return np.stack([1 - up, up, np.full(len(x), -1.0)], axis=1)

    model = Model(forward=step, backward=lambda dlogits: np.zeros((len(dlogits), N)))
    x = np.full((20, N), 0.45, np.float32) + 1e-3 * images(20)
    with pytest.warns(UserWarning, match="backward is exactly zero"):
        result = advcore.minimize_distortion(model, x, np.ones(20, np.int64))
    assert result.success.any()
    assert set(names(result)) == {"no_gradient", "not_found"}
    for status, success in zip(names(result), result.success, strict=True):
        assert success != (status == "not_found")
    assert not np.isinf(result.c).any()


def test_images_found_from_a_random_direction_say_so(backend: Backend) -> None:
    """Two ReLUs are dead at the last images, on smoothed networks too, and alive around them."""
    weight = np.array([[4.0], [-4.0]], np.float32).repeat(N, axis=1)
    hidden = Layer(weight, np.array([-12, 11.9], np.float32), "relu")
    last = Layer(np.array([[0, 0], [1, 1]], np.float32), np.array([0.1, 0], np.float32))
    network = Network([hidden, last])
    middle = 11.95 / 4 / N
    x = (middle + 1e-5 * images(8)).astype(np.float32)
    x[:3] += np.float32(0.004)  # one of the units is alive
    for targets in (np.ones(8, np.int64), None):
        result = backend.attack(network, x, targets)
        found = names(result)
        assert result.success.all()
        assert found[3:] == ["no_gradient"] * 5
        assert "no_gradient" not in found[:3]
        assert "\nno gradient at 5 of the clean images" in result.summary()
    assert "no gradient" not in backend.attack(network, x[:3]).summary()


def test_a_given_start_is_no_random_direction() -> None:
    step = Model(
        forward=lambda x: np.stack([np.full(len(x), 0.5), x[:, 0] > 0.5], axis=1).astype(float),
        backward=lambda dlogits: np.zeros((len(dlogits), N)),
    )
    x = np.full((2, N), 0.45, np.float32)
    near = x.copy()
    near[:, 0] = 0.51
    with pytest.warns(UserWarning, match="backward is exactly zero"):
        alone = advcore.minimize_distortion(step, x)
    assert set(names(alone)) <= {"no_gradient", "not_found"}
    with pytest.warns(UserWarning, match="backward is exactly zero"):
        result = advcore.minimize_distortion(step, x, starts=near)
    assert names(result) == ["stalled"] * 2
    assert (result.distortion < 0.07).all()


def test_logits_in_a_buffer_that_the_model_reuses() -> None:
    class Buffered(Model):
        out = np.empty((4096, K))

        def forward(self, x: Any) -> Any:
            self.out[: len(x)] = super().forward(x)
            return self.out[: len(x)]

    x = images(40)
    targets = (Model().forward(x).argmax(axis=1) + 1) % K
    plain = advcore.minimize_distortion(Model(), x, targets)
    reused = advcore.minimize_distortion(Buffered(), x, targets)
    assert plain.success.all()
    np.testing.assert_array_equal(plain.adversarial, reused.adversarial)
    np.testing.assert_array_equal(plain.margin, reused.margin)
