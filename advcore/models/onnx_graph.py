"""ONNX files as torch modules (``pip install "advcore[onnx]"``).

A graph becomes an `OnnxGraph`, which evaluates the operators of `advcore.models.onnx_operators` one
after the other. `Network.from_torch` reads it by these operations, as it reads any module.
A graph with other operators is converted by the package onnx2pytorch, where that is installed.
Importing this file imports torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._extras import require
from ..network import Network, Unsupported
from ..network.input_shape import FlattenImages, in_shape
from ..network.reading.lower import lower
from .onnx_batch import TRIAL, FixedBatch, agree, for_any_batch
from .onnx_operators import OPERATORS, Node, UnsupportedNode


class OnnxGraph(nn.Module):
    """The nodes of a graph, which are evaluated in order.

    Float constants are buffers, integers are not. Images are (B, *input_shape), or flat.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        constants: dict[str, Tensor],
        entry: str,
        exit_: str,
        input_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.entry, self.exit, self.input_shape = entry, exit_, input_shape
        self.direct_constants: dict[str, Tensor] = {}
        self.buffer_of: dict[str, str] = {}
        names = {name for node in nodes for name in node.inputs} | {exit_}
        for name in sorted(names & constants.keys()):
            self.keep(name, constants[name])
        self.nodes = nodes
        last_use = {name: place for place, node in enumerate(nodes) for name in node.inputs}
        self.dead_names: list[list[str]] = [[] for _ in nodes]
        for name, place in last_use.items():
            self.dead_names[place].append(name)

    def keep(self, name: str, value: Tensor) -> None:
        """Store a constant, as a buffer if it has to be on the device of the images.

        Scalars and integers need not be there.
        """
        if value.is_floating_point() and value.dim():
            self.buffer_of[name] = f"constant{len(self.buffer_of)}"
            self.register_buffer(self.buffer_of[name], value)
        else:
            self.direct_constants[name] = value

    def constants(self) -> dict[str, Tensor]:
        """Return the constants by their names in the file."""
        return self.direct_constants | {n: self.get_buffer(b) for n, b in self.buffer_of.items()}

    def forward(self, x: Tensor, shapes: dict[str, tuple[int, ...]] | None = None) -> Tensor:
        """Compute the logits, and write the shape of every value into ``shapes``."""
        x = in_shape(x, self.input_shape)
        values: dict[str, Any] = {**self.constants(), "": None, self.entry: x}
        if shapes is not None:
            shapes[self.entry] = tuple(x.shape)
        for node, dead_names in zip(self.nodes, self.dead_names, strict=True):
            out = OPERATORS[node.kind](node, [values[name] for name in node.inputs])
            for name, value in zip(node.outputs, [out] if torch.is_tensor(out) else out):  # noqa: B905
                values[name] = value
                if shapes is not None:
                    shapes[name] = tuple(value.shape)
            for name in dead_names:
                if name not in ("", self.exit):
                    del values[name]
        logits: Tensor = values[self.exit]
        return logits.flatten(1) if logits.dim() > 2 else logits

    def extra_repr(self) -> str:
        return f"input_shape={self.input_shape}, nodes={len(self.nodes)}"


def load(path: Path) -> nn.Module:
    """Load an ONNX file with one input and one output as a module in eval mode.

    The module's ``input_shape`` is that of an image.

    Raises
    ------
    ImportError : onnx is not installed.
    ValueError : the file is no ONNX file, or cannot be evaluated. The message says why.
    """
    onnx = require("onnx", "onnx", f"reading {path.name}")
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf raises its own kind for other files, or OSError
        raise ValueError(f"{path} is not an ONNX file ({error})") from None
    if not proto.graph.node:
        raise ValueError(f"{path} is not an ONNX file (its graph is empty)")
    try:
        return _module(onnx, proto)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def weight_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights, as those of large ones do."""
    onnx = require("onnx", "onnx", f"reading {path.name}")
    graph = onnx.load(str(path), load_external_data=False).graph
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute)]
    entries = [entry for tensor in tensors for entry in tensor.external_data]
    return [
        path.parent / name for name in sorted({e.value for e in entries if e.key == "location"})
    ]


def _module(onnx: Any, proto: Any) -> nn.Module:
    graph = proto.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    entries = [value for value in graph.input if value.name not in initializers]
    for word, values in (("input", entries), ("output", list(graph.output))):
        if len(values) != 1:
            names = ", ".join(value.name for value in values)
            raise ValueError(f"expected one {word}, it has {len(values)} ({names})")
    entry, exit_ = entries[0].name, graph.output[0].name
    batch, shape = _input_shape(onnx, entries[0])
    versions = {item.domain: item.version for item in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    unsupported_kinds = sorted({_kind(node) for node in graph.node} - {*OPERATORS, "Constant"})
    if unsupported_kinds or graph.sparse_initializer:
        return _converted(proto, unsupported_kinds or ["sparse weights"], batch, shape)
    constants = {name: _tensor(onnx, tensor, name) for name, tensor in initializers.items()}
    nodes = []
    for place, item in enumerate(graph.node):
        attributes = {a.name: _attribute(onnx, a) for a in item.attribute}
        if item.op_type == "Constant":
            constants[item.output[0]] = _constant(attributes, item.output[0])
            continue
        nodes.append(
            Node(
                item.op_type,
                item.name or f"number {place}",
                tuple(item.input),
                tuple(item.output),
                attributes,
                version,
                batch,
                any_batch=True,
            )
        )
    nodes = _folded(nodes, constants)
    fixed_nodes = [replace(node, any_batch=False) for node in nodes]
    stored_graph = OnnxGraph(fixed_nodes, constants, entry, exit_, shape).eval()
    any_graph = OnnxGraph(nodes, constants, entry, exit_, shape).eval()
    network = for_any_batch(any_graph, stored_graph, batch, shape)
    return _in_layers(network) if isinstance(network, FixedBatch) else network


def _kind(node: Any) -> str:
    return str(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}")


def _input_shape(onnx: Any, value: Any) -> tuple[int | None, tuple[int, ...]]:
    """Return the batch, if the file has a number for it, and the shape of an image."""
    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
        raise ValueError(f"its input {value.name!r} must be float (32 bits), it is {name}")
    if not kind.HasField("shape"):
        raise ValueError(f"its input {value.name!r} has no shape")
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    labels = [d.dim_param or "?" if s is None else str(s) for d, s in zip(kind.shape.dim, sizes)]  # noqa: B905
    text = f"its input {value.name!r} has shape ({', '.join(labels)})"
    if len(sizes) < 2:
        raise ValueError(f"{text}: expected a batch and at least one more dimension")
    shape = tuple(size for size in sizes[1:] if size)
    if len(shape) < len(sizes) - 1:
        raise ValueError(f"{text}: only the first dimension, the batch, may be dynamic")
    return sizes[0] or None, shape


def _tensor(onnx: Any, tensor: Any, name: str) -> Tensor:
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype == np.float64 or array.dtype == np.float16:
        array = array.astype(np.float32)
    try:
        return torch.from_numpy(array.copy())
    except TypeError:
        raise ValueError(f"constant {name!r} has type {array.dtype}") from None


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _constant(attributes: dict[str, Any], name: str) -> Tensor:
    for key, value in attributes.items():
        if key in ("value", "value_float", "value_floats", "value_int", "value_ints"):
            kind = np.asarray(value).dtype.kind
            dtype = {"f": np.float32, "i": np.int64, "b": np.bool_}.get(kind)
            if dtype is not None:
                return torch.from_numpy(np.array(value, dtype))
    raise ValueError(f"constant {name!r} is not a tensor of numbers")


def _folded(nodes: Sequence[Node], constants: dict[str, Tensor]) -> list[Node]:
    """Return the nodes that depend on the images, and add the others' values to ``constants``."""
    variable_nodes = []
    for node in nodes:
        if any(name and name not in constants for name in node.inputs):
            variable_nodes.append(node)
            continue
        fixed_node = replace(node, any_batch=False)
        out = _call(fixed_node, [constants.get(name) for name in node.inputs])
        constants.update(zip(node.outputs, [out] if torch.is_tensor(out) else out, strict=False))
    return variable_nodes


def _call(node: Node, values: Sequence[Any]) -> Any:
    try:
        return OPERATORS[node.kind](node, values)
    except UnsupportedNode:
        raise
    except Exception as error:
        raise node.fail(f"{type(error).__name__}: {error}") from error


class _Converted(nn.Module):
    """Wraps a module of onnx2pytorch, which takes images in the shape of the file."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.input_shape = network, shape

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(in_shape(x, self.input_shape))
        return logits.flatten(1) if logits.dim() > 2 else logits


def _converted(
    proto: Any, operators: Sequence[str], batch: int | None, shape: tuple[int, ...]
) -> nn.Module:
    names = ", ".join(operators)
    try:
        package = importlib.import_module("onnx2pytorch")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
        raise ValueError(
            f"no form here for the operators {names}; the package onnx2pytorch, which would be "
            f"asked, cannot be imported ({error})"
        ) from None
    try:
        network = _Converted(package.ConvertModel(proto), shape).eval().requires_grad_(False)
    except Exception as error:
        raise ValueError(f"onnx2pytorch cannot convert {names} ({error})") from error
    return for_any_batch(network, network, batch, shape)


def _in_layers(groups: FixedBatch) -> nn.Module:
    """Return the layers of a graph for a fixed number of images that is a chain of them.

    They take any number of images, all at once. The result is ``groups`` for other graphs.
    """
    shape = groups.input_shape
    try:
        layers = Network(lower(groups.network, shape, (groups.batch, groups.batch))).to_torch()
    except (Unsupported, ValueError):
        return groups
    chain = nn.Sequential(FlattenImages(shape), *layers).eval().requires_grad_(False)
    x = torch.rand(TRIAL, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, chain_logits = groups(x), chain(x)
    if not agree(chain_logits, logits, logits):
        return groups
    vars(chain)["input_shape"] = shape
    return chain
