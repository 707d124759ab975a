"""Networks with sums, concatenations and overlapping windows: layers, twin, files, torch."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advcore.network import Convolution, Layer, Merge, Network
from advcore.reference.oracles import NumpyNetwork

SHAPE = (3, 9, 7)


def convolution(rng: Any, features: int, shape: tuple[int, ...], kernel: int, **fields: Any) -> Any:
    weight = rng.standard_normal((features, shape[0], kernel, kernel)) / np.sqrt(shape[0]) / kernel
    return Convolution(weight, 0.3 * rng.standard_normal(features), shape, **fields)  # type: ignore[arg-type]


def graph(
    activation: str = "relu", pooling: str = "max", ceil_mode: bool = False, stride: int = 2
) -> Network:
    """A stem with overlapping windows, a residual block, a concatenation and two layers."""
    rng = np.random.default_rng(5)
    stem = convolution(
        rng, 20, SHAPE, 3, padding=(1, 1), padding_value=0.2 * rng.standard_normal(3),
        activation=activation, pooling=pooling, window=(3, 3), pooling_stride=(stride, 1),
        pooling_padding=(1, 0), ceil_mode=ceil_mode,
    )  # fmt: skip
    shape = stem.out_shape
    first = convolution(rng, 20, shape, 3, padding=(1, 1), activation=activation)
    second = convolution(rng, 20, shape, 1)
    block = Merge((2, 0), (shape, shape), activation=activation)
    side = convolution(rng, 5, shape, 3, padding=(1, 1), source=0, activation=activation)
    image = convolution(
        rng, 3, SHAPE, 2, source=-1, pooling="mean", window=(9 - shape[1], 7 - shape[2]),
        pooling_stride=(1, 1),
    )  # fmt: skip
    whole = Merge(
        (3, 4, 5, 0), (shape, side.out_shape, image.out_shape, shape), "concatenate",
        rng.uniform(0.5, 1.5, 48), 0.2 * rng.standard_normal(48), activation,
        pooling="max", window=(2, 2),
    )  # fmt: skip
    hidden = Layer(0.1 * rng.standard_normal((11, whole.outputs)), rng.standard_normal(11), "tanh")
    return Network(
        [stem, first, second, block, side, image, whole, hidden,
         Layer(rng.standard_normal((4, 11)), rng.standard_normal(4))]
    )  # fmt: skip


def images(rows: int = 5) -> Any:
    return np.random.default_rng(1).random((rows, *SHAPE), dtype=np.float32)


CASES: dict[str, dict[str, Any]] = {
    "relu": {},
    "ceil": {"ceil_mode": True},
    "mean": {"pooling": "mean", "activation": "gelu"},
    "gaps": {"stride": 4, "activation": "tanh"},
}


@pytest.mark.parametrize("name", CASES)
def test_engine_torch_and_twin_agree(name: str) -> None:
    network, x = graph(**CASES[name]), images()
    seed = np.random.default_rng(2).standard_normal((len(x), 4)).astype(np.float32)
    rows = torch.from_numpy(x).double().requires_grad_(True)
    module = copy.deepcopy(network.to_torch()).double()
    z = module(rows)
    (expected,) = torch.autograd.grad(z, rows, torch.from_numpy(seed).double())
    gradient = expected.numpy().reshape(len(x), -1)
    np.testing.assert_allclose(network.forward(x), z.detach().numpy(), rtol=0, atol=5e-6)
    np.testing.assert_allclose(
        network.backward(seed), gradient, rtol=0, atol=5e-6 * np.abs(gradient).max()
    )
    np.testing.assert_allclose(
        network.forward_reordered(x.reshape(len(x), -1)), z.detach().numpy(), rtol=0, atol=5e-6
    )
    twin = NumpyNetwork(network)  # torch's bias has rounded padding values
    for i, row in enumerate(x.reshape(len(x), -1).astype(np.float64)):
        np.testing.assert_allclose(twin.forward(row), z[i].detach().numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            twin.backward(seed[i].astype(np.float64)), gradient[i], rtol=0, atol=1e-6
        )


def test_files_and_pickles_keep_every_bit(tmp_path: Path) -> None:
    network, x = graph(ceil_mode=True), images()
    network.save(tmp_path / "n.safetensors", {"licence": "none"})
    logits = network.forward(x)
    for other in (Network.load(tmp_path / "n.safetensors"), pickle.loads(pickle.dumps(network))):
        assert np.array_equal(other.forward(x), logits)
        assert repr(other) == repr(network)
    assert "of 2, 0" in repr(network)
    assert network.kind == "convolutional"
    assert not network.is_chain


def test_rows_do_not_depend_on_their_batch() -> None:
    network, x = graph(), images(6)
    seed = np.random.default_rng(2).standard_normal((6, 4)).astype(np.float32)
    logits, gradient = network.forward(x), network.backward(seed)
    for i in range(6):
        assert np.array_equal(network.forward(x[i : i + 1])[0], logits[i])
        assert np.array_equal(network.backward(seed[i : i + 1])[0], gradient[i])


def small_maps(height: int, width: int) -> Network:
    """A block whose images have few positions, and a layer that takes the first image beside it."""
    rng = np.random.default_rng(7)
    shape = (2, height, width)
    stem = convolution(rng, 6, shape, 3, stride=(2, 2), padding=(1, 1), activation="relu")
    low = convolution(
        rng, 20, stem.out_shape, 3, padding=(1, 1), padding_value=0.2 * rng.standard_normal(6),
        activation="relu", pooling="max", window=(3, 3), pooling_stride=(2, 2),
        pooling_padding=(1, 1),
    )  # fmt: skip
    first = convolution(rng, 20, low.out_shape, 3, padding=(1, 1), activation="tanh")
    block = Merge((2, 1), (first.out_shape, low.out_shape), activation="relu")
    side = convolution(rng, 7, stem.out_shape, 1, stride=(2, 2), source=0)
    whole = Merge((3, 4), (block.out_shape, side.out_shape), "concatenate", activation="relu")
    last = convolution(
        rng, 33, whole.out_shape, 2, padding=(1, 1), activation="relu", pooling="mean",
        window=(2, 2),
    )  # fmt: skip
    head = Layer(rng.standard_normal((4, last.outputs)), rng.standard_normal(4))  # type: ignore[arg-type]
    return Network([stem, low, first, block, side, whole, last, head])


@pytest.mark.parametrize("k", [0.0, 0.3])
@pytest.mark.parametrize("size", [(12, 10), (16, 12)])  # 30 and 48 positions behind the stem
def test_images_that_share_a_product_do_not_depend_on_each_other(
    k: float, size: tuple[int, int]
) -> None:
    network = small_maps(*size)
    rng = np.random.default_rng(8)
    x = rng.random((37, network.inputs), dtype=np.float32)
    seed = rng.standard_normal((37, 4)).astype(np.float32)
    core = network.core
    scales = np.zeros((37, core.scales), np.float32)
    core.forward(x, None, scales, True)

    def evaluated(rows: slice) -> tuple[Any, Any]:
        row_scales = scales[rows].copy()
        if k == 0.0:  # The scales, too, are those of the image alone.
            row_scales[:] = 0
            core.forward(x[rows], None, row_scales, True)
            assert np.array_equal(row_scales, scales[rows])
        half_widths = np.full(len(x[rows]), k, np.float32)
        return core.forward(x[rows], half_widths, row_scales, False), core.backward(seed[rows])

    single = [evaluated(slice(i, i + 1)) for i in range(37)]
    for rows in (2, 15, 16, 17, 37):
        for values, alone in zip(evaluated(slice(0, rows)), zip(*single, strict=True), strict=True):
            assert np.array_equal(values, np.concatenate(alone[:rows]))


def test_bad_graphs_are_named() -> None:
    shape = (2, 4, 4)
    for fields, why in (
        ({"how": "product"}, "how must be one of"),
        ({"sources": (0,)}, "an entry for each of the sources"),
        ({"sources": (), "shapes": ()}, "at least one"),
        ({"sources": (0, -2)}, "sources must be 2 integers >= -1"),
        ({"shapes": (shape, (3, 4, 4))}, "fit each other for a sum"),
        ({"shapes": (shape, (3, 4))}, "three integers >= 1"),
        ({"scale": np.ones(3, np.float32)}, "scale must have 2 values"),
        ({"activation": "cube"}, "activation must be one of"),
        ({"pooling": "max", "window": (5, 1)}, "window must fit"),
        ({"pooling": "max", "window": (2, 2), "pooling_padding": (2, 0)}, "at most half"),
        ({"pooling": "mean", "window": (2, 2), "ceil_mode": True}, "ceil_mode must be False"),
        ({"pooling_stride": (2, 2)}, "without pooling"),
    ):
        with pytest.raises(ValueError, match=why):
            Merge(**{"sources": (0, -1), "shapes": (shape, shape), **fields})  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    a = convolution(rng, 2, shape, 1)
    last = Layer(np.ones((2, 32), np.float32), np.zeros(2, np.float32))
    Network([a, Merge((0, -1), (shape, shape)), last])
    for layers, why in (
        ([a, Merge((1, 0), (shape, shape)), last], "must take earlier layers"),
        ([a, Merge((-1,), (shape,)), last], r"layers\[0\] must be taken"),
        ([a, Merge((0,), ((2, 2, 8),)), last], "must follow a convolution that gives"),
        ([a, Merge((0,), (shape,))], "got a Merge"),
        ([Merge((-1, 0), (shape, shape)), last], "must take earlier layers"),
        (
            [
                convolution(rng, 2, shape, 3, padding=(1, 1)),
                convolution(rng, 2, shape, 3, padding=(1, 1), padding_value=np.ones(2), source=-1),
                Merge((0, 1), (shape, shape)),
                last,
            ],
            "padding_value of the other",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            Network(layers)
