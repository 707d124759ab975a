"""Smoothed max-pooling against a slow twin, and under the function mode."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

import advcore  # noqa: E402
from advcore.oracles import TorchOracle, pooling, smoothing  # noqa: E402
from advcore.oracles.pooling import TEMPERATURE, find_windows, smoothed_max  # noqa: E402
from advcore.oracles.smoothing import Recomputation, find_activation, smoothing_scale  # noqa: E402
from advcore.solve import choose  # noqa: E402


def twin(h: Any, temperature: Any, kernel: Any, stride: Any, padding: Any, ceil: bool) -> Any:
    """Log-sum-exp window by window, (B, C, H, W); temperature (B, C)."""
    with torch.no_grad():
        shape = functional.max_pool2d(h, kernel, stride, padding, ceil_mode=ceil).shape
    out = torch.empty(shape, dtype=h.dtype)
    for b, c, i, j in itertools.product(*map(range, shape)):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        rows = slice(max(top, 0), max(top + kernel[0], 0))
        columns = slice(max(left, 0), max(left + kernel[1], 0))
        values = h[b, c, rows, columns].flatten() / temperature[b, c]
        out[b, c, i, j] = temperature[b, c] * torch.logsumexp(values, 0)
    return out


def pooled(h: Any, d: Any, *args: Any, **kwargs: Any) -> Any:
    """The smoothed form of ``functional.max_pool2d(h, *args, **kwargs)``."""
    call = find_activation(functional.max_pool2d, (h, *args), kwargs)
    assert call is not None
    assert call.kind == "pooled"
    return call.smoothed(h, d)


PARAMETERS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
WINDOWS = [
    ((2, 2), (2, 2), (0, 0), False),
    ((3, 3), (2, 2), (0, 0), True),  # SqueezeNet
    ((3, 3), (2, 2), (1, 1), False),  # ResNet
    ((3, 2), (1, 2), (1, 0), True),
    ((2, 3), (3, 5), (1, 1), True),  # values that no window has
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil"), WINDOWS)
@pytest.mark.parametrize("size", [(7, 6), (8, 9)])
def test_values_and_gradient_are_those_of_the_slow_twin(
    kernel: Any, stride: Any, padding: Any, ceil: bool, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).requires_grad_()
    d = torch.rand(2, 3, 1, 1, generator=generator, dtype=torch.float64) + 1
    out = pooled(h, d, kernel, stride, padding, ceil_mode=ceil)
    expected = twin(h, TEMPERATURE * d[:, :, 0, 0], kernel, stride, padding, ceil)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    dlogits = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (mine,) = torch.autograd.grad(out, h, dlogits)
    (theirs,) = torch.autograd.grad(expected, h, dlogits)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    few, some = h.detach()[:1, :1].requires_grad_(), d[:1, :1]
    assert torch.autograd.gradcheck(lambda h: pooled(h, some, kernel, stride, padding), few)

    exact = functional.max_pool2d(h, kernel, stride, padding, ceil_mode=ceil)
    excess = (out - exact) / (TEMPERATURE * d)
    assert excess.min() >= -1e-12
    assert excess.max() <= math.log(math.prod(kernel)) + 1e-12


def test_windows_are_those_of_torch_for_every_size() -> None:
    cases = itertools.product(range(1, 10), (1, 2, 3), (1, 2, 3, 5), (0, 1), (False, True))
    for size, kernel, stride, padding, ceil in cases:
        if size + 2 * padding < kernel or 2 * padding > kernel:
            continue
        h = torch.arange(size, dtype=torch.float32).view(1, 1, size)
        args = (h, kernel, stride, padding, 1, ceil)
        found = find_windows(functional.max_pool1d, args, {})
        assert found is not None
        pool = partial(functional.max_pool1d, **dict(zip(PARAMETERS, args[1:], strict=True)))
        out = smoothed_max(h, torch.full((1, 1, 1), 1e-6), pool, found[1])
        assert torch.equal(out, functional.max_pool1d(*args)), (size, args[1:])


def test_rows_without_smoothing_are_the_call_itself_bit_for_bit() -> None:
    """Also the gradient, with ties and overlapping windows."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randint(0, 3, (4, 2, 9, 9), generator=generator).float().requires_grad_()
    dlogits = torch.randn(4, 2, 4, 4, generator=generator)
    d = torch.tensor([0, 0.5, 0, 1e-30]).view(4, 1, 1, 1)
    out, exact = pooled(h, d, 3, 2), functional.max_pool2d(h, 3, 2)
    (gradient,) = torch.autograd.grad(out, h, dlogits)
    (expected,) = torch.autograd.grad(exact, h, dlogits)
    assert torch.equal(out[::2], exact[::2])
    assert torch.equal(gradient[::2], expected[::2])
    assert torch.equal(out[3], exact[3])  # no underflow or overflow on the way
    assert gradient.isfinite().all()
    assert (out[1] >= exact[1]).all()
    assert (out[1] - exact[1]).mean() > 0.05


@pytest.mark.parametrize(("kernel", "stride", "padding", "ceil"), WINDOWS)
def test_one_pooling_for_all_rows_and_a_log_sum_exp_for_the_smoothed_ones(
    kernel: Any, stride: Any, padding: Any, ceil: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where every row takes part in both, and as on the CPU; also one mixed row."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randint(0, 3, (4, 2, 8, 9), generator=generator).double().requires_grad_()
    d = torch.tensor([[0, 0], [0.5, 0.7], [0, 0.5], [0, 0]], dtype=torch.float64)[..., None, None]
    smoothed_rows, poolings = [], []
    log_sum_exp = pooling._log_sum_exp

    def watched(rows: Any, *rest: Any) -> Any:
        smoothed_rows.append(len(rows))
        return log_sum_exp(rows, *rest)

    def pool(rows: Any) -> Any:
        poolings.append(len(rows))
        return functional.max_pool2d(rows, kernel, stride, padding, ceil_mode=ceil)

    monkeypatch.setattr(pooling, "_log_sum_exp", watched)
    _, windows = find_windows(functional.max_pool2d, (h, kernel, stride, padding, 1, ceil), {})
    apart = smoothed_max(h, d, pool, windows)
    together = pooling._SmoothedMax.apply(h, TEMPERATURE * d, windows, pool, None, True)
    assert (smoothed_rows, poolings) == ([2, 4], [4, 4])
    exact = pool(h)
    dlogits = torch.randn(exact.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad(out, h, dlogits)[0] for out in (apart, together, exact)]
    for left, right, plain in ((apart, together, exact), gradients):
        torch.testing.assert_close(left, right, rtol=1e-14, atol=1e-14)
        for result in (left, right):
            assert torch.equal(result[::3], plain[::3])
            assert torch.equal(result[2, 0], plain[2, 0])
            assert not torch.equal(result[1], plain[1])
    assert smoothed_max(h, 0 * d, pool, windows).equal(exact)
    assert len(smoothed_rows) == 2


def test_infinities_and_nan_stay_in_their_windows() -> None:
    h = torch.zeros(1, 1, 4, 8)
    h[..., :2, :2] = -torch.inf
    h[..., 0, 2] = -torch.inf
    h[..., 0, 4] = torch.inf
    h[..., 0, 6] = torch.nan
    out = pooled(h, torch.ones(1, 1, 1, 1), 2)[0, 0]
    T = TEMPERATURE
    assert out[0, [0, 2]].tolist() == [-torch.inf, torch.inf]
    assert out[0, 3].isnan()
    torch.testing.assert_close(out[0, 1].item(), T * math.log(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(out[1], torch.full((4,), T * math.log(4)), rtol=1e-5, atol=0)


def test_half_precision_large_values_and_small_half_widths() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        h = (6e4 * torch.rand(2, 3, 4, 4)).to(dtype)
        for half_width in (0.0, 1e-30, 1e-3, 1.0):
            out = pooled(h, torch.full((2, 1, 1, 1), half_width, dtype=dtype), 2)
            assert out.dtype == dtype
            assert out.isfinite().all()
            torch.testing.assert_close(out, functional.max_pool2d(h, 2), rtol=1e-2, atol=1)


SPELLINGS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "nn.MaxPool2d": (nn.MaxPool2d(2), 2),
    "nn.MaxPool2d, ceil_mode": (nn.MaxPool2d(3, 2, ceil_mode=True), 2),
    "functional.max_pool2d": (lambda h: functional.max_pool2d(h, [2, 2], padding=1), 2),
    "by name": (lambda h: functional.max_pool2d(input=h, kernel_size=2, stride=None), 2),
    "torch.max_pool2d": (lambda h: torch.max_pool2d(h, [2]), 2),
    "torch.max_pool2d, empty stride": (lambda h: torch.max_pool2d(h, 2, []), 2),
    "nn.MaxPool1d": (nn.MaxPool1d(2), 1),
    "torch.max_pool1d": (lambda h: torch.max_pool1d(h, 3, 2, 1), 1),
    "nn.MaxPool3d": (nn.MaxPool3d(2), 3),
    "torch.max_pool3d": (lambda h: torch.max_pool3d(h, 2), 3),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_smoothed_with_the_scales_of_its_channels(spelling: str) -> None:
    call, dims = SPELLINGS[spelling]
    shape = (3, *(4,) * dims)

    def model(x: Any) -> Any:
        h = call((2 * x - 1) * 3)
        return torch.stack([h.flatten(1).sum(1), h.flatten(1).square().mean(1)], 1)

    oracle = TorchOracle(model, shape)
    assert oracle.kind == "convolutional"
    rng = np.random.default_rng(0)
    clean, x = (rng.random((3, math.prod(shape)), dtype=np.float32) for _ in range(2))
    slots = np.arange(3, dtype=np.int32)
    oracle.forward(clean, slots=slots, record_scales=np.ones(3, bool), grad=False)
    k = np.array([1.0, 0, 0.3], np.float32)
    logits = oracle.forward(x, k, slots)
    gradient = oracle.backward(np.ones((3, 2), np.float32))
    plain = TorchOracle(model, shape, survey=False)
    assert plain.kind == "smooth"
    exact = plain.forward(x)
    exact_gradient = plain.backward(np.ones((3, 2), np.float32))
    assert np.array_equal(logits[1], exact[1])
    assert np.array_equal(gradient[1], exact_gradient[1])
    assert (logits[::2, 0] > exact[::2, 0] + 1e-3).all()
    for row in (0, 2):  # alone, recorded beside nothing
        alone = TorchOracle(model, shape)
        one = np.zeros(1, np.int32)
        alone.forward(clean[row : row + 1], slots=one, record_scales=np.ones(1, bool), grad=False)
        single = alone.forward(x[row : row + 1], k[row : row + 1], one)
        np.testing.assert_allclose(single[0], logits[row], rtol=1e-5)
    h = 6 * torch.tensor(clean).view(3, *shape) - 3
    expected = h.flatten(2).std(2, correction=0)
    torch.testing.assert_close(smoothing_scale(h), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "call",
    [
        lambda h: functional.max_pool2d(h, 2, dilation=2),
        lambda h: functional.max_pool2d(h[:, 0], 2),  # (B, H, W): read as channels of one image
        lambda h: functional.adaptive_max_pool2d(h, 4),  # windows that overlap
        lambda h: functional.avg_pool2d(h, 2),
        lambda h: functional.max_pool2d(h.transpose(0, 1), 2).transpose(0, 1),
    ],
)
def test_other_pooling_is_left_alone(call: Callable[[Any], Any]) -> None:
    def model(x: Any) -> Any:
        return call(x * 1).flatten(1)[:, :3]

    assert TorchOracle(model, (4, 6, 6)).kind == "smooth"


def test_pooling_of_which_the_indices_are_left_is_read() -> None:
    def model(x: Any) -> Any:
        return functional.max_pool2d(x * 1, 2, return_indices=True)[0].flatten(1)[:, :3]

    assert TorchOracle(model, (4, 6, 6)).kind == "convolutional"


def test_kind_of_networks_with_pooling() -> None:
    conv, pool = nn.Conv2d(1, 3, 3), nn.MaxPool2d(2)
    kinds = {"convolutional": nn.ReLU(), "saturating": nn.Tanh()}
    for kind, activation in kinds.items():
        network = nn.Sequential(conv, activation, pool, nn.Flatten()).eval()
        assert TorchOracle(network, (1, 8, 8)).kind == kind
    assert TorchOracle(nn.Sequential(conv, pool, nn.Flatten()), (1, 8, 8)).kind == "convolutional"
    dense = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    assert TorchOracle(dense, (1, 8, 8)).kind == "kinked"


@pytest.mark.parametrize(
    ("dims", "call"),
    [(1, functional.max_pool1d), (2, functional.max_pool2d), (3, functional.max_pool3d)],
)
def test_recomputed_pooling_is_smoothed(dims: int, call: Callable[..., Any]) -> None:
    checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint
    shape = (2, *(4,) * dims)

    def checkpointed(x: Any) -> Any:
        return checkpoint(lambda h: call(h * 2, 2), x, use_reentrant=False).flatten(1)

    assert TorchOracle(checkpointed, shape).kind == "convolutional"
    h = torch.zeros(1, *shape, requires_grad=True)
    out = call(h * 1, 2)
    with Recomputation() as recomputation:
        torch.autograd.grad(out.sum(), h)
    assert not recomputation.detected


def trained() -> Any:
    """A small network with overlapping pooling, trained on blobs of 10 x 10 pixels: (net, x, y)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    centers = torch.tensor([[2.0, 2.0], [2.0, 7.0], [7.0, 2.0], [7.0, 7.0]])
    grid = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij"), -1)
    y = torch.arange(400) % 4
    center = centers[y] + torch.randn(400, 2)
    x = torch.exp(-(grid - center[:, None, None]).square().sum(-1) / 4)
    x = (x + 0.2 * torch.rand(400, 10, 10)).clamp(0, 1)[:, None]
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    torch.set_num_threads(threads)
    right = network(x).argmax(1) == y
    return network, x[right][:40].numpy(), y[right][:40].numpy()


def test_smoothed_pooling_lowers_distortions_and_evaluations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "GRAPH_WEIGHTS", 0)  # through torch
    network, x, y = trained()
    assert len(x) == 40
    targets = (y + 1) % 4
    results = {}
    for smoothed in (True, False):
        with monkeypatch.context() as patch:
            if not smoothed:
                patch.setattr(smoothing, "find_windows", lambda *_: None)
            results[smoothed] = advcore.minimize_distortion(network, x, targets=targets)
            assert results[smoothed].success.all()
    mean = {key: float(result.distortion.mean()) for key, result in results.items()}
    evaluations = {key: float(result.evaluations.mean()) for key, result in results.items()}
    assert mean[True] < 0.995 * mean[False]  # 0.985
    assert evaluations[True] < 0.8 * evaluations[False]  # 0.73


@pytest.mark.parametrize("counts", [2, (4, 2), (None, 3)])
def test_adaptive_pooling_is_that_of_its_windows(counts: Any) -> None:
    """Windows of unequal sizes, and indices, are left alone."""
    h = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    d = torch.rand(2, 3, 1, 1)
    call = find_activation(functional.adaptive_max_pool2d, (h, counts), {})
    assert call is not None
    exact = functional.adaptive_max_pool2d(h, counts)
    kernel = [size // count for size, count in zip(h.shape[2:], exact.shape[2:], strict=True)]
    torch.testing.assert_close(call.smoothed(h, d), pooled(h, d, kernel))
    assert torch.equal(call.smoothed(h, 0 * d), exact)
    assert find_activation(functional.adaptive_max_pool2d, (h, 5), {}) is None
    assert find_activation(functional.adaptive_max_pool2d, (h, 2, True), {}) is None
    oracle = TorchOracle(lambda x: functional.adaptive_max_pool2d(x, (4, 1)).flatten(1), (1, 8, 6))
    assert oracle.smoothed == "1 max-pooling"
