"""Small ONNX files, written node by node or from torch modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


class Writer:
    """A graph under construction: nodes on the last value, arrays as initializers."""

    def __init__(self, *shape: int | str | None, opset: int = 18) -> None:
        self.entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []
        self.value = "x"
        self.opset = opset

    def array(self, values: Any) -> str:
        self.arrays.append(numpy_helper.from_array(np.asarray(values), f"w{len(self.arrays)}"))
        return str(self.arrays[-1].name)

    def add(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Writer:
        """Add a node. Its first input is the last value, unless None marks the place of that."""
        entries = [i if i is None or isinstance(i, str) else self.array(i) for i in inputs]
        names = [self.value if i is None else i for i in entries]
        names = names if None in entries else [self.value, *names]
        results = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        domain = "other" if kind == "Mine" else ""
        self.nodes.append(helper.make_node(kind, names, results, domain=domain, **attributes))
        self.value = results[0]
        return self

    def model(self, outputs: list[str] | None = None, inputs: list[Any] | None = None) -> Any:
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in outputs or [self.value]
        ]
        graph = helper.make_graph(
            self.nodes, "g", [self.entry, *(inputs or [])], values, self.arrays
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("other", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def save(self, path: Path, **more: Any) -> Path:
        onnx.save(self.model(**more), str(path))
        return path


def from_torch(
    module: Any, shape: tuple[int, ...], *, gemm: bool = True, batch: Any = "n"
) -> Writer:
    """Write the layers of a chain of torch modules, Linear as Gemm or else as MatMul and Add."""
    writer = Writer(batch, *shape)
    for layer in module:
        state = {name: value.detach().numpy() for name, value in layer.state_dict().items()}
        kind = type(layer).__name__
        if kind == "Linear" and gemm:
            writer.add("Gemm", state["weight"], state["bias"], transB=1)
        elif kind == "Linear":
            writer.add("MatMul", state["weight"].T.copy()).add("Add", state["bias"])
        elif kind == "Conv2d":
            writer.add("Conv", state["weight"], state["bias"], strides=layer.stride,
                    pads=[*layer.padding, *layer.padding])  # fmt: skip
        elif kind == "BatchNorm2d":
            names = ("weight", "bias", "running_mean", "running_var")
            writer.add("BatchNormalization", *(state[name] for name in names))
        elif kind == "MaxPool2d":
            writer.add("MaxPool", kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2)
        elif kind == "Normalize":
            for name, operator in (("mean", "Sub"), ("std", "Div")):
                value = np.asarray(getattr(layer, name), np.float32).reshape(1, -1, 1, 1)
                writer.add(operator, value)
        else:
            writer.add({"ReLU": "Relu"}.get(kind, kind))
    return writer
