"""ONNX files for a fixed number of images give the file's own logits for any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from onnx.reference import ReferenceEvaluator
from support.onnx_files import Writer, floats
from torch import nn

from advcore.models.onnx_batch import FixedBatch
from advcore.models.onnx_graph import OnnxGraph, load

SHAPE = (4, 6)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def class_token(w: Writer, b: int) -> Writer:
    w.value = w.array(floats(1, 1, 6))
    token = w.add("Expand", ints(b, 1, 6)).value
    w.value = "x"
    w.add("Concat", token, None, axis=1).add("Add", floats(1, 5, 6)).add("Softmax", axis=1)
    return w.add("Slice", ints(0, 0), ints(b, 1), ints(0, 1)).add("Flatten")


def sequence_first(w: Writer, b: int) -> Writer:
    """Write heads of an attention layer that has the images second: (b, 4, 6) as (4, 2 b, 3)."""
    w.add("Transpose", perm=[1, 0, 2]).add("Reshape", ints(4, 2 * b, 3)).add("Softmax", axis=0)
    return w.add("Reshape", ints(4, b, 6)).add("Transpose", perm=[1, 0, 2]).add("Flatten")


def windows(w: Writer, b: int) -> Writer:
    w.add("Reshape", ints(2 * b, 2, 6)).add("Softmax", axis=1)
    return w.add("Reshape", ints(b, 24))


def first_size_of_weights(w: Writer, b: int) -> Writer:
    """Write weights whose reshape begins with the number of images by chance."""
    w.value = w.array(floats(24, b))
    weights = w.add("Reshape", ints(b, 24)).add("Transpose", perm=[1, 0]).value
    w.value = "x"
    return w.add("Reshape", ints(b, -1)).add("MatMul", weights).add("Tanh")


def residual(w: Writer, b: int) -> Writer:
    w.add("Relu").add("Add", None, "x").add("Reshape", ints(b, 24))
    return w


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "class token": (class_token, (1, 3, 4)),
    "sequence first": (sequence_first, (1, 3, 4)),
    "windows": (windows, (1, 3, 4)),
    "weights": (first_size_of_weights, (2, 3, 4)),
    "residual": (residual, (1, 3, 4)),
    "flatten from 0": (lambda w, b: w.add("Relu").add("Flatten", axis=0), (1,)),
    "one dimension": (lambda w, b: w.add("Relu").add("Reshape", ints(-1)), (1,)),
    "squeeze": (lambda w, b: w.add("ReduceMax", ints(2)).add("Squeeze"), (1, 3)),
    "mean": (lambda w, b: w.add("ReduceMean", ints(0)).add("Reshape", ints(b, -1)), (1,)),
}


@pytest.mark.parametrize(("case", "batch"), [(name, b) for name in CASES for b in CASES[name][1]])
def test_logits_are_those_of_the_file(case: str, batch: int, tmp_path: Path) -> None:
    written = CASES[case][0](Writer(batch, *SHAPE), batch)
    expected = ReferenceEvaluator(written.model())
    network = load(written.save(tmp_path / "net.onnx"))
    for count in (1, 2, 5, 6):
        x = floats(count, *SHAPE)
        filled = np.concatenate([x, floats(-count % batch, *SHAPE)]).reshape(-1, batch, *SHAPE)
        parts = [expected.run(None, {"x": part})[0].reshape(batch, -1) for part in filled]
        logits = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(logits, np.concatenate(parts)[:count], rtol=2e-5, atol=2e-5)
    assert network(torch.zeros(0, *SHAPE)).shape == (0, logits.shape[1])
    torch.testing.assert_close(network(torch.from_numpy(x).flatten(1)).numpy(), logits)


def test_a_graph_that_follows_the_images_is_not_grouped(tmp_path: Path) -> None:
    for batch in (1, 4):
        network = load(residual(Writer(batch, *SHAPE), batch).save(tmp_path / "net.onnx"))
        assert isinstance(network, OnnxGraph)
    token = class_token(Writer(1, *SHAPE), 1)
    token.nodes.pop(-2)  # the slice by the number of images
    token.nodes[-1].input[0] = token.nodes[-2].output[0]
    assert isinstance(load(token.save(tmp_path / "net.onnx")), OnnxGraph)


def test_a_chain_for_one_image_runs_in_the_engine(tmp_path: Path) -> None:
    written = Writer(1, *SHAPE).add("Flatten", axis=0).add("Gemm", floats(24, 7)).add("Relu")
    written.add("Reshape", ints(1, -1)).add("Gemm", floats(7, 3), floats(3))
    network = load(written.save(tmp_path / "net.onnx"))
    assert isinstance(network, nn.Sequential)
    x = floats(1, *SHAPE)
    expected = ReferenceEvaluator(written.model()).run(None, {"x": x})[0]
    native = advcore.Network.from_torch(network, SHAPE)
    np.testing.assert_allclose(native.forward(x.reshape(1, 24)), expected, rtol=1e-5, atol=1e-5)


def test_a_dynamic_file_with_one_image_inside(tmp_path: Path) -> None:
    written = Writer("n", *SHAPE).add("Relu").add("Reshape", ints(1, 24)).add("Tanh")
    network = load(written.add("Add", floats(1, 24)).save(tmp_path / "net.onnx"))
    assert isinstance(network, FixedBatch)
    x = floats(3, *SHAPE)
    expected = ReferenceEvaluator(written.model())
    rows = [expected.run(None, {"x": image[None]})[0][0] for image in x]
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("kind", ["mean", "place"])
def test_images_that_influence_each_other_are_refused(
    kind: str, batch: int, tmp_path: Path
) -> None:
    written = Writer(batch, *SHAPE)
    if kind == "mean":
        written.add("ReduceMean", ints(0)).add("Sub", "x", None)
    else:
        written.add("Add", floats(batch, *SHAPE))
    path = written.add("Reshape", ints(batch, 24)).save(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=rf"batch of {batch}, or on the .* a dynamic batch"):
        load(path)


@pytest.mark.parametrize("batch_size", [None, 1, 5])
def test_a_search_on_a_file_for_one_image(batch_size: int | None, tmp_path: Path) -> None:
    written = sequence_first(Writer(1, *SHAPE), 1).add("Relu").add("Gemm", floats(24, 4))
    network = load(written.save(tmp_path / "net.onnx"))
    assert isinstance(network, FixedBatch)
    images = np.random.default_rng(0).random((8, *SHAPE), np.float32)
    result = advcore.minimize_distortion(network, images, batch_size=batch_size)
    assert result.success.all()
    expected = ReferenceEvaluator(written.model())
    logits = [expected.run(None, {"x": x[None]})[0] for x in (*images, *result.adversarial)]
    classes = np.argmax(logits, axis=-1).reshape(2, 8)
    assert (classes[0] != classes[1]).all()
