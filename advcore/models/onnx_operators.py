"""Operators of ONNX as functions of torch tensors, for `advcore.models.onnx_graph`.

Each entry of `OPERATORS` takes the node and its inputs, with None for an optional one that is left
out. Axes, pads and limits are attributes in one version of an operator and inputs in another; both
are read. Sizes are int64 tensors on the CPU. Importing this file imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Values = Sequence[Any]


class UnsupportedNode(ValueError):
    """Raised for a node whose attributes are not supported."""


@dataclass(frozen=True)
class Node:
    """One node of the graph.

    version : version of the operator set.
    batch : number of images if the file has one, else None.
    any_batch : whether the node is read for any number of images. Else ``batch`` images are given.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    version: int
    batch: int | None
    any_batch: bool

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def option(self, values: Values, place: int, name: str, default: Any = None) -> Any:
        """Return an input as Python numbers, or the attribute of the same name."""
        if len(values) > place and values[place] is not None:
            return values[place].tolist()
        return self.attributes.get(name, default)

    def fail(self, why: str) -> UnsupportedNode:
        """Return the error that names this node."""
        return UnsupportedNode(f"operator {self.kind} (node {self.name!r}): {why}")


Operator = Callable[[Node, Values], Any]
OPERATORS: dict[str, Operator] = {}
"""Function of each operator, by its name in ONNX."""


def _operator(function: Operator) -> Operator:
    """Register a function, for example ``_batch_normalization`` as BatchNormalization."""
    OPERATORS[function.__name__.title().replace("_", "")] = function
    return function


def _call(function: Callable[..., Any]) -> Operator:
    """The operator that calls a function with the inputs and no attributes."""
    return lambda node, values: function(*values)


OPERATORS |= {
    "Abs": _call(torch.abs),
    "Add": _call(torch.add),
    "And": _call(torch.logical_and),
    "Ceil": _call(torch.ceil),
    "Cos": _call(torch.cos),
    "Dropout": lambda node, values: values[0],
    "Equal": _call(torch.eq),
    "Erf": _call(torch.erf),
    "Exp": _call(torch.exp),
    "Floor": _call(torch.floor),
    "Greater": _call(torch.gt),
    "GreaterOrEqual": _call(torch.ge),
    "Identity": lambda node, values: values[0],
    "Less": _call(torch.lt),
    "LessOrEqual": _call(torch.le),
    "Log": _call(torch.log),
    "MatMul": _call(torch.matmul),
    "Mul": _call(torch.mul),
    "Mod": lambda node, values: (torch.fmod if node.get("fmod") else torch.remainder)(*values),
    "Neg": _call(torch.neg),
    "Not": _call(torch.logical_not),
    "Or": _call(torch.logical_or),
    "Pow": _call(torch.pow),
    "PRelu": lambda node, values: torch.where(values[0] < 0, values[0] * values[1], values[0]),
    "Range": lambda node, values: torch.arange(*(value.item() for value in values)),
    "Reciprocal": _call(torch.reciprocal),
    "Relu": _call(torch.relu),
    "Sigmoid": _call(torch.sigmoid),
    "Sin": _call(torch.sin),
    "Softplus": _call(F.softplus),
    "Softsign": _call(F.softsign),
    "Sqrt": _call(torch.sqrt),
    "Sub": _call(torch.sub),
    "Tanh": _call(torch.tanh),
    "HardSwish": _call(F.hardswish),
    "Mish": _call(F.mish),
    "Celu": lambda node, values: F.celu(values[0], node.get("alpha", 1.0)),
    "Elu": lambda node, values: F.elu(values[0], node.get("alpha", 1.0)),
    "Selu": _call(F.selu),
    "LeakyRelu": lambda node, values: F.leaky_relu(values[0], node.get("alpha", 0.01)),
    "HardSigmoid": lambda node, values: torch.clamp(
        node.get("alpha", 0.2) * values[0] + node.get("beta", 0.5), 0, 1
    ),
    "Where": lambda node, values: torch.where(values[0].to(values[1].device), *values[1:]),
    "GlobalAveragePool": lambda node, values: values[0].mean(_spatial(values[0]), keepdim=True),
    "GlobalMaxPool": lambda node, values: values[0].amax(_spatial(values[0]), keepdim=True),
}


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.dim()))


@_operator
def _div(node: Node, values: Values) -> Tensor:
    a, b = values
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@_operator
def _gelu(node: Node, values: Values) -> Tensor:
    return F.gelu(values[0], approximate=node.get("approximate", "none"))


@_operator
def _clip(node: Node, values: Values) -> Tensor:
    lower, upper = node.option(values, 1, "min"), node.option(values, 2, "max")
    return values[0] if lower is None and upper is None else torch.clamp(values[0], lower, upper)


@_operator
def _max(node: Node, values: Values) -> Any:
    out = values[0]
    for value in values[1:]:
        out = torch.maximum(out, value)
    return out


@_operator
def _min(node: Node, values: Values) -> Any:
    out = values[0]
    for value in values[1:]:
        out = torch.minimum(out, value)
    return out


@_operator
def _sum(node: Node, values: Values) -> Any:
    return sum(values[1:], start=values[0])


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, values: Values) -> Tensor:
        x = values[0]
        if node.version >= 13:
            return function(x, dim=node.get("axis", -1))
        axis = node.get("axis", 1) % x.dim()  # before version 13: all dimensions from the axis on
        return function(x.flatten(axis), dim=-1).reshape(x.shape)

    return apply


OPERATORS |= {"Softmax": _softmax(F.softmax), "LogSoftmax": _softmax(F.log_softmax)}


@_operator
def _gemm(node: Node, values: Values) -> Tensor:
    a, b = values[0], values[1]
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    term = values[2] if len(values) > 2 else None
    if alpha == beta == 1 and term is not None:
        return torch.addmm(term, a, b)  # as a Linear computes it
    out: Tensor = a @ b
    out = out if alpha == 1 else alpha * out
    if term is not None:
        out = out + (term if beta == 1 else beta * term)
    return out


@_operator
def _conv(node: Node, values: Values) -> Tensor:
    x, weight = values[0], values[1]
    bias = values[2] if len(values) > 2 else None
    dims = weight.dim() - 2
    if not 1 <= dims <= 3:
        raise node.fail(f"its weight has {weight.dim()} dimensions")
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    pads = _margins(node, x, weight.shape[2:], stride, dilation)
    if pads[:dims] != pads[dims:]:
        x, pads = _pad_by(x, pads, "constant", 0.0), [0] * dims
    call = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return call(x, weight, bias, stride, pads[:dims], dilation, node.get("group", 1))


@_operator
def _conv_transpose(node: Node, values: Values) -> Tensor:
    x, weight = values[0], values[1]
    dims = weight.dim() - 2
    pads = node.get("pads", [0] * 2 * dims)
    if node.get("auto_pad", "NOTSET") != "NOTSET" or node.get("output_shape") is not None:
        raise node.fail("only explicit pads")
    if pads[:dims] != pads[dims:]:
        raise node.fail(f"pads {pads} differ from side to side")
    call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    return call(
        x,
        weight,
        values[2] if len(values) > 2 else None,
        stride=node.get("strides", [1] * dims),
        padding=pads[:dims],
        output_padding=node.get("output_padding", [0] * dims),
        groups=node.get("group", 1),
        dilation=node.get("dilations", [1] * dims),
    )


def _margins(
    node: Node, x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Return the padding in the order of ONNX, before each dimension and then after each."""
    dims = len(kernel)
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        return list(node.get("pads", [0] * 2 * dims)) if auto == "NOTSET" else [0] * 2 * dims
    total = [
        max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    floors, ceilings = [t // 2 for t in total], [t - t // 2 for t in total]
    return floors + ceilings if auto == "SAME_UPPER" else ceilings + floors


def _pad_by(x: Tensor, pads: Sequence[int], mode: str, value: float) -> Tensor:
    dims = len(pads) // 2
    order = [p for d in reversed(range(dims)) for p in (pads[d], pads[d + dims])]
    if mode == "constant":
        return F.pad(x, order, value=value)
    while order and order[-2:] == [0, 0]:  # torch pads the last dimensions only
        order = order[:-2]
    return F.pad(x, order, {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode])


@_operator
def _max_pool(node: Node, values: Values) -> Tensor:
    x, kernel = values[0], node.get("kernel_shape")
    dims = len(kernel)
    if len(node.outputs) > 1 or not 1 <= dims <= 3:
        raise node.fail("only 1 to 3 dimensions and without indices")
    stride, dilation = node.get("strides", [1] * dims), node.get("dilations", [1] * dims)
    pads = _margins(node, x, kernel, stride, dilation)
    if pads[:dims] != pads[dims:] or any(2 * p > k for p, k in zip(pads, kernel, strict=False)):
        x, pads = _pad_by(x, pads, "constant", -torch.inf), [0] * dims
    call = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    return call(x, kernel, stride, pads[:dims], dilation, bool(node.get("ceil_mode", 0)))


@_operator
def _average_pool(node: Node, values: Values) -> Tensor:
    x, kernel = values[0], node.get("kernel_shape")
    dims = len(kernel)
    stride = node.get("strides", [1] * dims)
    if not 1 <= dims <= 3 or any(d != 1 for d in node.get("dilations", [1])):
        raise node.fail("only 1 to 3 dimensions and without dilation")
    pads = _margins(node, x, kernel, stride, [1] * dims)
    count_pads = bool(node.get("count_include_pad", 0))
    if pads[:dims] != pads[dims:]:
        if not count_pads:
            raise node.fail(f"pads {pads} differ from side to side")
        x, pads = _pad_by(x, pads, "constant", 0.0), [0] * dims
    call: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    out: Tensor = call(x, kernel, stride, pads[:dims], bool(node.get("ceil_mode", 0)), count_pads)
    return out


@_operator
def _batch_normalization(node: Node, values: Values) -> Tensor:
    if node.get("training_mode", 0) or node.get("is_test", 1) == 0:
        raise node.fail("it is in training mode")
    x, scale, shift, mean, variance = values[:5]
    eps = node.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, eps)


@_operator
def _instance_normalization(node: Node, values: Values) -> Tensor:
    x, scale, shift = values
    return F.instance_norm(x, None, None, scale, shift, eps=node.get("epsilon", 1e-5))


@_operator
def _layer_normalization(node: Node, values: Values) -> Tensor:
    x = values[0]
    shape = x.shape[node.get("axis", -1) % x.dim() :]
    shift = values[2] if len(values) > 2 else None
    return F.layer_norm(x, shape, values[1], shift, node.get("epsilon", 1e-5))


def _lrn(node: Node, values: Values) -> Tensor:
    x, size = values[0], node.get("size")
    alpha, beta, bias = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    left = (size - 1) // 2
    margins = [0, 0] * (x.dim() - 2) + [left, size - 1 - left]
    total = F.pad(x.square(), margins).unfold(1, size, 1).sum(-1)
    out: Tensor = x / (bias + alpha / size * total) ** beta
    return out


OPERATORS["LRN"] = _lrn


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def apply(node: Node, values: Values) -> Any:
        axes = node.option(values, 1, "axes")
        if not axes and node.get("noop_with_empty_axes", 0):
            return values[0]
        dims = tuple(axes) if axes else tuple(range(values[0].dim()))
        return function(values[0], dims, keepdim=bool(node.get("keepdims", 1)))

    return apply


OPERATORS |= {
    "ReduceL2": _reduce(lambda x, dims, keepdim: x.square().sum(dims, keepdim).sqrt()),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "ReduceSumSquare": _reduce(lambda x, dims, keepdim: x.square().sum(dims, keepdim)),
}


# Shapes


@_operator
def _shape(node: Node, values: Values) -> Tensor:
    return torch.tensor(values[0].shape)[node.get("start", 0) : node.get("end")]


@_operator
def _flatten(node: Node, values: Values) -> Any:
    axis = node.get("axis", 1)
    if axis in (1, 1 - values[0].dim()):
        return values[0].flatten(1)
    axis += values[0].dim() if axis < 0 else 0
    return values[0].reshape(math.prod(values[0].shape[:axis]), -1)


@_operator
def _reshape(node: Node, values: Values) -> Any:
    shape = node.option(values, 1, "shape")
    if not node.get("allowzero", 0):
        shape = [values[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if node.any_batch and shape and shape[0] == node.batch:
        shape[0] = values[0].shape[0]
        if not shape[0] and -1 in shape[1:]:  # of no images, whose shape torch cannot complete
            known = math.prod(size for size in shape[1:] if size != -1)
            shape[shape.index(-1)] = math.prod(values[0].shape[1:]) // max(known, 1)
    return values[0].reshape(tuple(shape))


@_operator
def _squeeze(node: Node, values: Values) -> Any:
    axes = node.option(values, 1, "axes")
    if axes is None and not node.any_batch:
        return values[0].squeeze()
    if axes is None:
        raise node.fail("it must say which dimensions, or it would take a batch of one as well")
    return values[0].squeeze(tuple(axes))


@_operator
def _unsqueeze(node: Node, values: Values) -> Any:
    axes, x = node.option(values, 1, "axes"), values[0]
    dims = x.dim() + len(axes)
    for axis in sorted(axis % dims for axis in axes):
        x = x.unsqueeze(axis)
    return x


@_operator
def _transpose(node: Node, values: Values) -> Any:
    return values[0].permute(node.get("perm", tuple(reversed(range(values[0].dim())))))


@_operator
def _concat(node: Node, values: Values) -> Tensor:
    axis = node.get("axis")
    if node.any_batch and axis % values[0].dim():  # constants may be for one image: a class token
        rows = max(len(value) for value in values)
        values = [v.expand(rows, *v.shape[1:]) if len(v) == 1 else v for v in values]
    return torch.cat(tuple(values), axis)


@_operator
def _split(node: Node, values: Values) -> Any:
    axis, sizes = node.get("axis", 0), node.option(values, 1, "split")
    if sizes is None:
        size = math.ceil(values[0].shape[axis] / len(node.outputs))
        return values[0].split(size, axis)
    return values[0].split(sizes, axis)


@_operator
def _slice(node: Node, values: Values) -> Any:
    x = values[0]
    starts, ends = node.option(values, 1, "starts"), node.option(values, 2, "ends")
    axes = node.option(values, 3, "axes", list(range(len(starts))))
    steps = node.option(values, 4, "steps", [1] * len(starts))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        indices = range(x.shape[axis])[start:end:step]
        if step > 0:
            place = [slice(None)] * x.dim()
            place[axis] = slice(indices.start, indices.stop, step)
            x = x[tuple(place)]
        else:
            x = x.index_select(axis, torch.tensor(list(indices), device=x.device))
    return x


@_operator
def _gather(node: Node, values: Values) -> Any:
    x, index, axis = values[0], values[1].to(values[0].device), node.get("axis", 0)
    axis %= x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    entries = x.index_select(axis, index.reshape(-1))
    return entries.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@_operator
def _pad(node: Node, values: Values) -> Any:
    x, pads = values[0], list(node.option(values, 1, "pads"))
    value = node.option(values, 2, "value", 0.0)
    axes = node.option(values, 3, "axes")
    if axes is not None:
        all_pads = [0] * 2 * x.dim()
        for place, axis in enumerate(axes):
            all_pads[axis % x.dim()] = pads[place]
            all_pads[axis % x.dim() + x.dim()] = pads[place + len(axes)]
        pads = all_pads
    return _pad_by(x, pads, node.get("mode", "constant"), value)


@_operator
def _expand(node: Node, values: Values) -> Any:
    shape = torch.broadcast_shapes(values[0].shape, tuple(values[1].tolist()))
    return values[0].expand(shape)


@_operator
def _cast(node: Node, values: Values) -> Any:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}
    if node.get("to") not in kinds:
        raise node.fail(f"no cast to ONNX type {node.get('to')}")
    return values[0].to(kinds[node.get("to")])


@_operator
def _constant_of_shape(node: Node, values: Values) -> Tensor:
    value = node.get("value")
    filler = torch.zeros(1) if value is None else torch.from_numpy(value.copy())
    return filler.reshape(()).expand(values[0].tolist()).clone()
