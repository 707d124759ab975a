"""ONNX files with convolutions: which chains the engine runs, and which stay graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
from harness.networks import stored_network as stored  # noqa: E402
from support.marks import needs_data  # noqa: E402
from support.onnx_files import Writer, floats, from_torch  # noqa: E402

from advcore.models.onnx_graph import load  # noqa: E402

nn = torch.nn


@needs_data
@pytest.mark.parametrize("name", ["colt_mnist_linf0.1", "rays_smallcnn_bn"])
@pytest.mark.parametrize("batch", ["n", 1])
def test_convolutional_networks_run_in_the_engine(name: str, batch: Any, tmp_path: Path) -> None:
    module = stored(name).eval()
    path = from_torch(module, (1, 28, 28), batch=batch).save(tmp_path / "net.onnx")
    network = load(path)
    images, labels = data.embedded_digits()
    pixels = torch.from_numpy(images[:64])
    expected = module(pixels.view(-1, 1, 28, 28))
    torch.testing.assert_close(network(pixels), expected, rtol=1e-4, atol=1e-4)
    few = {"effort": "fast", "max_evaluations": 100}
    ours = advcore.minimize_distortion(network, images[:4], labels=labels[:4], **few)
    square = images[:4].reshape(4, 1, 28, 28)
    theirs = advcore.minimize_distortion(module, square, labels=labels[:4], **few)
    assert ours.engine["path"] == theirs.engine["path"] == "native"
    assert ours.success.all()
    # one bit of the rounding decides on the basin of one image of the COLT network
    close = np.isclose(ours.distortion, theirs.distortion, rtol=0.02)
    assert close.sum() >= 3


def test_pooling_of_every_kind_is_lowered(tmp_path: Path) -> None:
    w = Writer("n", 2, 9, 9).add("Conv", floats(3, 2, 2, 2), floats(3), pads=[1, 0, 1, 0])
    w = w.add("Relu").add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    w = w.add("Conv", floats(4, 3, 1, 1)).add("Tanh")
    w = w.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    w = w.add("Conv", floats(5, 4, 1, 1)).add("GlobalAveragePool").add("Flatten")
    network = advcore.load_model(w.save(tmp_path / "net.onnx"))
    lowered = advcore.Network.from_torch(network, (2, 9, 9))
    assert [type(layer).__name__ for layer in lowered.layers] == ["Convolution"] * 3
    x = torch.rand(3, 2, 9, 9)
    np.testing.assert_allclose(lowered.forward(x.numpy()), network(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add("Conv", floats(4, 1, 2, 2), group=2),
        lambda w: w.add("Conv", floats(4, 2, 2, 2), dilations=[2, 2]),
        lambda w: w.add("Conv", floats(4, 2, 2, 2), pads=[0, 0, 1, 1]),
        lambda w: w.add("Conv", floats(4, 2, 2, 2), auto_pad="SAME_UPPER"),
        lambda w: w.add("Conv", floats(4, 2, 2, 2)).add(
            "MaxPool", kernel_shape=[3, 3], strides=[2, 2]
        ),
        lambda w: w.add("Conv", floats(4, 2, 2, 2)).add(
            "MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1
        ),
    ],
)  # fmt: skip
def test_convolutions_without_a_native_form_stay_graphs(change: Any, tmp_path: Path) -> None:
    w = change(Writer("n", 2, 8, 8)).add("Flatten")
    network = load(w.save(tmp_path / "net.onnx"))
    with pytest.raises(advcore.network.Unsupported):
        advcore.Network.from_torch(network, (2, 8, 8))
    x = torch.rand(2, 2, 8, 8)
    assert network(x).shape[0] == 2
