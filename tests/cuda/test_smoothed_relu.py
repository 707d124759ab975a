"""The fused kernel of the smoothed ReLU, in Triton's interpreter, against torch's operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from support.kernel_cases import interpreter, smoothed_relu

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from advcore.kernels import smoothed_relu as kernels  # noqa: E402

from advcore.oracles import smoothed_relu as oracle  # noqa: E402

Call = Callable[..., Any]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    with interpreter() as function:
        yield function


def random(*shape: int, seed: int = 0, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def widths(rows: int, channels: int, dims: int, dtype: Any = torch.float32) -> Any:
    """Half-widths (B, C or 1, 1, ...), 0 in every second row."""
    d = random(rows, channels, seed=1, dtype=torch.float64).abs() + 0.05
    d[::2] = 0
    return d.to(dtype).view(rows, channels, *(1,) * (dims - 2))


def test_half_widths_of_a_larger_table(call: Call) -> None:
    table = random(4, 17).abs()
    assert_same(call, random(4, 6, 5), table[:, 3:9, None], 0.0)
    assert_same(call, random(4, 6, 5), table[:, 3:4, None], 0.0)
    assert_same(call, random(4, 6, 5), table[:, 3:15:2, None], 0.0)


def assert_same(
    call: Call, h: Any, d: Any, slope: float, inplace: bool = False, taken: bool = True
) -> None:
    """Compare value and gradient; they are the same bit for bit where the slope is 0.

    Types of 16 bits are rounded once by the kernel, and after each operator by torch.
    """
    gradient = random(*h.shape, seed=2, dtype=h.dtype)
    arguments = (h, d, slope, gradient, inplace)
    expected, expected_gradient, _ = smoothed_relu(*arguments, False)
    result, result_gradient, by_kernel = call(smoothed_relu, *arguments, True)
    assert by_kernel == taken
    half = h.dtype in (torch.float16, torch.bfloat16)
    tolerance = 4 * torch.finfo(h.dtype).eps if half or slope else 0.0
    for ours, theirs in ((result, expected), (result_gradient, expected_gradient)):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
    if taken and kernels._order(h) is not None:
        assert result.stride() == expected.stride() == h.stride()


@pytest.mark.parametrize("slope", [0.0, 0.1, -0.5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradient_of_every_type(call: Call, dtype: Any, slope: float) -> None:
    h = 2 * random(4, 3, 5, 7, dtype=dtype)
    for channels in (1, 3):
        assert_same(call, h, widths(4, channels, 4, dtype), slope)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 1), (1, 1), (5, 100), (2, 2500), (2, 3, 5), (2, 3, 40, 33), (2, 3, 2, 3, 4)]
)
def test_shapes(call: Call, shape: tuple[int, ...], inplace: bool) -> None:
    for channels in {1, shape[1]}:
        assert_same(call, random(*shape), widths(shape[0], channels, len(shape)), 0.0, inplace)


def layouts() -> dict[str, Any]:
    h = random(4, 6, 5, 8)
    return {
        "channels_last": h.contiguous(memory_format=torch.channels_last),
        "channels_last_3d": random(2, 3, 4, 5, 2).contiguous(memory_format=torch.channels_last_3d),
        "slice of channels": h[:, 1:4],
        "every second column": h[..., ::2],
        "transposed": h.transpose(2, 3),
        "batch inside": h.transpose(0, 1),
        "offset": random(4 * 6 * 10 + 1)[1:].view(4, 6, 10),
        "one position": random(4, 6, 1, 1).contiguous(memory_format=torch.channels_last),
        "expanded": random(4, 1, 5, 1).expand(4, 6, 5, 8),
    }


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", layouts())
def test_layouts(call: Call, layout: str, inplace: bool) -> None:
    h = layouts()[layout]
    assert_same(call, h, widths(len(h), h.shape[1], h.dim()), 0.0, inplace)


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edges(call: Call, dtype: Any, slope: float) -> None:
    inf, nan, tiny = torch.inf, torch.nan, torch.finfo(dtype).tiny
    values = [0.0, -0.0, tiny, -tiny, 1.0, -1.0, 3e38, -3e38, inf, -inf, nan]
    h = torch.tensor(values, dtype=dtype).repeat(8, 1)
    d = torch.tensor([0, tiny / 4, 1e-30, 1.0, 1e30, 3e38, inf, nan], dtype=dtype).view(8, 1)
    assert_same(call, h, d, slope)
    exact, _ = kernels.smoothed_relu_forward_reference(h[:1], d[:1], slope)
    plain = torch.nn.functional.leaky_relu(h[:1], slope) if slope else h[:1].relu()
    torch.testing.assert_close(exact, plain, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("h", "d"),
    [
        (random(0, 3, 4), torch.zeros(0, 3, 1)),  # no rows
        (random(2, 3, 0), torch.ones(2, 3, 1)),  # no positions
        (random(5), torch.tensor(0.7)),  # one dimension
        (random(2, 3, 4), torch.tensor(0.7)),  # one half-width
        (random(2, 3, 4), random(2, 3, 4).abs()),  # one for each number
    ],
)
def test_other_shapes_are_left_to_torch(call: Call, h: Any, d: Any) -> None:
    assert_same(call, h, d, 0.0, taken=False)


def test_a_kernel_that_fails_or_errs_gives_way_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no machine code")

    def wrong(h: Any, d: Any, slope: float) -> Any:
        out, u = kernels.smoothed_relu_forward_reference(h, d, slope)
        return out + 1e-3, u

    cpu = torch.device("cpu")
    for forward, message in ((broken, "no machine code"), (wrong, "not close")):
        monkeypatch.setattr(kernels, "forward", forward)
        oracle._checked_kernels.cache_clear()
        with pytest.warns(RuntimeWarning, match=f"(?s)smoothed ReLU fails on cpu.*{message}"):
            assert oracle._checked_kernels(cpu, torch.float32) is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            assert oracle._checked_kernels(cpu, torch.float32) is None
    monkeypatch.setattr(kernels, "forward", kernels.smoothed_relu_forward_reference)
    monkeypatch.setattr(kernels, "backward", kernels.smoothed_relu_backward_reference)
    oracle._checked_kernels.cache_clear()
    assert oracle._checked_kernels(cpu, torch.float32) is kernels
    oracle._checked_kernels.cache_clear()


def test_on_the_cpu_torch_computes() -> None:
    assert oracle._kernels(torch.zeros(2, 3)) is None
    gpu = SimpleNamespace(is_cuda=True, device="a GPU", dtype=torch.float32)
    oracle._checked_kernels.cache_clear()
    with pytest.warns(RuntimeWarning, match="fails on a GPU"):
        assert oracle._kernels(gpu) is None
    oracle._checked_kernels.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(dtype: Any, inplace: bool) -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    assert oracle._checked_kernels(gpu, dtype) is kernels

    def there(function: Any, *arguments: Any) -> Any:
        *tensors, fused = (a.to(gpu) if isinstance(a, torch.Tensor) else a for a in arguments)
        out, gradient, taken = function(*tensors, fused)
        return out.cpu(), gradient.cpu(), taken

    for h in layouts().values():
        for slope in (0.0, 0.1):
            assert_same(
                there, h.to(dtype), widths(len(h), h.shape[1], h.dim(), dtype), slope, inplace
            )
