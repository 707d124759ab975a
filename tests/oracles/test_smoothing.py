"""Smoothed activations by interception: formulas, derivatives, scales, the untouched module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
functional = torch.nn.functional

from advcore.oracles import TorchOracle  # noqa: E402
from advcore.oracles.pooling import TEMPERATURE  # noqa: E402
from advcore.oracles.smoothing import (  # noqa: E402
    ABSOLUTE_FLOOR,
    ActivationCall,
    Recomputation,
    SmoothingScales,
    find_activation,
    smoothed_relu,
    smoothed_sigmoid,
    smoothed_tanh,
    smoothing_scale,
)


def spline(h: Any, d: Any, slope: float = 0.0) -> Any:
    """The formula, written once more with ordinary differentiable operations."""
    middle = (h + d) ** 2 / (4 * d)
    relu = torch.where(h >= d, h, torch.where(h <= -d, torch.zeros_like(h), middle))
    return slope * h + (1 - slope) * relu


def smoothed(form: float | str, h: Any, d: Any) -> Any:
    """The formula of a row of `SPELLINGS`: a ReLU's slope, "sigmoid" or "tanh"."""
    if form == "sigmoid":
        return 1 / (1 + torch.exp(-h / torch.sqrt(1 + torch.pi * d**2 / 8)))
    if form == "tanh":
        return 2 / (1 + torch.exp(-2 * h / torch.sqrt(1 + torch.pi * d**2 / 2))) - 1
    assert not isinstance(form, str)
    return spline(h, d, form)


def numbers(count: int) -> Any:
    return np.arange(count, dtype=np.int32)


def test_values_and_derivatives_at_known_points() -> None:
    h = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], requires_grad=True)
    out = smoothed_relu(h, torch.tensor(2.0))
    out.sum().backward()
    np.testing.assert_allclose(out.detach(), [0, 0, 0.125, 0.5, 1.125, 2, 3])
    np.testing.assert_allclose(h.grad, [0, 0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_value_and_derivative_against_plain_autograd(slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(50, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    d = torch.rand(50, 1, generator=generator, dtype=torch.float64) + 0.01
    out, plain = smoothed_relu(h, d, slope), spline(h, d, slope)
    torch.testing.assert_close(out, plain)
    (a,) = torch.autograd.grad(out.square().sum(), h)
    (b,) = torch.autograd.grad(plain.square().sum(), h)
    torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda value: smoothed_relu(value, d, slope), (h,))


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_half_width_is_the_exact_relu(slope: float, dtype: Any) -> None:
    h = torch.tensor([-1e30, -1.0, -1e-30, 0.0, 1e-30, 0.3, 1e30], dtype=dtype, requires_grad=True)
    out = smoothed_relu(h, torch.zeros(1, dtype=dtype), slope)
    exact = functional.leaky_relu(h, slope)
    assert torch.equal(out, exact)
    ours, theirs = (torch.autograd.grad(value.sum(), h)[0] for value in (out, exact))
    assert torch.equal(ours, theirs)


STRETCHED = {"sigmoid": (smoothed_sigmoid, torch.sigmoid), "tanh": (smoothed_tanh, torch.tanh)}


@pytest.mark.parametrize("form", STRETCHED)
def test_stretched_forms_against_plain_autograd(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(50, 7, generator=generator, dtype=torch.float64).mul_(4).requires_grad_(True)
    d = 3 * torch.rand(50, 1, generator=generator, dtype=torch.float64) + 0.01
    out, plain = STRETCHED[form][0](h, d), smoothed(form, h, d)
    torch.testing.assert_close(out, plain)
    (a,) = torch.autograd.grad(out.square().sum(), h)
    (b,) = torch.autograd.grad(plain.square().sum(), h)
    torch.testing.assert_close(a, b)


def test_stretched_forms_at_known_points() -> None:
    """With d^2 = 8 / pi for the sigmoid and 2 / pi for tanh, h is divided by sqrt(2)."""
    h = torch.tensor([-2.0, 0.0, 1.0])
    sigmoid = smoothed_sigmoid(h * 2**0.5, torch.tensor((8 / np.pi) ** 0.5))
    torch.testing.assert_close(sigmoid, torch.sigmoid(h))
    tanh = smoothed_tanh(h * 2**0.5, torch.tensor((2 / np.pi) ** 0.5))
    torch.testing.assert_close(tanh, torch.tanh(h))


@pytest.mark.parametrize("form", STRETCHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_zero_half_width_is_the_exact_form_in_any_layout(form: str, dtype: Any) -> None:
    ours, exact = STRETCHED[form]
    big = (4 * torch.randn(33, 101, generator=torch.Generator().manual_seed(0))).to(dtype)
    views = (big, big[:, ::2], big.t()[:33], big[:, 3:50], big[:, :1].expand(33, 20))
    for view in views:
        h = view.detach().requires_grad_(True)
        mixed = (torch.arange(33) % 2).to(dtype)[:, None]
        other = exact(h)
        (theirs,) = torch.autograd.grad(other.sum(), h, retain_graph=True)
        for d in (mixed, 0 * mixed):
            out = ours(h, d)
            (gradient,) = torch.autograd.grad(out.sum(), h)
            same = d[:, 0] == 0
            assert torch.equal(out[same], other[same])
            assert torch.equal(gradient[same], theirs[same])


def test_not_a_number_passes_through() -> None:
    inf = float("inf")
    h = torch.tensor([float("nan"), inf, -inf])
    limits = {smoothed_relu: [inf, 0.0], smoothed_sigmoid: [1.0, 0.0], smoothed_tanh: [1.0, -1.0]}
    for function, limit in limits.items():
        out = function(h, torch.tensor(0.5))
        assert out[0].isnan()
        assert out[1:].tolist() == limit


def test_scales_of_dense_and_convolutional_values() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((3, 40)).astype(np.float32)
    np.testing.assert_allclose(
        smoothing_scale(torch.tensor(dense)), dense.std(1)[:, None], rtol=1e-5
    )
    maps = rng.standard_normal((3, 4, 5, 6)).astype(np.float32)
    np.testing.assert_allclose(smoothing_scale(torch.tensor(maps)), maps.std((2, 3)), rtol=1e-5)
    single = torch.tensor(dense)[:, :, None, None]  # 1 x 1 maps have no deviation of their own
    torch.testing.assert_close(smoothing_scale(single), smoothing_scale(torch.tensor(dense)))


def test_scales_are_floored() -> None:
    scale = smoothing_scale(torch.tensor([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(scale, [[2e-3], [ABSOLUTE_FLOOR]], rtol=1e-6)


SPELLINGS: dict[str, tuple[Callable[[Any], Any], float | str]] = {
    "nn.ReLU": (nn.ReLU(), 0.0),
    "nn.ReLU in place": (nn.ReLU(inplace=True), 0.0),
    "functional.relu": (functional.relu, 0.0),
    "functional.relu in place": (lambda h: functional.relu(h, True), 0.0),
    "functional.relu_": (functional.relu_, 0.0),
    "torch.relu": (torch.relu, 0.0),
    "torch.relu_": (torch.relu_, 0.0),
    "Tensor.relu": (lambda h: h.relu(), 0.0),
    "Tensor.relu_, its value dropped": (lambda h: (h.relu_(), h)[1], 0.0),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2), 0.2),
    "nn.LeakyReLU in place": (nn.LeakyReLU(0.2, inplace=True), 0.2),
    "functional.leaky_relu": (functional.leaky_relu, 0.01),
    "functional.leaky_relu_": (lambda h: functional.leaky_relu_(h, 0.3), 0.3),
    "torch.clamp": (lambda h: torch.clamp(h, 0), 0.0),
    "torch.clamp, by name": (lambda h: torch.clamp(input=h, min=0.0), 0.0),
    "torch.clip": (lambda h: torch.clip(h, 0.0), 0.0),
    "torch.clamp_min": (lambda h: torch.clamp_min(h, 0), 0.0),
    "torch.clamp_": (lambda h: torch.clamp_(h, 0), 0.0),
    "Tensor.clamp": (lambda h: h.clamp(min=0), 0.0),
    "Tensor.clamp_": (lambda h: h.clamp_(min=0), 0.0),
    "Tensor.clip": (lambda h: h.clip(0), 0.0),
    "Tensor.clamp_min": (lambda h: h.clamp_min(0), 0.0),
    "Tensor.clamp_min_, its value dropped": (lambda h: (h.clamp_min_(0), h)[1], 0.0),
    "nn.Sigmoid": (nn.Sigmoid(), "sigmoid"),
    "torch.sigmoid": (torch.sigmoid, "sigmoid"),
    "torch.sigmoid, by name": (lambda h: torch.sigmoid(input=h), "sigmoid"),
    "torch.sigmoid_": (torch.sigmoid_, "sigmoid"),
    "Tensor.sigmoid": (lambda h: h.sigmoid(), "sigmoid"),
    "Tensor.sigmoid_, its value dropped": (lambda h: (h.sigmoid_(), h)[1], "sigmoid"),
    "functional.sigmoid": (functional.sigmoid, "sigmoid"),
    "torch.special.expit": (torch.special.expit, "sigmoid"),
    "nn.Tanh": (nn.Tanh(), "tanh"),
    "torch.tanh": (torch.tanh, "tanh"),
    "torch.tanh_": (torch.tanh_, "tanh"),
    "Tensor.tanh": (lambda h: h.tanh(), "tanh"),
    "Tensor.tanh_, its value dropped": (lambda h: (h.tanh_(), h)[1], "tanh"),
    "functional.tanh": (functional.tanh, "tanh"),
}


class Model(nn.Module):  # type: ignore[misc]
    """Linear, an activation in some spelling, Linear."""

    def __init__(self, activation: Callable[[Any], Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.one, self.two = nn.Linear(6, 9), nn.Linear(9, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.activation = activation
        self.eval()

    def forward(self, x: Any) -> Any:
        return self.two(self.activation(self.one(x)))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_smoothed_with_the_right_gradient(spelling: str) -> None:
    activation, form = SPELLINGS[spelling]
    model = Model(activation)
    oracle = TorchOracle(model, (6,))
    assert oracle.kind == ("saturating" if isinstance(form, str) else "kinked")
    x = np.random.default_rng(0).random((4, 6), dtype=np.float32)
    clean = oracle.forward(x, slots=numbers(4), record_scales=np.ones(4, bool), grad=False)
    assert np.array_equal(clean, model(torch.tensor(x)).detach())

    k = np.array([0.8, 0.2, 0.05, 1.5], np.float32)
    moved = x + np.float32(0.1)
    logits = oracle.forward(moved, k, numbers(4))
    dlogits = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    gradient = oracle.backward(dlogits)

    with torch.no_grad():
        scale = model.one(torch.tensor(x)).std(1, correction=0, keepdim=True)
    leaf = torch.tensor(moved, requires_grad=True)
    z = model.two(smoothed(form, model.one(leaf), torch.tensor(k)[:, None] * scale))
    (expected,) = torch.autograd.grad(z, leaf, torch.tensor(dlogits))
    np.testing.assert_allclose(logits, z.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits - model(torch.tensor(moved)).detach().numpy()).max() > 1e-3


@pytest.mark.parametrize(
    "call",
    [
        lambda h: torch.clamp(h, torch.zeros(9)),
        functional.silu,
        functional.hardswish,
        lambda h: functional.gelu(h, approximate="tanh"),
    ],
)
def test_other_calls_are_left_alone(call: Callable[[Any], Any]) -> None:
    assert TorchOracle(Model(call), (6,)).kind == "smooth"


def test_out_argument_and_integers_are_left_alone() -> None:
    h, integers = torch.zeros(2), torch.zeros(2, dtype=torch.int64)
    assert find_activation(torch.clamp, (h,), {"min": 0, "out": h}) is None
    assert find_activation(torch.sigmoid, (h,), {"out": h}) is None
    assert find_activation(torch.relu, (integers,), {}) is None
    assert find_activation(torch.tanh, (integers,), {}) is None
    assert find_activation(torch.clamp, (h, 0), {}) is not None


def test_kind_counts_only_calls_that_can_be_smoothed() -> None:
    """Those of weights, or of values that are not rows by units, stay exact."""
    gate = torch.linspace(-1, 1, 9)
    calls: dict[str, tuple[Callable[[Any], Any], str]] = {
        "both": (lambda h: torch.tanh(h).relu(), "kinked"),
        "relu of a weight": (lambda h: torch.tanh(h) * torch.relu(gate), "saturating"),
        "sigmoid of a weight": (lambda h: functional.gelu(h) * torch.sigmoid(gate), "smooth"),
        "tanh of the transpose": (lambda h: torch.tanh(h.T).T, "smooth"),
        "sigmoid of a number a row": (lambda h: h * torch.sigmoid(h.sum(1))[:, None], "smooth"),
    }
    for name, (call, kind) in calls.items():
        assert TorchOracle(Model(call), (6,)).kind == kind, name


def convolutional() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 3 * 3, 12), nn.LeakyReLU(0.1, inplace=True), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def test_convolutions_get_a_scale_per_channel_and_each_call_its_own() -> None:
    model = convolutional()
    oracle = TorchOracle(model, (1, 8, 8))
    rng = np.random.default_rng(0)
    x, moved = (rng.random((3, 64), dtype=np.float32) for _ in range(2))
    oracle.forward(x, slots=numbers(3), record_scales=np.ones(3, bool), grad=False)
    k = torch.tensor([0.8, 0.2, 0.5])
    logits = oracle.forward(moved, k.numpy(), numbers(3))
    dlogits = rng.standard_normal((3, 5)).astype(np.float32)
    gradient = oracle.backward(dlogits)

    conv, _, pool, flatten, hidden, _, last = model
    with torch.no_grad():
        h = conv(torch.tensor(x).view(3, 1, 8, 8))
        first = h.std((2, 3), correction=0, keepdim=True)
        pooled = h.relu().std((2, 3), correction=0, keepdim=True)
        second = hidden(flatten(pool(h.relu()))).std(1, correction=0, keepdim=True)
    leaf = torch.tensor(moved, requires_grad=True)
    k = k[:, None, None, None]
    h = spline(conv(leaf.view(3, 1, 8, 8)), k * first)
    temperature = TEMPERATURE * k * pooled.clamp_min(ABSOLUTE_FLOOR)  # a channel is dead
    windows = (h / temperature).unfold(2, 2, 2).unfold(3, 2, 2)
    h = temperature * windows.logsumexp((4, 5))
    h = spline(hidden(flatten(h)), k[:, :, 0, 0] * second, 0.1)
    z = last(h)
    (expected,) = torch.autograd.grad(z, leaf, torch.tensor(dlogits))
    np.testing.assert_allclose(logits, z.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


class Gated(nn.Module):  # type: ignore[misc]
    """Gates by halves of the channels, which are slices of memory, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Conv2d(1, 6, 3), nn.Linear(108, 14), nn.Linear(7, 5)

    def forward(self, x: Any) -> Any:
        h = self.one(x)
        value, gate = h[:, :3], h[:, 3:].sigmoid_()
        value, gate = self.two((value * gate).flatten(1)).mul(20).chunk(2, dim=1)
        return self.three(gate.sigmoid() * torch.tanh(value))


@pytest.mark.parametrize("build", [convolutional, Gated])
def test_exact_rows_stay_bit_exact_beside_smoothed_ones(build: Callable[[], Any]) -> None:
    model = build()
    oracle = TorchOracle(model, (1, 8, 8))
    x = np.random.default_rng(0).random((4, 64), dtype=np.float32)
    dlogits = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
    plain = oracle.forward(x, slots=numbers(4), record_scales=np.ones(4, bool))
    gradient = oracle.backward(dlogits)
    mixed = oracle.forward(x, np.array([0, 0.8, 0, 0.2], np.float32), numbers(4))
    assert np.array_equal(mixed[::2], plain[::2])
    assert np.array_equal(oracle.backward(dlogits)[::2], gradient[::2])
    assert (np.abs(mixed - plain).max(axis=1)[1::2] > 0).all()


def test_scales_belong_to_the_slot_and_not_to_the_batch() -> None:
    """Slots in any order, recorded at different times beside any neighbours, give the same row."""
    oracle = TorchOracle(Model(torch.relu), (6,))
    rng = np.random.default_rng(0)
    clean, x = (rng.random((3, 6), dtype=np.float32) for _ in range(2))
    k = np.full(3, 0.5, np.float32)
    oracle.forward(clean, slots=numbers(3), record_scales=np.ones(3, bool), grad=False)
    together = oracle.forward(x, k, numbers(3), grad=False)

    other = TorchOracle(Model(torch.relu), (6,))
    for row, slot in ((2, 9), (0, 4), (1, 5)):
        filler = rng.random((1, 6), dtype=np.float32)
        pair = np.concatenate([filler, clean[row : row + 1]])
        slots = np.array([1, slot], np.int32)
        other.forward(pair, slots=slots, record_scales=np.array([False, True]), grad=False)
    alone = other.forward(x[::-1].copy(), k, np.array([9, 5, 4], np.int32), grad=False)
    np.testing.assert_allclose(alone[::-1], together, rtol=1e-5, atol=1e-5)

    again = rng.random((1, 6), dtype=np.float32)  # a refilled slot takes new scales
    one = np.array([4], np.int32)
    other.forward(again, slots=one, record_scales=np.ones(1, bool), grad=False)
    fresh = TorchOracle(Model(torch.relu), (6,))
    fresh.forward(again, slots=numbers(1), record_scales=np.ones(1, bool), grad=False)
    np.testing.assert_array_equal(
        other.forward(x[:1], k[:1], one, grad=False),
        fresh.forward(x[:1], k[:1], numbers(1), grad=False),
    )


def test_a_recorded_row_is_exact_whatever_its_slot_had_before() -> None:
    """Also beside a smoothed row, and after an image whose scales are NaN."""
    model = Model(torch.relu)
    oracle = TorchOracle(model, (6,))
    x = np.random.default_rng(0).random((2, 6), dtype=np.float32)
    bad = np.full((2, 6), np.nan, np.float32)
    oracle.forward(bad, slots=numbers(2), record_scales=np.ones(2, bool), grad=False)
    oracle.forward(x[:1], slots=numbers(1), record_scales=np.ones(1, bool), grad=False)
    k, record = np.array([0.5, 0], np.float32), np.array([False, True])
    logits = oracle.forward(x, k, numbers(2), record)
    exact = model(torch.tensor(x)).detach().numpy()
    assert np.array_equal(logits[1], exact[1])
    assert np.isfinite(logits).all()
    assert not np.array_equal(logits[0], exact[0])


def test_rows_that_were_never_recorded_are_exact() -> None:
    model = Model(torch.relu)
    oracle = TorchOracle(model, (6,))
    x = np.random.default_rng(0).random((2, 6), dtype=np.float32)
    k, slots = np.ones(2, np.float32), np.array([0, 7], np.int32)
    exact = model(torch.tensor(x)).detach().numpy()
    assert np.array_equal(oracle.forward(x, k, slots, grad=False), exact)
    oracle.forward(x, slots=slots, record_scales=np.array([True, False]), grad=False)
    smoothed = oracle.forward(x, k, slots, grad=False)
    assert np.array_equal(smoothed[1], exact[1])
    assert not np.array_equal(smoothed[0], exact[0])


def test_calls_that_do_not_carry_the_batch_stay_exact() -> None:
    """relu of a weight, whose first dimension may happen to equal the batch."""

    class Positive(Model):
        def forward(self, x: Any) -> Any:
            return functional.relu(self.one(x)) @ functional.relu(self.two.weight).T

    model = Positive(torch.relu)
    oracle = TorchOracle(model, (6,))
    x = np.random.default_rng(0).random((3, 6), dtype=np.float32)  # 3 rows, as the weight has
    oracle.forward(x, slots=numbers(3), record_scales=np.ones(3, bool), grad=False)
    logits = oracle.forward(x, np.ones(3, np.float32), numbers(3), grad=False)
    with torch.no_grad():
        h = model.one(torch.tensor(x))
        smooth = spline(h, h.std(1, correction=0, keepdim=True))
        expected = smooth @ model.two.weight.relu().T
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_scales_keep_only_calls_that_follow_the_rows() -> None:
    scales = SmoothingScales()
    scales.update(
        [ActivationCall("saturating", shape) for shape in ((2, 5), (2, 5), (4, 5), (2,))],
        [ActivationCall("saturating", shape) for shape in ((3, 5), (2, 5), (6, 5), (3,))],
    )
    assert (scales.row_shapes, scales.kind) == ({0: (5,)}, "saturating")
    one, two = ActivationCall("kinked", (2, 5)), ActivationCall("kinked", (3, 5))
    scales.update([one], [two])
    assert (scales.row_shapes, scales.kind) == ({0: (5,)}, "kinked")
    for more in ([two, two], [ActivationCall("saturating", (3, 5))]):
        scales.update([one], more)
        assert (scales.row_shapes, scales.kind) == ({}, "smooth")


def test_module_is_never_altered() -> None:
    model = convolutional()
    kinds = [type(module) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [dict(vars(module)) for module in model.modules()]
    x = np.random.default_rng(0).random((2, 64), dtype=np.float32)
    before = model(torch.tensor(x).view(2, 1, 8, 8))
    oracle = TorchOracle(model, (1, 8, 8))
    oracle.forward(x, slots=numbers(2), record_scales=np.ones(2, bool), grad=False)
    oracle.forward(x, np.ones(2, np.float32), numbers(2))
    oracle.backward(np.ones((2, 5), np.float32))
    assert [type(module) for module in model.modules()] == kinds
    assert [vars(module) for module in model.modules()] == attributes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(torch.tensor(x).view(2, 1, 8, 8)), before)


@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid, torch.tanh])
def test_checkpointed_modules_are_smoothed(activation: Callable[[Any], Any]) -> None:
    checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint
    model = Model(activation)

    def checkpointed(x: Any) -> Any:
        again = checkpoint(lambda h: activation(model.one(h)), x, use_reentrant=False)
        return model.two(again)

    oracle = TorchOracle(checkpointed, (6,))
    x = np.random.default_rng(0).random((2, 6), dtype=np.float32)
    plain = TorchOracle(model, (6,))
    assert oracle.kind == plain.kind != "smooth"
    assert np.array_equal(oracle.forward(x), plain.forward(x))
    dlogits = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(oracle.backward(dlogits), plain.backward(dlogits), rtol=1e-6)


@pytest.mark.parametrize("activation", [torch.relu, torch.sigmoid, torch.tanh, torch.sigmoid_])
def test_recomputation_is_an_activation_and_not_its_derivative(
    activation: Callable[[Any], Any],
) -> None:
    h = torch.zeros(3, requires_grad=True)
    out = activation(h * 1)
    with Recomputation() as recomputation:
        torch.autograd.grad(out.sum(), h)
    assert not recomputation.detected
    with Recomputation() as recomputation:
        activation(h * 1)
    assert recomputation.detected


def test_model_that_fails_under_a_function_mode_is_searched_as_a_graph() -> None:
    model = Model(torch.relu)

    def picky(x: Any) -> Any:
        if torch.overrides._get_current_function_mode_stack():
            raise RuntimeError("not under a mode")
        return model(x)

    oracle = TorchOracle(picky, (6,))
    assert oracle.kind == "kinked"
    assert oracle.forward(np.zeros((2, 6), np.float32)).shape == (2, 3)
