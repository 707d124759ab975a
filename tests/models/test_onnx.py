"""ONNX files: operators against onnx's own evaluator, real networks against torch, refusals."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore

pytest.importorskip("torch")
pytest.importorskip("onnx")
import torch
from harness.networks import stored_network as stored
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from support.marks import needs_data
from support.onnx_files import Writer, floats, from_torch
from torch import nn

from advcore import data
from advcore.models.onnx_graph import OnnxGraph, load
from advcore.models.onnx_operators import OPERATORS


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def affine(width: int = 12, classes: int = 3) -> Writer:
    return Writer("n", width).add("Gemm", floats(width, classes), floats(classes))


def both(w: Writer, kind: str) -> Writer:
    low = w.add("Greater", np.float32(-0.5)).value
    w.nodes.append(helper.make_node("Less", ["x", w.array(np.float32(0.5))], ["high"]))
    w.value = "high"
    return w.add(kind, low, None).add("Where", None, "x", floats(1))


# operator: nodes that use it, on images (4, 6, 6)
IMAGE = (4, 6, 6)
CASES: dict[str, Any] = {
    "Abs": lambda w: w.add("Abs"),
    "Add": lambda w: w.add("Add", floats(4, 1, 1)),
    "And": lambda w: both(w, "And"),
    "AveragePool": lambda w: w.add(
        "AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "AveragePool padded": lambda w: w.add(
        "AveragePool", kernel_shape=[2, 3], pads=[0, 1, 1, 1], count_include_pad=1
    ),
    "BatchNormalization": lambda w: w.add(
        "BatchNormalization", floats(4), floats(4), floats(4), floats(4) ** 2
    ),
    "Cast": lambda w: w.add("Cast", to=TensorProto.DOUBLE).add("Cast", to=TensorProto.FLOAT),
    "Ceil": lambda w: w.add("Ceil"),
    "Celu": lambda w: w.add("Celu", alpha=0.5),
    "Clip": lambda w: w.add("Clip", np.float32(0.1), np.float32(0.4)),
    "Concat": lambda w: w.add("Relu").add("Concat", None, "x", axis=1),
    "ConstantOfShape": lambda w: (
        w.add("Shape")
        .add("ConstantOfShape", value=numpy_helper.from_array(np.array([2.0], np.float32)))
        .add("Add", None, "x")
    ),
    "Conv": lambda w: w.add(
        "Conv", floats(6, 2, 3, 2), floats(6), group=2, strides=[2, 1], pads=[0, 1, 2, 0]
    ),
    "Conv same": lambda w: w.add("Conv", floats(2, 4, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "Conv same lower": lambda w: w.add("Conv", floats(2, 4, 2, 2), auto_pad="SAME_LOWER"),
    "Conv dilated": lambda w: w.add("Conv", floats(2, 4, 2, 2), dilations=[2, 3]),
    "ConvTranspose": lambda w: w.add(
        "ConvTranspose", floats(4, 2, 3, 3), floats(2), strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "Cos": lambda w: w.add("Cos"),
    "Div": lambda w: w.add("Div", floats(6) ** 2 + 1),
    "Dropout": lambda w: w.add("Dropout"),
    "Elu": lambda w: w.add("Elu", alpha=0.7),
    "Equal": lambda w: (
        w.add("Floor").add("Equal", np.float32(0)).add("Where", None, "x", floats(1))
    ),
    "Erf": lambda w: w.add("Erf"),
    "Exp": lambda w: w.add("Exp"),
    "Expand": lambda w: w.add("GlobalMaxPool").add("Expand", ints(1, 4, 3, 2)),
    "Flatten": lambda w: w.add("Flatten", axis=-3),
    "Floor": lambda w: w.add("Floor"),
    "Gather": lambda w: w.add("Gather", ints(3, -1, 0), axis=1),
    "Gather a number": lambda w: (
        w.add("Shape")
        .add("Gather", ints(3)[0])
        .add("Cast", to=TensorProto.FLOAT)
        .add("Add", None, "x")
    ),
    "Gelu": lambda w: w.add("Gelu", approximate="tanh"),
    "Gemm": lambda w: w.add("Flatten").add("Gemm", floats(144, 5), floats(5), alpha=0.5, beta=2.0),
    "GlobalAveragePool": lambda w: w.add("GlobalAveragePool"),
    "GlobalMaxPool": lambda w: w.add("GlobalMaxPool"),
    "Greater": lambda w: w.add("Greater", np.float32(0)).add("Where", None, "x", floats(1)),
    "GreaterOrEqual": lambda w: w.add("GreaterOrEqual", np.float32(0)).add(
        "Where", None, "x", floats(1)
    ),
    "HardSigmoid": lambda w: w.add("HardSigmoid", alpha=0.3),
    "HardSwish": lambda w: w.add("HardSwish"),
    "Identity": lambda w: w.add("Identity"),
    "InstanceNormalization": lambda w: w.add("InstanceNormalization", floats(4), floats(4)),
    "LRN": lambda w: w.add("LRN", size=2, alpha=0.5),
    "LayerNormalization": lambda w: w.add("LayerNormalization", floats(6, 6), floats(6, 6), axis=2),
    "LeakyRelu": lambda w: w.add("LeakyRelu", alpha=0.2),
    "Less": lambda w: w.add("Less", np.float32(0)).add("Where", None, "x", floats(1)),
    "LessOrEqual": lambda w: w.add("LessOrEqual", np.float32(0)).add("Where", None, "x", floats(1)),
    "Log": lambda w: w.add("Exp").add("Log"),
    "LogSoftmax": lambda w: w.add("LogSoftmax", axis=1),
    "MatMul": lambda w: w.add("MatMul", floats(6, 3)),
    "Max": lambda w: w.add("Max", floats(6)),
    "MaxPool": lambda w: w.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "MaxPool padded": lambda w: w.add("MaxPool", kernel_shape=[2, 2], pads=[0, 1, 1, 0]),
    "Min": lambda w: w.add("Min", floats(6)),
    "Mish": lambda w: w.add("Mish"),
    "Mod": lambda w: w.add("Mod", floats(6), fmod=1),
    "Mod of sizes": lambda w: (
        w.add("Shape", start=1)
        .add("Mod", ints(4, -4, 5))
        .add("Cast", to=TensorProto.FLOAT)
        .add("Reshape", None, ints(3, 1, 1))
        .add("Pad", ints(0, 0, 0, 1, 0, 0))
        .add("Mul", None, "x")
    ),
    "Mul": lambda w: w.add("Mul", floats(4, 1, 1)),
    "Neg": lambda w: w.add("Neg"),
    "Not": lambda w: w.add("Greater", np.float32(0)).add("Not").add("Where", None, "x", floats(1)),
    "Or": lambda w: both(w, "Or"),
    "PRelu": lambda w: w.add("PRelu", floats(4, 1, 1)),
    "Pad": lambda w: w.add("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)),
    "Pad reflect": lambda w: w.add("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1), mode="reflect"),
    "Pow": lambda w: w.add("Pow", np.float32(2)),
    "Range": lambda w: (
        w.add("Shape", start=3)
        .add("Squeeze", ints(0))
        .add("Range", np.int64(0), None, np.int64(1))
        .add("Cast", to=TensorProto.FLOAT)
        .add("Add", None, "x")
    ),
    "Reciprocal": lambda w: w.add("Exp").add("Reciprocal"),
    "ReduceL2": lambda w: w.add("ReduceL2", ints(2, 3), keepdims=0),
    "ReduceMax": lambda w: w.add("ReduceMax", ints(-1)),
    "ReduceMean": lambda w: w.add("ReduceMean", ints(2, 3)),
    "ReduceMin": lambda w: w.add("ReduceMin", ints(1)),
    "ReduceSum": lambda w: w.add("ReduceSum", ints(2), keepdims=0),
    "ReduceSumSquare": lambda w: w.add("ReduceSumSquare", ints(2)),
    "Relu": lambda w: w.add("Relu"),
    "Reshape": lambda w: w.add("Reshape", ints(0, -1, 12)),
    "Reshape to a number": lambda w: (
        w.add("Shape", start=3)
        .add("Reshape", ints())
        .add("Cast", to=TensorProto.FLOAT)
        .add("Add", None, "x")
    ),
    "Selu": lambda w: w.add("Selu"),
    "Shape": lambda w: (
        w.add("Shape", end=2).add("Concat", None, ints(-1), axis=0).add("Reshape", "x", None)
    ),
    "Sigmoid": lambda w: w.add("Sigmoid"),
    "Sin": lambda w: w.add("Sin"),
    "Slice": lambda w: w.add("Slice", ints(1, -1), ints(4, -9), ints(2, 3), ints(2, -2)),
    "Softmax": lambda w: w.add("Softmax", axis=1),
    "Softplus": lambda w: w.add("Softplus"),
    "Softsign": lambda w: w.add("Softsign"),
    "Split": lambda w: w.add("Split", ints(1, 3), outputs=2, axis=1),
    "Sqrt": lambda w: w.add("Abs").add("Sqrt"),
    "Squeeze": lambda w: w.add("ReduceMax", ints(2)).add("Squeeze", ints(2)),
    "Sub": lambda w: w.add("Sub", floats(6)),
    "Sum": lambda w: w.add("Sum", floats(6), floats(1)),
    "Tanh": lambda w: w.add("Tanh"),
    "Transpose": lambda w: w.add("Transpose", perm=[0, 2, 3, 1]),
    "Unsqueeze": lambda w: w.add("Unsqueeze", ints(1, -1)),
    "Where": lambda w: w.add("Greater", np.float32(0)).add("Where", None, floats(6), "x"),
}
NEWER = {"Gelu": 20}


@pytest.mark.parametrize("case", CASES)
def test_operator_is_that_of_onnx(case: str, tmp_path: Path) -> None:
    written: Writer = CASES[case](Writer("n", *IMAGE, opset=NEWER.get(case, 18)))
    expected = ReferenceEvaluator(written.model())
    x = floats(4, *IMAGE)  # as many as channels, or onnx's own LRN leaves some out
    value = expected.run(None, {"x": x})[0]
    network = load(written.add("Flatten").save(tmp_path / "net.onnx"))
    logits = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(logits, value.reshape(4, -1), rtol=2e-5, atol=2e-5)


def test_every_operator_is_tested() -> None:
    assert {case.partition(" ")[0] for case in CASES} == set(OPERATORS)


def test_operators_of_an_old_set(tmp_path: Path) -> None:
    written = Writer("n", *IMAGE, opset=9)
    written.add("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)
    written.add("Slice", axes=[2], starts=[1], ends=[7]).add("Clip", min=-0.5, max=0.75)
    written.add("ReduceMean", axes=[3], keepdims=1).add("Squeeze", axes=[3])
    written.add("Unsqueeze", axes=[1]).add("Split", outputs=2, axis=2, split=[3, 1])
    written.add("Softmax", axis=2)
    x = floats(3, *IMAGE)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.5)
    value = np.clip(padded[:, :, 1:7], -0.5, 0.75).mean(3)[:, :3].reshape(3, -1)
    value = np.exp(value) / np.exp(value).sum(1, keepdims=True)
    network = load(written.save(tmp_path / "net.onnx"))
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), value, rtol=1e-5)


@needs_data
@pytest.mark.parametrize("gemm", [True, False])
@pytest.mark.parametrize("name", ["abc_mnist_2_20", "abc_mnist_6_100_nat"])
def test_fully_connected_networks_run_in_the_engine(name: str, gemm: bool, tmp_path: Path) -> None:
    module = stored(name).eval()
    path = from_torch(module, (1, 28, 28), gemm=gemm).save(tmp_path / "net.onnx")
    network = advcore.load_model(path)
    assert isinstance(network, OnnxGraph)
    images, labels = data.embedded_digits()
    pixels = torch.from_numpy(images)
    torch.testing.assert_close(network(pixels), module(pixels), rtol=1e-5, atol=1e-5)
    ours = advcore.minimize_distortion(network, images[:50], labels=labels[:50])
    theirs = advcore.minimize_distortion(module, images[:50], labels=labels[:50])
    assert ours.engine["path"] == theirs.engine["path"] == "native"
    assert ours.success.all()
    # Without Gemm the logits that verify a result are rounded in another way.
    np.testing.assert_allclose(ours.distortion, theirs.distortion, rtol=1e-5 if gemm else 2e-3)


@needs_data
def test_a_residual_network(tmp_path: Path) -> None:
    module = stored("vnncomp_resnet2b").eval()
    x = torch.rand(3, 3, 32, 32)
    out = from_torch(module[:3], (3, 32, 32))
    for block in module[3:5]:
        entry, names = out.value, []
        for part in (block.first, block.second, block.shortcut):
            out.value = names[0] if len(names) == 1 else entry
            if isinstance(part, nn.Conv2d):
                layers = from_torch([part], (1,))
                arrays = [numpy_helper.to_array(a) for a in layers.arrays]
                out.add("Conv", *arrays, strides=part.stride, pads=[*part.padding] * 2)
            if part is block.first:
                out.add("Relu")
            names.append(out.value)
        out.value = names[1]
        out.add("Add", None, names[2]).add("Relu")
    for layer in module[5:]:
        if isinstance(layer, nn.Linear):
            weight, bias = (value.detach().numpy() for value in (layer.weight, layer.bias))
            out.add("Gemm", weight, bias, transB=1)
        else:
            out.add({"ReLU": "Relu"}.get(type(layer).__name__, type(layer).__name__))
    network = load(out.save(tmp_path / "net.onnx"))
    assert isinstance(network, OnnxGraph)
    torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-4)


def test_normalisation_before_the_layers_is_lowered(tmp_path: Path) -> None:
    mean, scale = floats(1, 2, 1, 3), floats(2, 1, 1) ** 2 + 0.5
    out = Writer("n", 2, 2, 3).add("Sub", mean).add("Div", scale).add("Mul", np.float32(2))
    out.add("Flatten").add("MatMul", floats(12, 7)).add("Add", floats(1, 7)).add("LeakyRelu")
    out.add("Add", floats(7)).add("Gemm", floats(4, 7), transB=1).add("Mul", floats(4) ** 2)
    network = load(out.save(tmp_path / "net.onnx"))
    x = floats(5, 2, 2, 3)
    expected = ReferenceEvaluator(out.model()).run(None, {"x": x})[0]
    native = advcore.Network.from_torch(network, (2, 2, 3))
    np.testing.assert_allclose(native.forward(x.reshape(5, 12)), expected, rtol=1e-4, atol=1e-4)


def test_columns_are_lowered(tmp_path: Path) -> None:
    out = Writer(1, 6).add("Reshape", ints(1, 6, 1)).add("MatMul", floats(5, 6), None)
    out.add("Add", floats(5, 1)).add("Transpose", perm=[0, 2, 1]).add("Reshape", ints(1, -1))
    network = load(out.save(tmp_path / "net.onnx"))
    x = floats(1, 6)
    expected = ReferenceEvaluator(out.model()).run(None, {"x": x})[0]
    native = advcore.Network.from_torch(network, (6,))
    np.testing.assert_allclose(native.forward(np.repeat(x, 2, 0))[1:], expected, rtol=1e-5)


@pytest.mark.parametrize("chain", [False, True])
def test_images_in_another_order_are_refused(chain: bool, tmp_path: Path) -> None:
    height, width, channels = 5, 4, 3
    out = Writer("n", height, width, channels)
    if not chain:
        out.add("Transpose", perm=[0, 3, 1, 2]).add("Relu")
    network = load(out.add("Flatten").add("Gemm", floats(60, 4)).save(tmp_path / "net.onnx"))
    assert isinstance(network, OnnxGraph)
    images = torch.rand(6, height, width, channels)
    logits = network(images)
    torch.testing.assert_close(network(images.flatten(1)), logits)
    torch.testing.assert_close(network(images[:, None]), logits)  # a dimension of size 1
    first = images.permute(0, 3, 1, 2).contiguous()
    with pytest.raises(ValueError, match=r"transpose\(images, \(0, 2, 3, 1\)\)"):
        network(first)
    for shape in ((6, 12, 5), (6, 59), (6, 15, 2, 2), (60,)):
        with pytest.raises(ValueError, match=r"\(N, 5, 4, 3\).*or be flat, \(N, 60\)"):
            network(torch.rand(shape))
    with pytest.raises(ValueError, match="transpose"):
        advcore.minimize_distortion(network, first.numpy())
    result = advcore.minimize_distortion(network, images.numpy())
    assert result.success.all()


def test_a_flat_input_takes_no_pictures(tmp_path: Path) -> None:
    network = load(affine(12, 3).save(tmp_path / "net.onnx"))
    with pytest.raises(ValueError, match=r"shape \(N, 12\).*images.reshape\(len\(images\), -1\)"):
        network(torch.rand(2, 3, 4))
    assert network(torch.rand(2, 1, 12)).shape == (2, 3)


@pytest.mark.parametrize("kind", ["Neg", "Sub from", "Mul negative", "Transpose"])
def test_other_graphs_are_not_taken_for_layers(kind: str, tmp_path: Path) -> None:
    out = Writer("n", 2, 3)
    {
        "Neg": lambda: out.add("Neg"),
        "Sub from": lambda: out.add("Sub", floats(1), None),
        "Mul negative": lambda: out.add("Mul", np.float32(-1)),
        "Transpose": lambda: out.add("Transpose", perm=[0, 2, 1]),
    }[kind]()
    out.add("Flatten").add("Gemm", floats(6, 4))
    network = load(out.save(tmp_path / "net.onnx"))
    assert isinstance(network, OnnxGraph)
    x = floats(2, 2, 3)
    expected = ReferenceEvaluator(out.model()).run(None, {"x": x})[0]
    np.testing.assert_allclose(network(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def refused() -> dict[str, tuple[Writer, dict[str, Any], str]]:
    """Name: graph, arguments of ``model``, a part of the message."""
    second = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 12))
    double = affine()
    double.entry = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ("n", 12))
    two = affine().add("Relu")
    cut = Writer(1, 4, 6).add("MatMul", floats(6, 3)).add("Reshape", ints(4, 3))
    return {
        "operator": (affine().add("Softmax").add("Hardmax"), {}, "the operators Hardmax"),
        "domain": (affine().add("Mine"), {}, "the operators other::Mine"),
        "inputs": (affine(), {"inputs": [second]}, "one input, it has 2 (x, y)"),
        "outputs": (two, {"outputs": ["v0_0", "v1_0"]}, "one output, it has 2 (v0_0, v1_0)"),
        "dynamic": (
            Writer("n", 3, "height", None).add("GlobalMaxPool"),
            {},
            "its input 'x' has shape (n, 3, height, ?): only the first dimension, the batch",
        ),
        "no batch": (Writer(12).add("Relu"), {}, "expected a batch and at least one more"),
        "type": (double, {}, "its input 'x' must be float (32 bits), it is double"),
        "batch": (cut, {}, "its output for one image must be (1, classes), got (4, 3)"),
        "rows": (Writer("n", 4).add("ReduceSum", ints(0)), {}, "must be (3, classes), got (1, 4)"),
        "attribute": (
            Writer("n", *IMAGE).add("MaxPool", outputs=2, kernel_shape=[2, 2]),
            {},
            "operator MaxPool (node 'number 0'): only 1 to 3 dimensions and without indices",
        ),
    }


@pytest.mark.parametrize("case", refused())
def test_refusals_say_what(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    written, more, text = refused()[case]
    path = written.save(tmp_path / "net.onnx", **more)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 (the text is checked below)
        load(path)
    assert text in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_other_operators_go_to_onnx2pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("onnx2pytorch")
    package.ConvertModel = lambda proto: nn.Flatten()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnx2pytorch", package)
    path = Writer("n", 2, 3).add("Hardmax").save(tmp_path / "net.onnx")
    x = torch.rand(4, 6)
    torch.testing.assert_close(load(path)(x), x)
    package.ConvertModel = lambda proto: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="onnx2pytorch cannot convert Hardmax"):
        load(path)


def test_files_that_are_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model at all")
    (tmp_path / "empty.onnx").touch()
    for name in ("text", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.onnx is not an ONNX file"):
            load(tmp_path / f"{name}.onnx")


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    affine().save(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'net\.onnx needs onnx: pip install "advcore\[onnx\]"'):
        load(tmp_path / "net.onnx")


def test_graphs_are_copied_and_moved(tmp_path: Path) -> None:
    import copy

    network = load(CASES["Conv"](Writer("n", *IMAGE)).save(tmp_path / "net.onnx"))
    assert {tuple(value.shape) for value in network.state_dict().values()} == {(6, 2, 3, 2), (6,)}
    x = torch.rand(2, *IMAGE)
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from advcore.cli import attack

    monkeypatch.chdir(tmp_path)
    Writer(1, 1, 28, 28).add("Flatten").add("Gemm", floats(784, 10)).save(Path("net.onnx"))
    arguments = ["attack", "--model", "net.onnx", "--count", "3", "--no-picture"]
    done = CliRunner().invoke(attack.app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 of 3" in done.stdout
    assert "native" in done.stdout
    Path("net.onnx").write_text("nothing")
    done = CliRunner().invoke(attack.app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: --model: net.onnx is not an ONNX file (")
    assert done.stderr.count("\n") == 1
