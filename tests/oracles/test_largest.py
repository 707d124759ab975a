"""Smoothed maxima and minima of values: a slow twin, exact rows, spellings, and two logits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import advcore  # noqa: E402
from advcore import data  # noqa: E402
from advcore.oracles import TorchOracle  # noqa: E402
from advcore.oracles.largest import TEMPERATURE, find_largest  # noqa: E402
from advcore.oracles.smoothing import find_activation, smoothing_scale  # noqa: E402


def values(dtype: Any = None) -> Any:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(4, 5, 3, generator=generator, dtype=dtype or torch.float64)
    return h.requires_grad_()


def twin(h: Any, d: Any, dim: int) -> Any:
    """The maximum along a dimension, as a sum over probabilities and their entropy."""
    temperature = TEMPERATURE * d.expand_as(h).mean(dim)
    p = torch.softmax(h / temperature.unsqueeze(dim), dim)
    return (p * h).sum(dim) - temperature * (p * p.log()).sum(dim)


CALLS: dict[str, tuple[Callable[[Any], tuple[Any, ...]], Callable[[Any], Any], int]] = {
    "amax": (lambda h: (torch.amax, h, 1), lambda out: out, 1),
    "amin": (lambda h: (torch.Tensor.amin, h, (1,)), lambda out: out, -1),
    "max": (lambda h: (torch.max, h, 1), lambda out: out.values, 1),
    "min": (lambda h: (torch.Tensor.min, h, 1), lambda out: out[0], -1),
    "topk": (lambda h: (torch.topk, h, 3, 1), lambda out: out.values[:, 0], 1),
    "topk_smallest": (lambda h: (torch.topk, h, 2, 1, False), lambda out: out.values[:, 0], -1),
    "sort": (lambda h: (torch.sort, h, 1), lambda out: out.values[:, -1], 1),
    "sort_first": (lambda h: (torch.sort, h, 1), lambda out: out.values[:, 0], -1),
    "sort_down": (lambda h: (torch.Tensor.sort, h, 1, True), lambda out: out.values[:, 0], 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradient_are_those_of_the_slow_twin(name: str) -> None:
    build, pick, sign = CALLS[name]
    h, d = values(), torch.tensor([0.5, 1, 2, 4], dtype=torch.float64).view(4, 1, 1)
    func, *args = build(h)
    call = find_activation(func, tuple(args), {})
    assert call is not None
    assert call.kind == "largest"
    out, expected = pick(call.smoothed(h, d)), sign * twin(sign * h, d, 1)
    torch.testing.assert_close(out, expected)
    excess = sign * (out - pick(func(*args)))
    assert excess.min() > 0
    assert (excess <= TEMPERATURE * d[:, 0] * math.log(5)).all()
    ours, theirs = (torch.autograd.grad(part.square().sum(), h)[0] for part in (out, expected))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda h: pick(call.smoothed(h, d)), h)


@pytest.mark.parametrize("sign", [1, -1])
def test_pairs_are_the_maximum_of_their_stack(sign: int) -> None:
    a, b = values(), values().detach().flip(0).requires_grad_()
    func = torch.maximum if sign > 0 else torch.Tensor.minimum
    call = find_activation(func, (a, b), {})
    assert call is not None
    assert call.h.shape == (4, 2, 5, 3)
    d = torch.tensor([0.5, 1, 0, 4], dtype=torch.float64).view(4, 1, 1, 1)
    out = call.smoothed(call.h, d)
    smoothed = [0, 1, 3]
    T = TEMPERATURE * d[smoothed, 0]
    expected = sign * T * torch.logaddexp(sign * a[smoothed] / T, sign * b[smoothed] / T)
    torch.testing.assert_close(out[smoothed], expected)
    assert torch.equal(out[2], func(a, b)[2])
    ours = torch.autograd.grad(out.square()[smoothed].sum(), (a, b), retain_graph=True)
    theirs = torch.autograd.grad(expected.square().sum(), (a, b))
    torch.testing.assert_close(ours, theirs)
    exact = torch.autograd.grad(func(a, b)[2].sum(), (a, b))
    for mine, other in zip(torch.autograd.grad(out[2].sum(), (a, b)), exact, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_without_smoothing_are_the_call_bit_for_bit(name: str, dtype: Any) -> None:
    """Also the gradient, where values tie and where they are infinite."""
    build, pick, _ = CALLS[name]
    h = torch.randint(0, 3, (4, 5, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    h[0, 1, 0], h[2, 0, 1] = -math.inf, -1e9
    h.requires_grad_()
    func, *args = build(h)
    call = find_activation(func, tuple(args), {})
    assert call is not None
    for d in (torch.zeros(4, 1, 1), torch.tensor([0.0, 1, 0, 1e-30]).view(4, 1, 1)):
        result, exact = call.smoothed(h, d.to(dtype)), func(*args)
        assert type(result) is type(exact)
        out, plain = pick(result), pick(exact)
        gradient, expected = (torch.autograd.grad(part.sum(), h)[0] for part in (out, plain))
        same = d[:, 0, 0] == 0
        assert torch.equal(out[same], plain[same])
        assert torch.equal(gradient[same], expected[same])
        assert gradient.isfinite().all()
        if not isinstance(exact, torch.Tensor):
            assert torch.equal(result[1], exact[1])


@pytest.mark.parametrize(
    "call",
    [
        (torch.max, values()),
        (torch.amax, values(), 0),
        (torch.amax, values(), (0, 1)),
        (torch.max, values(), values()[0]),
        (torch.maximum, values(), values()[0]),
        (torch.maximum, values().long(), values().long()),
        (torch.topk, values(), 2, 1, True, False),
        (torch.amax, values().long(), 1),
    ],
)
def test_other_calls_are_left_alone(call: tuple[Any, ...]) -> None:
    func, *args = call
    assert find_largest(func, tuple(args), {}) is None
    assert find_largest(func, tuple(args), {"out": None}) is None


def _network() -> Any:
    return data.embedded_network().to_torch().eval()


def test_half_widths_are_those_of_the_logits_of_the_clean_image() -> None:
    network = _network()
    oracle = TorchOracle(lambda x: network(x).topk(2, dim=1).values, (784,))
    assert (oracle.kind, oracle.smoothed) == ("compared", "2 saturating, 1 maximum")
    x = data.embedded_digits()[0][:2].reshape(2, -1)
    slots = np.arange(2, dtype=np.int32)
    exact = oracle.forward(x, None, slots, np.ones(2, np.bool_))
    k = np.array([0, 1e-6], np.float32)  # the sigmoids stay as they are
    out = oracle.forward(x, k, slots)
    assert np.array_equal(out[0], exact[0])
    with torch.no_grad():
        logits = network(torch.from_numpy(x))
    T = TEMPERATURE * 0.5 * smoothing_scale(logits)[1]
    head = TorchOracle(lambda x: x.topk(2, dim=1).values, (10,))
    head.forward(logits.numpy(), None, slots, np.ones(2, np.bool_))
    found = head.forward(logits.numpy(), np.array([0, 0.5], np.float32), slots)
    assert found[1, 0] == pytest.approx(float(T * torch.logsumexp(logits[1] / T, 0)), rel=1e-5)


def test_a_maximum_that_no_decision_depends_on_is_not_smoothed() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 4)

    def model(x: Any) -> Any:
        z = torch.nn.functional.softplus(linear(x))
        return z - z.amax(1, keepdim=True)

    oracle = TorchOracle(model, (6,))
    assert (oracle.kind, oracle.smoothed) == ("smooth", "nothing")


LARGEST: dict[str, Callable[[Any], Any]] = {
    "amax": lambda z: z.amax(1),
    "max": lambda z: torch.max(z, dim=1)[0],
    "topk": lambda z: z.topk(1).values[:, 0],
    "sort": lambda z: z.sort(1).values[:, -1],
    "maximum": lambda z: functools.reduce(torch.maximum, z.unbind(1)),
}


@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.:DeprecationWarning")
@pytest.mark.parametrize("name", [*LARGEST, "scripted"])
def test_two_logits_are_as_good_as_ten(name: str) -> None:
    network, target = _network(), 3
    others = [j for j in range(10) if j != target]
    largest = LARGEST.get(name, LARGEST["amax"])

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Any) -> Any:
            z = self.network(x)
            return torch.stack([largest(z[:, others]), z[:, target]], 1)

    two: Any = Two().eval()
    images, labels = data.embedded_digits()
    x = images[labels != target][:60].reshape(60, -1)
    if name == "scripted":
        two = torch.jit.trace(two, torch.from_numpy(x[:2]), check_trace=False)
    left = advcore.minimize_distortion(two, x, np.ones(60, np.int64))
    right = advcore.minimize_distortion(network, x, np.full(60, target))
    assert left.success.all()
    assert left.distortion.mean() <= 1.01 * right.distortion.mean()
    assert left.evaluations.mean() <= 1.5 * right.evaluations.mean()
