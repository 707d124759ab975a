"""Smoothed piecewise linear activations against the mean over uniform noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from advcore.oracles import TorchOracle  # noqa: E402
from advcore.oracles.smoothing import find_activation  # noqa: E402

SLOPES = torch.tensor([0.25, -0.5, 0.1])
CALLS: dict[str, tuple[Any, ...]] = {
    "relu6": (functional.relu6,),
    "hardtanh": (functional.hardtanh, -0.5, 2.0),
    "clamp": (torch.clamp, 0, 1),
    "clamp_max": (torch.Tensor.clamp, None, 0.7),
    "clamp_min": (torch.clamp_min, -0.3),
    "abs": (torch.Tensor.abs,),
    "prelu": (torch.prelu, SLOPES),
}


def activation(name: str, h: Any) -> Any:
    func, *args = CALLS[name]
    args = [arg.to(h.dtype) if isinstance(arg, torch.Tensor) else arg for arg in args]
    call = find_activation(func, (h, *args), {})
    assert call is not None
    return call, lambda h: func(h, *args)


@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradient_are_means_over_uniform_noise(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    h = (3 * torch.randn(4, 3, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    d = torch.tensor([0.3, 1, 2, 7], dtype=torch.float64).view(4, 1, 1)
    call, exact = activation(name, h)
    assert call.kind == "kinked"
    noise = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    noise = (noise[1:] + noise[:-1]) / 2
    expected = sum(exact(h + u * d) for u in noise) / len(noise)
    out = call.smoothed(h, d)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(part.sum(), h)[0] for part in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert torch.autograd.gradcheck(lambda h: call.smoothed(h, d), h)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_half_width_are_the_call_bit_for_bit(name: str, dtype: Any) -> None:
    """Also the gradient, on the kinks themselves."""
    points = [-1e30, -1, -0.5, -0.3, 0, 0.1, 0.7, 1, 2, 6, 7, 1e30]
    h = torch.tensor(points, dtype=dtype).expand(2, 3, 12).clone().requires_grad_()
    call, exact = activation(name, h)
    d = torch.tensor([0, 0.5], dtype=dtype).view(2, 1, 1)
    out, plain = call.smoothed(h, d), exact(h)
    gradient, expected = (torch.autograd.grad(part.sum(), h)[0] for part in (out, plain))
    assert torch.equal(out[0], plain[0])
    assert torch.equal(gradient[0], expected[0])
    assert not torch.equal(out[1], plain[1])


MODULES: dict[str, Callable[[], Any]] = {
    "ReLU6": nn.ReLU6,
    "ReLU6, in place": lambda: nn.ReLU6(inplace=True),
    "Hardtanh": nn.Hardtanh,
    "PReLU": lambda: nn.PReLU(8),
}


def network(activation: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 4)).eval()


@pytest.mark.filterwarnings(r"ignore:.torch\.jit\.:DeprecationWarning")
@pytest.mark.parametrize("name", MODULES)
def test_modules_are_smoothed_also_as_the_graph_of_their_operations(name: str) -> None:
    module = network(MODULES[name]())
    traced = torch.jit.trace(module, torch.rand(2, 5), check_trace=False)
    x = np.random.default_rng(0).standard_normal((2, 5), dtype=np.float32)
    slots, k = np.arange(2, dtype=np.int32), np.array([0, 4], np.float32)
    found = []
    for model in (module, traced):
        oracle = TorchOracle(model, (5,), sample=x)
        assert oracle.smoothed.startswith("1 piecewise linear")
        assert oracle.kind == "kinked"
        exact = oracle.forward(x, None, slots, np.ones(2, np.bool_))
        logits = oracle.forward(x, k, slots)
        assert np.array_equal(logits[0], exact[0])
        assert not np.allclose(logits[1], exact[1], rtol=1e-3)
        found += [logits, oracle.backward(np.ones_like(logits))]
    np.testing.assert_allclose(found[0], found[2], rtol=1e-6)
    np.testing.assert_allclose(found[1], found[3], rtol=1e-5, atol=1e-7)


def test_a_call_that_changes_nothing_stays_exact() -> None:
    """As a clip of the image, or of a variance; the numbers of the other calls stay right."""
    inner = network(nn.Hardtanh())
    scale = TorchOracle(inner, (5,)).smoothed
    oracle = TorchOracle(lambda x: inner(x.clamp(0, 1)) / x.abs().clamp(min=1e-6).mean(), (5,))
    assert oracle.smoothed == scale == "1 piecewise linear"


@pytest.mark.parametrize(
    "call",
    [
        (functional.hardswish, torch.randn(2, 3)),
        (functional.hardsigmoid, torch.randn(2, 3)),
        (torch.clamp, torch.randn(2, 3), torch.zeros(3)),
        (torch.clamp, torch.randn(2, 3), 1, 0),
        (torch.abs, torch.ones(2, 3).long()),
    ],
)
def test_other_calls_are_left_alone(call: tuple[Any, ...]) -> None:
    func, *args = call
    assert find_activation(func, tuple(args), {}) is None
