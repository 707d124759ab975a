"""Norms of layers and networks, against explicit matrices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")

import torch
from support.small_experiments import matrix_of
from torch import Tensor, nn

from advcore.experiments.parts.lipschitz import (
    Layer,
    bounds,
    describe,
    fourier_bound,
    growth,
    layers_of,
    lipschitz,
    parts_bound,
    response,
    without_bias,
)
from advcore.experiments.parts.spectral import (
    circular_norm,
    jacobian_norm,
    largest_singular_value,
    operator_norm,
)
from advcore.models import pretrained
from advcore.models.pretrained import Expand
from advcore.network import Normalize

TIGHT = 1e-9


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().requires_grad_(False)


# ---- norms of operators against numpy's singular values of explicit matrices


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),  # wide: more outputs than inputs
        (lambda: nn.Conv2d(3, 4, 5, stride=2, padding=2), (3, 9, 9)),
        (lambda: nn.Conv2d(2, 3, (3, 2), stride=3), (2, 11, 8)),
        (lambda: nn.Conv2d(2, 5, 11, stride=4, padding=2), (2, 16, 16)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=1), (4, 7, 7)),
        (lambda: nn.Conv2d(5, 3, 1, padding=1), (5, 4, 4)),
        (lambda: Expand(3, 2, 4), (3, 5, 6)),
        (lambda: nn.Linear(7, 4), (7,)),
        (lambda: nn.Linear(4, 7), (4,)),
        (lambda: nn.AdaptiveAvgPool2d(2), (2, 6, 4)),
        (lambda: nn.AdaptiveAvgPool2d(3), (2, 3, 3)),
        (lambda: Normalize((0.1, 0.2), (0.5, 2.0)), (2, 3, 3)),
        (pretrained.ReverseChannels, (3, 2, 2)),
    ],
)
def test_norm_of_a_layer_is_that_of_its_matrix(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    module = seeded(make)
    norm = lipschitz(Layer("", module, (1, *shape)), tolerance=TIGHT)
    expected = np.linalg.norm(matrix_of(module.double(), shape), 2)
    assert norm.value == pytest.approx(expected, rel=1e-6)  # 1 / 2.0 in float32 and the like
    if isinstance(module, Normalize):
        return  # affine by its mean
    iterated = operator_norm(without_bias(module), (1, *shape), tolerance=TIGHT)
    assert iterated.value == pytest.approx(expected, rel=1e-7)
    assert iterated.iterations > 0


def test_norms_of_zero_rank_one_and_equal_singular_values() -> None:
    assert operator_norm(torch.zeros_like, (1, 4)).value == 0
    column = torch.arange(4, dtype=torch.float64)
    norm = operator_norm(lambda x: x[:, :1] * column, (1, 3))
    assert norm.value == pytest.approx(math.sqrt(14), rel=1e-12)
    turned = operator_norm(lambda x: -2 * x.flip(1), (1, 50))
    assert turned.value == pytest.approx(2, rel=1e-12)
    assert turned.iterations == 1


def test_residual_and_iterations_tell_how_far_it_came() -> None:
    diagonal = torch.linspace(0.5, 1, 400, dtype=torch.float64)
    short = operator_norm(lambda x: diagonal * x, (1, 400), limit=7)
    assert short.iterations == 7
    assert short.residual > 1e-3
    assert short.value < 0.999
    loose, tight = (
        operator_norm(lambda x: diagonal * x, (1, 400), tolerance=tolerance)
        for tolerance in (1e-3, 1e-8)
    )
    assert loose.iterations < tight.iterations
    assert loose.residual <= 1e-3
    assert tight.residual <= 1e-8
    assert abs(loose.value - 1) < 1e-3
    assert abs(tight.value - 1) < 1e-12


def test_largest_singular_values_of_many_matrices() -> None:
    torch.manual_seed(0)
    for shape in ((6, 3, 5), (6, 5, 3)):
        matrices = torch.randn(shape, dtype=torch.complex128)
        expected = np.linalg.svd(matrices.numpy(), compute_uv=False)[:, 0]
        np.testing.assert_allclose(largest_singular_value(matrices), expected, rtol=1e-13)


def test_known_norms_of_kernels() -> None:
    identity = seeded(lambda: nn.Conv2d(3, 3, 3, padding=1, bias=False))
    weight = torch.zeros(3, 3, 3, 3)
    weight[range(3), range(3), 1, 1] = 1
    identity.load_state_dict({"weight": weight})
    layer = Layer("", identity, (1, 3, 8, 8))
    assert lipschitz(layer, tolerance=TIGHT).value == pytest.approx(1, rel=1e-12)
    assert fourier_bound(layer) == pytest.approx(1, rel=1e-12)
    average = seeded(lambda: nn.Conv2d(1, 1, 3, padding=1, bias=False))
    average.load_state_dict({"weight": torch.full((1, 1, 3, 3), 1 / 9)})
    layer = Layer("", average.double(), (1, 1, 8, 5))
    assert fourier_bound(layer) == pytest.approx(1, rel=1e-7)  # the weights are float32
    # zero padding makes it two tridiagonal matrices: (1 + 2 cos(pi / (n + 1))) / 3 along n pixels
    sides = [(1 + 2 * math.cos(math.pi / (n + 1))) / 3 for n in (8, 5)]
    assert lipschitz(layer, tolerance=TIGHT).value == pytest.approx(math.prod(sides), rel=1e-7)


# ---- the Fourier form


def circular(kernel: Tensor, stride: int) -> Callable[[Tensor], Tensor]:
    """Convolution on an image without border, by copying what lies on its other side."""

    def convolve(x: Tensor) -> Tensor:
        height, width = kernel.shape[2:]
        around = torch.nn.functional.pad(x, (0, width - 1, 0, height - 1), mode="circular")
        return torch.nn.functional.conv2d(around, kernel, stride=stride)

    return convolve


CIRCULAR = [
    ((4, 3, 3, 3), 1, (6, 7)),
    ((2, 3, 3, 2), 2, (8, 6)),
    ((3, 2, 5, 5), 3, (9, 6)),
    ((5, 2, 11, 11), 4, (12, 12)),
    ((2, 2, 1, 1), 2, (4, 4)),
]


@pytest.mark.parametrize(("size", "stride", "period"), CIRCULAR)
def test_fourier_form_is_exact_without_borders(
    size: tuple[int, ...], stride: int, period: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    kernel = torch.randn(size, dtype=torch.float64)
    shape = (size[1], *period)
    expected = np.linalg.norm(matrix_of(circular(kernel, stride), shape), 2)
    assert circular_norm(kernel, stride, period) == pytest.approx(expected, rel=1e-10)
    found = operator_norm(circular(kernel, stride), (1, *shape), tolerance=TIGHT)
    assert found.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("size", "stride", "period"), CIRCULAR)
def test_equation_5_as_printed_is_too_small_by_the_stride(
    size: tuple[int, ...], stride: int, period: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(size)
    full = np.fft.fft2(kernel, s=period)  # (D, C, P, Q)
    rows, columns = period[0] // stride, period[1] // stride
    largest = 0.0
    for i, j in itertools.product(range(rows), range(columns)):
        aliased = full[:, :, i::rows, j::columns].reshape(size[0], -1) / stride**2
        largest = max(largest, float(np.linalg.norm(aliased, 2)))
    exact = circular_norm(torch.from_numpy(kernel), stride, period)
    assert largest * stride == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (5, 2, 0), (7, 3, 2)])
def test_fourier_bound_is_above_and_closes_in_on_larger_images(
    size: int, stride: int, padding: int
) -> None:
    convolution = seeded(lambda: nn.Conv2d(2, 3, size, stride=stride, padding=padding))
    gaps = []
    for side in (9, 18, 36):
        layer = Layer("", convolution, (1, 2, side, side))
        bound = fourier_bound(layer)
        assert bound is not None
        gaps.append(bound / lipschitz(layer, tolerance=1e-6).value - 1)
    assert min(gaps) > 0
    assert gaps[2] < gaps[0] / 3


def test_fourier_form_refuses_what_it_does_not_cover() -> None:
    with pytest.raises(ValueError, match="multiples of 2"):
        circular_norm(torch.zeros(1, 1, 3, 3), 2, (7, 8))
    with pytest.raises(ValueError, match="hold the kernel"):
        circular_norm(torch.zeros(1, 1, 5, 5), 2, (4, 8))
    for module in (
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding_mode="circular"),
        nn.Conv2d(2, 2, 3, stride=(1, 2)),
    ):
        with pytest.raises(TypeError, match="no Fourier form"):
            fourier_bound(Layer("", module, (1, 2, 8, 8)))
    assert fourier_bound(Layer("", nn.Conv2d(2, 2, 1), (1, 2, 8, 8))) is None
    assert fourier_bound(Layer("", nn.Linear(2, 2), (1, 2))) is None


def test_norms_of_the_halves_of_an_expand() -> None:
    expand = seeded(lambda: Expand(3, 2, 4)).double()
    layer = Layer("", expand, (1, 3, 6, 6))
    halves = [
        np.linalg.norm(matrix_of(half, (3, 6, 6)), 2)
        for half in (expand.expand1x1, expand.expand3x3)
    ]
    together = parts_bound(layer, tolerance=TIGHT)
    assert together == pytest.approx(math.hypot(*halves), rel=1e-9)
    assert max(halves) < lipschitz(layer, tolerance=TIGHT).value < together
    bound = fourier_bound(layer)
    assert bound is not None
    assert bound > lipschitz(layer, tolerance=TIGHT).value
    assert parts_bound(Layer("", nn.Linear(2, 2), (1, 2)), tolerance=TIGHT) is None


# ---- layers that are not linear


@pytest.mark.parametrize(
    ("size", "stride", "expected"), [(2, 2, 1), (3, 2, 2), (5, 2, 3), (3, 1, 3)]
)
def test_max_pooling_with_overlap_moves_points_apart(
    size: int, stride: int, expected: float
) -> None:
    pool = nn.MaxPool2d(size, stride)
    constant = lipschitz(Layer("", pool, (1, 1, 15, 15)), tolerance=TIGHT).value
    assert constant == expected
    reached = 0.0
    for row, column in itertools.product(range(15), repeat=2):  # one entry larger than all others
        x = torch.zeros(1, 1, 15, 15)
        x[..., row, column] = 1
        reached = max(reached, float((pool(2 * x) - pool(x)).norm()))
    assert reached == pytest.approx(expected)
    torch.manual_seed(0)
    x, r = torch.randn(2, 200, 1, 15, 15)
    moved = pool(x + r) - pool(x)
    assert bool((moved.flatten(1).norm(dim=1) <= constant * r.flatten(1).norm(dim=1)).all())


def test_constants_of_other_layers() -> None:
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    for module, expected in ((nn.Sigmoid(), 0.25), (nn.ReLU(), 1.0)):
        slopes = module(x).diff() / x.diff()
        constant = lipschitz(Layer("", module, (1, 4)), tolerance=TIGHT).value
        assert constant == expected
        assert float(slopes.max()) == pytest.approx(expected, rel=1e-6)
    for module in (nn.Tanh(), nn.MaxPool2d(2, dilation=2), nn.AdaptiveAvgPool2d(2)):
        with pytest.raises(TypeError, match=r"here: .* not known"):
            lipschitz(Layer("here", module, (1, 1, 5, 5)), tolerance=TIGHT)


# ---- whole networks


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(4, 6, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(6, 5)),
    )
    return network.requires_grad_(False)


def test_layers_have_names_and_shapes() -> None:
    layers = layers_of(small_network(), (1, 16, 16))
    assert [(layer.name, layer.shape) for layer in layers] == [
        ("conv1", (1, 1, 16, 16)),
        ("relu1", (1, 4, 8, 8)),
        ("pool1", (1, 4, 8, 8)),
        ("conv2", (1, 4, 3, 3)),
        ("sigmoid1", (1, 6, 1, 1)),
        ("flatten1", (1, 6, 1, 1)),
        ("fc1", (1, 6)),
    ]
    assert [describe(layers[index]) for index in (0, 2, 3, 6, 4)] == [
        "conv1, 1×3×3×4, stride 2",
        "pool1, 3×3, stride 2",
        "conv2, 4×3×3×6",
        "fc1, 6×5",
        "sigmoid1",
    ]


def test_jacobian_norm() -> None:
    network = small_network().double()
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    jacobian = torch.func.jacrev(network)(image).reshape(5, 256)
    expected = np.linalg.norm(jacobian.numpy(), 2)
    assert jacobian_norm(network, image, tolerance=TIGHT) == pytest.approx(expected, rel=1e-9)


def test_response_is_what_the_network_does_and_stays_below_the_bounds() -> None:
    network = small_network()
    rng = np.random.default_rng(0)
    images = rng.random((700, 1, 16, 16), dtype=np.float32)  # more than go through at once
    moved = images + 0.1 * rng.standard_normal(images.shape).astype(np.float32)
    targets = rng.integers(0, 5, 700)
    layers = layers_of(network, (1, 16, 16))
    known = bounds(layers, tolerance=TIGHT)
    seen = response(network, images, moved, targets, bound=float(known.product[-1]), jacobians=3)
    assert known.product[-1] == pytest.approx(np.prod(known.constant))
    for ratios in (seen.grown, seen.noise):
        assert ratios.shape == (7, 700)
        assert (ratios <= known.product[:, None]).all()
    assert not np.allclose(seen.grown, seen.noise, rtol=0.01)
    distance = np.linalg.norm((moved - images).reshape(700, -1), axis=1)
    np.testing.assert_allclose(seen.found, distance, rtol=1e-5)
    before, after = (network(torch.from_numpy(x)).numpy() for x in (images, moved))
    change = np.linalg.norm(after - before, axis=1)
    np.testing.assert_allclose(seen.grown[-1], change / distance, rtol=1e-3)
    leads = before.max(1) - before[np.arange(700), targets]
    expected = leads / np.sqrt(2) / known.product[-1]
    np.testing.assert_allclose(seen.excluded, expected, rtol=1e-3, atol=1e-9)
    assert seen.jacobian.shape == (3,)
    assert (seen.jacobian <= known.product[-1]).all()


def test_growth_of_a_linear_chain() -> None:
    double = nn.Conv2d(1, 1, 1, bias=False)
    double.load_state_dict({"weight": torch.full((1, 1, 1, 1), 2.0)})
    layers = [Layer("a", double, (1, 1, 2, 2)), Layer("b", double, (1, 1, 2, 2))]
    with torch.inference_mode():
        ratios = growth(layers, torch.zeros(3, 1, 2, 2), torch.rand(3, 1, 2, 2))
    np.testing.assert_allclose(ratios, [[2, 2, 2], [4, 4, 4]], rtol=1e-6)
