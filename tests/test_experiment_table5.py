"""Table 5 at a tiny size; its norms against explicit matrices, and the networks of ImageNet."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import socket
import urllib.error
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")

import torch
from torch import Tensor, nn

from advcore import data, pretrained
from advcore.experiments import table5
from advcore.experiments.attacks import adversarial_set
from advcore.experiments.lipschitz import (
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
from advcore.experiments.run import Run
from advcore.experiments.spectral import (
    circular_norm,
    jacobian_norm,
    largest_singular_value,
    operator_norm,
)
from advcore.experiments.tables import Outcome, Table
from advcore.pretrained import ALEXNET_SIDE, SQUEEZENET_SIDE, Expand, alexnet, squeezenet1_0
from advcore.torch_modules import Normalize

needs_data = pytest.mark.skipif(
    not os.environ.get("ADVCORE_DATA"), reason="ADVCORE_DATA is not set"
)
TIGHT = 1e-9


def matrix_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine map's matrix without its offset, column by column."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    offset = function(torch.zeros(1, *shape, dtype=torch.float64))
    matrix: NDArray[np.float64] = (function(units) - offset).flatten(1).T.numpy()
    return matrix


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


# ---- the networks of ImageNet


@pytest.fixture(scope="module")
def random_alexnet() -> nn.Sequential:
    return alexnet(pretrained=False, seed=1)


def test_alexnet_is_torchvisions(random_alexnet: nn.Sequential) -> None:
    shapes = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
        "classifier.1": (4096, 9216),
        "classifier.4": (4096, 4096),
        "classifier.6": (1000, 4096),
    }
    state = random_alexnet.state_dict()
    assert list(state) == [f"{name}.{kind}" for name in shapes for kind in ("weight", "bias")]
    for name, shape in shapes.items():
        assert state[f"{name}.weight"].shape == shape
        assert state[f"{name}.bias"].shape == shape[:1]
    x = torch.rand(1, 3, ALEXNET_SIDE, ALEXNET_SIDE)
    scaled = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    features = random_alexnet.get_submodule("features")(scaled)
    assert features.shape == (1, 256, 6, 6)
    logits = random_alexnet.get_submodule("classifier")(features.flatten(1))
    assert torch.equal(random_alexnet(x), logits)


def test_alexnets_layers_have_the_papers_names_and_their_norms(
    random_alexnet: nn.Sequential,
) -> None:
    layers = {
        layer.name: layer for layer in layers_of(random_alexnet, (3, ALEXNET_SIDE, ALEXNET_SIDE))
    }
    assert set(table5.PUBLISHED) <= set(layers)
    assert layers["conv2"].shape == (1, 64, 27, 27)
    assert layers["conv3"].shape == (1, 192, 13, 13)
    pools = [lipschitz(layers[f"pool{k}"], tolerance=1e-4).value for k in (1, 2, 3)]
    assert pools == [2, 2, 2]
    assert lipschitz(layers["avgpool"], tolerance=1e-4).value == 1
    for name in ("conv1", "conv2"):
        norm = lipschitz(layers[name], tolerance=1e-2)
        bound = fourier_bound(layers[name])
        assert bound is not None
        assert 1 < bound / norm.value < 1.03
    weight = random_alexnet.get_parameter("classifier.6.weight").double()
    top = lipschitz(layers["fc3"], tolerance=1e-4).value
    found = operator_norm(lambda x: x @ weight.T, (1, 4096), tolerance=1e-8)
    assert top == pytest.approx(found.value, rel=1e-9)


def test_alexnet_without_file_and_network_says_so_and_leaves_the_timeout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited = []

    def unreachable(*_: Any, **options: Any) -> None:
        assert options["check_hash"]
        waited.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    before = socket.getdefaulttimeout()
    with pytest.raises(pretrained.Unavailable, match=r"no such host; \$ADVCORE_DATA/models"):
        alexnet()
    assert waited == [pretrained._TIMEOUT]
    assert socket.getdefaulttimeout() == before


def test_alexnets_weights_come_from_the_file_that_has_the_hash_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    stored = tmp_path / "weights"
    torch.save({"a": torch.arange(3)}, stored)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "ALEXNET_URL", f"https://none/alexnet-{digest[:8]}.pth")
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    stored.rename(tmp_path / "models" / f"alexnet-{digest[:8]}.pth")
    assert pretrained._alexnet_weights()["a"].tolist() == [0, 1, 2]
    (tmp_path / "models" / f"alexnet-{digest[:8]}.pth").write_bytes(b"another")
    with pytest.raises(ValueError, match="not the published file"):
        pretrained._alexnet_weights()


def test_squeezenet_without_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    with pytest.raises(pretrained.Unavailable, match="ADVCORE_DATA is not set"):
        squeezenet1_0()
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    with pytest.raises(pretrained.Unavailable, match=r"squeezenet_v1_0\.npz does not exist"):
        squeezenet1_0()
    (tmp_path / "imagenet" / "samples").mkdir(parents=True)
    (tmp_path / "imagenet" / "squeezenet_v1_0.npz").write_bytes(b"no network")
    with pytest.raises(ValueError, match="not the published file"):
        squeezenet1_0()
    with pytest.raises(pretrained.Unavailable, match="no pictures"):
        pretrained.imagenet_samples(SQUEEZENET_SIDE)


def test_squeezenet_has_the_published_shapes() -> None:
    layers = {
        layer.name: layer for layer in layers_of(squeezenet1_0(pretrained=False), (3, 227, 227))
    }
    assert layers["pool1"].shape == (1, 96, 111, 111)
    assert layers["fire2.squeeze1x1"].shape == (1, 96, 55, 55)
    assert layers["fire5.squeeze1x1"].shape == (1, 256, 27, 27)
    assert layers["fire9.squeeze1x1"].shape == (1, 512, 13, 13)
    assert layers["mean"].shape == (1, 1000, 15, 15)
    assert lipschitz(layers["mean"], tolerance=1).value == pytest.approx(1 / 15)


@needs_data
def test_squeezenet_knows_the_sample_pictures() -> None:
    images, labels = pretrained.imagenet_samples(SQUEEZENET_SIDE)
    assert images.shape == (20, 3, 227, 227)
    assert images.min() == 0
    assert images.max() == 1
    with torch.inference_mode():
        ranked = squeezenet1_0()(torch.from_numpy(images)).argsort(1, descending=True).numpy()
    assert (ranked[:, 0] == labels).sum() == 15
    assert (ranked[:, :5] == labels[:, None]).any(1).sum() == 18


@needs_data
def test_squeezenet_fires_keep_the_channels_apart() -> None:
    path = Path(os.environ["ADVCORE_DATA"]) / "imagenet" / "squeezenet_v1_0.npz"
    network = squeezenet1_0()
    x = torch.rand(1, 512, 4, 4)
    squeezed = network.get_submodule("fire9.squeeze1x1")(x)
    both = network.get_submodule("fire9.expand")(squeezed)[0].numpy()
    with np.load(path) as stored:
        weight, bias = (
            stored["fire9_squeeze1x1.weight"][:, :, 0, 0],
            stored["fire9_squeeze1x1.bias"],
        )
        expected = np.einsum("dc,cij->dij", weight, x[0].numpy()) + bias[:, None, None]
        np.testing.assert_allclose(squeezed[0].numpy(), expected, rtol=1e-3, atol=1e-4)
        ones = np.einsum("dc,cij->dij", stored["fire9_expand1x1.weight"][:, :, 0, 0], expected)
        ones += stored["fire9_expand1x1.bias"][:, None, None]
        middle = np.einsum("dcuv,cuv->d", stored["fire9_expand3x3.weight"], expected[:, :3, :3])
        middle += stored["fire9_expand3x3.bias"]
    np.testing.assert_allclose(both[:256], ones, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(both[256:, 1, 1], middle, rtol=1e-3, atol=1e-4)


# ---- the experiment


@pytest.fixture(scope="module")
def run(experiments_folder: Path) -> Run:
    return Run(experiments_folder, scale="tiny", seeds=1, dataset="embedded")


@pytest.fixture(scope="module")
def outcome(run: Run) -> Outcome:
    return table5.run(run)


def value(table: Table, row: str, column: str) -> float:
    cell = table.cell(row, column)
    assert cell is not None
    return cell.mean


def test_table5_has_the_norms_of_the_trained_networks(run: Run, outcome: Outcome) -> None:
    tables = {table.name: table for table in outcome.tables}
    for name, (model, decay) in table5.MNIST.items():
        network = run.trained([run.recipe(model, 0, decay=decay)])[0].model
        dense = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        table = tables["table5_" + table5_slug(name)]
        for index, layer in enumerate(dense, 1):
            row = f"fc{index}, {layer.in_features}×{layer.out_features}"
            norm = np.linalg.norm(layer.weight.double().numpy(), 2)
            assert value(table, row, "Lipschitz constant") == pytest.approx(norm, rel=1e-9)
        product = math.prod(value(table, row, "Lipschitz constant") for row in table.rows)
        assert value(tables["table5_networks"], name, "bound") == pytest.approx(product, rel=1e-9)
        for row in table.rows:
            assert value(table, row, "largest growth") <= value(table, row, "product so far")
    assert tables["table5_fc100_100_10"].rows[1::2] == ["sigmoid1", "sigmoid2"]
    convolutions = [row for row in tables["table5_smallcnn"].rows if row.startswith("conv")]
    assert len(convolutions) == 4
    for row in convolutions:
        norm = value(tables["table5_smallcnn"], row, "Lipschitz constant")
        assert 1 < value(tables["table5_smallcnn"], row, "Fourier bound") / norm < 1.2


def test_table5_bounds_hold_for_the_adversarial_examples(run: Run, outcome: Outcome) -> None:
    networks = outcome.tables[-1]
    assert networks.rows == list(table5.MNIST)
    for name, (model, decay) in table5.MNIST.items():
        network = run.trained([run.recipe(model, 0, decay=decay)])[0]
        count = 12 if name == "SmallCNN" else 60
        made = adversarial_set(run, network, split="test", count=count)
        kept = made.success & (made.rms > 0)
        x, moved, targets = (a[kept] for a in (made.images, made.adversarial, made.targets))
        before, after = (network.model(torch.from_numpy(part)).numpy() for part in (x, moved))
        ratios = np.linalg.norm(after - before, axis=1) / np.linalg.norm(moved - x, axis=1)
        grown = value(networks, name, "growth, adversarial")
        assert grown == pytest.approx(ratios.max(), rel=1e-4)
        bound = value(networks, name, "bound")
        assert grown < bound
        assert value(networks, name, "Jacobian") < bound
        assert value(networks, name, "growth, noise") < grown
        assert value(networks, name, "distortion found") == pytest.approx(
            made.rms[kept].mean(), rel=1e-5
        )
        leads = before.max(1) - before[np.arange(len(x)), targets]
        excluded = leads / (math.sqrt(2) * bound * 28)
        assert (excluded < made.rms[kept]).all()
        assert value(networks, name, "distortion excluded") == pytest.approx(
            excluded.mean(), rel=1e-4
        )


def test_table5_says_what_it_leaves_out_and_is_written(outcome: Outcome, tmp_path: Path) -> None:
    text = "\n".join(outcome.remarks)
    assert "**AlexNet** is not part of the scale 'tiny'" in text
    assert "conv1 2.75" in text
    assert "second hand" in text
    assert not any(table.compared for table in outcome.tables)
    assert [figure.name for figure in outcome.figures] == ["table5_growth"]
    outcome.write(tmp_path)
    assert Outcome.read(tmp_path / "table5.json").tables == outcome.tables
    assert (tmp_path / "table5_growth.png").stat().st_size > 10_000


def tiny_imagenet() -> nn.Sequential:
    """Five convolutions and three dense layers, as AlexNet, and an `Expand`."""
    torch.manual_seed(0)
    channels = [3, 4, 4, 4, 4, 4]
    convolutions = [
        nn.Conv2d(a, b, 3, stride=2 if a == 3 else 1, padding=1)
        for a, b in itertools.pairwise(channels)
    ]
    network = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*convolutions, nn.MaxPool2d(3, 2)),
            expand=Expand(4, 2, 2),
            tail=nn.Sequential(
                *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 50), nn.ReLU()),
                *(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1000)),
            ),
        )
    )
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):  # else the biases decide alone
            nn.init.zeros_(part.bias)
            nn.init.normal_(part.weight, std=2 / math.sqrt(part.weight[0].numel()))
    return network.eval().requires_grad_(False)


def test_table5_with_networks_of_imagenet(
    run: Run, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> nn.Sequential:
        raise pretrained.Unavailable("no such host")

    def pictures(side: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        assert side == 16
        rng = np.random.default_rng(0)
        return rng.random((5, 3, side, side), dtype=np.float32), np.arange(5)

    def runner_up(labels: NDArray[np.int64], *, classes: int, seed: int) -> NDArray[np.int64]:
        if classes == 10:
            return random_targets(labels, classes=classes, seed=seed)
        images = torch.from_numpy(pictures(16)[0][: len(labels)])
        return tiny_imagenet()(images).argsort(1)[:, -2].numpy()

    random_targets = data.random_targets  # of 1,000 classes it would hardly find one to reach
    monkeypatch.setattr(data, "random_targets", runner_up)
    names = (table5.ALEXNET, table5.SQUEEZENET)
    settings = table5.Settings(60, 12, 2, names, 3, 1e-4)
    monkeypatch.setitem(table5.SETTINGS, "tiny", settings)
    monkeypatch.setattr(pretrained, "imagenet_samples", pictures)
    monkeypatch.setattr(
        table5,
        "IMAGENET",
        {table5.ALEXNET: (tiny_imagenet, 16, "tiny"), table5.SQUEEZENET: (absent, 16, "absent")},
    )
    found = table5.run(run)
    table = found.tables[0]
    assert table.name == "table5_alexnet"
    told = {cell.row.partition(",")[0]: cell.published for cell in table.cells if cell.published}
    assert told == table5.PUBLISHED
    stride = next(row for row in table.rows if row.startswith("conv1"))
    assert stride == "conv1, 3×3×3×4, stride 2"
    weight = tiny_imagenet().get_submodule("features.0")
    expected = np.linalg.norm(matrix_of(weight.double(), (3, 16, 16)), 2)
    assert value(table, stride, "Lipschitz constant") == pytest.approx(expected, rel=1e-6)
    assert value(table, "pool1, 3×3, stride 2", "Lipschitz constant") == 2
    assert value(table, "expand, 4×3×3×4", "sqrt(a² + b²)") > value(
        table, "expand, 4×3×3×4", "Lipschitz constant"
    )
    networks = found.tables[-1]
    bound = value(networks, table5.ALEXNET, "bound")
    assert value(networks, table5.ALEXNET, "max-pooling as 1") == pytest.approx(bound / 2)
    assert value(networks, table5.ALEXNET, "growth, adversarial") < bound
    text = "\n".join(found.remarks)
    fourier = value(table, stride, "Fourier bound")
    assert f"{fourier / 2:.3g} instead of {fourier:.3g} for conv1 of AlexNet" in text
    assert "SqueezeNet 1.0** is left out: its weights are not to be had here (no such host)" in text
    assert "AlexNet 2." in text
    assert "**Concatenation.**" in text


def test_table5_without_pictures(
    run: Run, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = table5.Settings(60, 12, 2, (table5.ALEXNET,), 0, 1e-4)
    monkeypatch.setitem(table5.SETTINGS, "tiny", settings)
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    monkeypatch.setattr(table5, "IMAGENET", {table5.ALEXNET: (tiny_imagenet, 16, "tiny")})
    found = table5.run(run)
    assert found.tables[0].cell("fc1, 4×50", "largest growth") is None
    networks = found.tables[-1]
    assert networks.cell(table5.ALEXNET, "growth, adversarial") is None
    assert value(networks, table5.ALEXNET, "bound") > 0


@pytest.mark.mnist
@needs_data
def test_bounds_on_mnist(tmp_path: Path) -> None:
    run = Run(tmp_path, scale="tiny", seeds=1, dataset="mnist", workers=1)
    network = run.trained([run.recipe("fc100_100_10", 0, epochs=1, batch_size=256)])[0]
    made = adversarial_set(run, network, split="test", count=50)
    assert made.success.all()
    kept = made.rms > 0  # an image may be taken for its target as it is
    assert kept.sum() > 40
    layers = layers_of(network.model, (784,))  # type: ignore[arg-type]
    known = bounds(layers, tolerance=1e-6)
    seen = response(
        network.model,  # type: ignore[arg-type]
        *(made.images[kept], made.adversarial[kept], made.targets[kept]),
        bound=float(known.product[-1]),
        jacobians=5,
    )
    assert (seen.excluded < seen.found).all()
    assert (seen.grown <= known.product[:, None]).all()
    assert seen.jacobian.max() > seen.noise[-1].max()


def table5_slug(name: str) -> str:
    return name.lower().replace("-", "_")
