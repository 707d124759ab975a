"""The backward of a NumPy model against its forward: right ones pass, wrong ones are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data

RNG = np.random.default_rng(3)
FIRST = RNG.standard_normal((784, 40)).astype(np.float32) / 20
LAST = RNG.standard_normal((40, 10)).astype(np.float32)
LINEAR = RNG.standard_normal((784, 10)).astype(np.float32)


class Affine:
    """Logits ``scale * x W + shift`` and that gradient, times ``factor``."""

    def __init__(self, factor: float = 1, dtype: Any = np.float32, **more: float) -> None:
        self.factor, self.dtype = factor, dtype
        self.scale, self.shift = more.get("scale", 1.0), more.get("shift", 0.0)
        self.largest_batch = 0

    def forward(self, x: Any) -> Any:
        self.largest_batch = max(self.largest_batch, len(x))
        return self.dtype(self.scale) * (x.astype(self.dtype) @ LINEAR) + self.dtype(self.shift)

    def backward(self, dlogits: Any) -> Any:
        return self.factor * self.scale * (dlogits @ LINEAR.T)


class Kinked(Affine):
    """Two layers with ReLUs, or steep tanh."""

    def __init__(self, factor: float = 1, steep: float = 0) -> None:
        super().__init__(factor)
        self.steep = steep

    def forward(self, x: Any) -> Any:
        h = x @ FIRST
        h = np.tanh(self.steep * h) if self.steep else np.maximum(h, 0)
        self.slope = self.steep * (1 - h**2) if self.steep else h > 0
        return h @ LAST

    def backward(self, dlogits: Any) -> Any:
        return self.factor * (((dlogits @ LAST.T) * self.slope) @ FIRST.T)


class Quantised(Affine):
    """Pixels on ``levels`` steps, with a straight-through gradient."""

    levels = 255

    def forward(self, x: Any) -> Any:
        return (x * self.levels).round() / self.levels @ LINEAR


class Masked(Affine):
    def forward(self, x: Any) -> Any:
        return np.where(np.arange(10) == 4, -np.inf, super().forward(x))


class Unrelated(Affine):
    def backward(self, dlogits: Any) -> Any:
        return np.random.default_rng(0).standard_normal((len(dlogits), 784))


class OneFeature(Affine):
    """A tree: every split is a step, and the gradient zero."""

    def forward(self, x: Any) -> Any:
        return (x > 0.3).astype(np.float32) @ LINEAR

    def backward(self, dlogits: Any) -> Any:
        return np.zeros((len(dlogits), 784))


def run(model: Any, count: int = 12, **options: Any) -> Any:
    return advcore.minimize_distortion(
        model, data.embedded_digits()[0][:count], effort="fast", **options
    )


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize(
    "model",
    [
        Affine(),
        Affine(dtype=np.float64),
        Affine(scale=1e-3, shift=30.0),
        Affine(scale=1e5),
        Kinked(),
        Kinked(steep=30.0),
        Masked(),
    ],
)
def test_a_right_backward_passes(model: Any, count: int) -> None:
    run(model, count)  # a warning would be an error here


def test_a_straight_through_gradient_of_fine_steps_passes() -> None:
    run(Quantised())


@pytest.mark.parametrize("count", [1, 12])
@pytest.mark.parametrize("kind", [Affine, Kinked])
def test_a_constant_factor_is_an_error(kind: Any, count: int) -> None:
    for factor in (10, 2, 0.25):
        with pytest.raises(ValueError, match=f"Its result is {factor:.3g} times the right one"):
            run(kind(factor), count)
    with pytest.raises(ValueError, match="-1 times the right one: the sign is wrong"):
        run(kind(-1), count)


def test_the_sign_of_a_steep_model_is_seen() -> None:
    with pytest.raises(ValueError, match="sign"):
        run(Kinked(-1, steep=100.0))


def test_a_zero_gradient_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="backward is exactly zero .* the logits change"):
        run(OneFeature())


def test_an_unrelated_gradient_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="does not seem to be the gradient"):
        run(Unrelated())


def test_a_constant_model_is_no_fault() -> None:
    class Constant(Affine):
        def forward(self, x: Any) -> Any:
            return np.zeros((len(x), 10), np.float32) + np.arange(10, dtype=np.float32)

        def backward(self, dlogits: Any) -> Any:
            return np.zeros((len(dlogits), 784))

    assert not run(Constant(), 3, targets=2).success.any()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1e6, 1e6), (-np.inf, np.inf), (0, 65535)])
def test_no_image_leaves_the_bounds(bounds: tuple[float, float]) -> None:
    class Strict(Affine):
        def forward(self, x: Any) -> Any:
            assert x.min() >= bounds[0]
            assert x.max() <= bounds[1]
            return super().forward(x)

    run(Strict(), bounds=bounds)
    with pytest.raises(ValueError, match="3 times the right one"):
        run(Strict(3), bounds=bounds)


def test_frozen_pixels_do_not_matter() -> None:
    images = data.embedded_digits()[0][:5]
    frozen = np.arange(784) % 3 > 0
    bounds = (np.where(frozen, images, 0), np.where(frozen, images, 1))
    assert run(Affine(), 5, bounds=bounds).success.all()


def test_a_backward_that_raises_is_named() -> None:
    class Broken(Affine):
        def backward(self, dlogits: Any) -> Any:
            raise KeyError("weights")

    with pytest.raises(ValueError, match=r"model\.backward raised on a batch of 8 .* KeyError"):
        run(Broken())


def test_modules_are_not_asked() -> None:
    """A straight-through gradient of torch may have any size."""
    torch = pytest.importorskip("torch")

    class Half(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return (x * 64).round() / 64

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return 0.25 * gradient

    weight = torch.from_numpy(LINEAR)
    with pytest.warns(UserWarning, match="constant along their gradient .* straight-through"):
        run(lambda x: Half.apply(x) @ weight)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):  # no warning
        small = (weight / 10).to(dtype)
        run(lambda x, w=small, t=dtype: torch.tanh(x.to(t) @ w) * 3)
