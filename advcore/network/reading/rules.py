"""The native form of each ATen operation that has one. Importing this file imports torch.

An operation that is not here, or a use of it without a native form, raises `Unsupported`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ..lowering import Float64, Value
from .reader import ROWS, Reader, Rule

_aten = torch.ops.aten
RULES: dict[Any, Rule] = {}
"""The rule of each operation."""


def _rule(*overloads: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(overloads, rule))
        return rule

    return register


@_rule(_aten.clone.default, _aten.alias.default, _aten._to_copy.default, _aten.contiguous.default)
def _same(reader: Reader, node: fx.Node, x: Any, *args: Any) -> Value:
    return reader.value(x)


@_rule(
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten._reshape_alias.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.expand.default,
)
def _reshape(reader: Reader, node: fx.Node, x: Any, *args: Any) -> Value:
    value, shape = reader.value(x), node.meta["shape"]
    if shape[0] != x.meta["shape"][0] or np.prod(shape) != np.prod(x.meta["shape"]):
        reader.fail(f"it makes {tuple(shape)} of {tuple(x.meta['shape'])}, across the images")
    return reader.builder.reshape(value, tuple(shape[1:]))


def _places(value: Value) -> Tensor:
    """The number of each value of an image, in the shape of the value, with a row before."""
    return torch.arange(int(np.prod(value.shape))).reshape(1, *value.shape)


@_rule(
    _aten.permute.default,
    _aten.transpose.int,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.t.default,
    _aten.flip.default,
)
def _reorder(reader: Reader, node: fx.Node, x: Any, *args: Any) -> Value:
    value = reader.value(x)
    places = _places(value)
    # In two rows an operation across the rows is seen.
    rows = torch.cat([places + row * places.numel() for row in range(ROWS)])
    function: Any = node.target
    moved = function(rows, *fx.node.map_arg(args, reader.number))
    if (
        moved.dim() < 1
        or len(moved) != ROWS
        or not torch.equal(moved[0] + places.numel(), moved[1])
    ):
        reader.fail("it moves values across the images")
    return reader.builder.reorder(value, moved[0].numpy())


@_rule(_aten.add.Tensor, _aten.add_.Tensor, _aten.add.Scalar)
def _add(reader: Reader, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Value:
    return _sum(reader, node, a, b, _alpha(node, alpha))


@_rule(_aten.sub.Tensor, _aten.sub_.Tensor, _aten.sub.Scalar)
def _subtract(reader: Reader, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Value:
    return _sum(reader, node, a, b, -_alpha(node, alpha))


@_rule(_aten.rsub.Scalar, _aten.rsub.Tensor)
def _subtract_from(reader: Reader, node: fx.Node, a: Any, b: Any, alpha: float = 1) -> Value:
    one, shift = np.ones(()), reader.per_image(node, b, "minuend")
    return _affine(reader, node, a, -_alpha(node, alpha) * one, shift, one)


def _alpha(node: fx.Node, alpha: float) -> float:
    given: Any = node.kwargs.get("alpha", alpha)
    return float(given)


def _sum(reader: Reader, node: fx.Node, a: Any, b: Any, alpha: float) -> Value:
    is_first = isinstance(reader.values.get(a), Value)
    if is_first and isinstance(b, fx.Node) and isinstance(reader.values.get(b), Value):
        value = reader.value(b)
        if alpha != 1:
            value = reader.builder.affine(value, np.array(alpha), np.zeros(()), np.ones(()))
        return reader.builder.merge([reader.value(a), value], "sum")
    one = np.ones(())
    if is_first:
        return _affine(reader, node, a, one, alpha * reader.per_image(node, b, "term"), one)
    return _affine(reader, node, b, alpha * one, reader.per_image(node, a, "term"), one)


@_rule(_aten.cat.default)
def _concatenate(reader: Reader, node: fx.Node, parts: Any, dim: int = 0) -> Value:
    if dim not in (1, 1 - len(node.meta["shape"])):
        reader.fail(f"only concatenations of channels, not of dimension {dim}")
    return reader.builder.merge([reader.value(part) for part in parts], "concatenate")


def _affine(
    reader: Reader, node: fx.Node, x: Any, scale: Float64, shift: Float64, divisor: Float64
) -> Value:
    value = reader.value(x)
    if tuple(node.meta["shape"][1:]) != value.shape:
        reader.fail(f"it makes {tuple(node.meta['shape'][1:])} of {value.shape}")
    return reader.builder.affine(value, scale, shift, divisor)


@_rule(_aten.mul.Tensor, _aten.mul_.Tensor, _aten.mul.Scalar)
def _multiply(reader: Reader, node: fx.Node, a: Any, b: Any) -> Value:
    if not isinstance(reader.values.get(a), Value):
        a, b = b, a
    return _affine(reader, node, a, reader.per_image(node, b, "factor"), np.zeros(()), np.ones(()))


@_rule(_aten.div.Tensor, _aten.div_.Tensor, _aten.div.Scalar)
def _divide(reader: Reader, node: fx.Node, a: Any, b: Any) -> Value:
    divisor = reader.per_image(node, b, "divisor")
    if not divisor.all():
        reader.fail("its divisor is zero")
    return _affine(reader, node, a, np.ones(()), np.zeros(()), divisor)


@_rule(_aten.neg.default, _aten.neg_.default)
def _negate(reader: Reader, node: fx.Node, x: Any) -> Value:
    return _affine(reader, node, x, -np.ones(()), np.zeros(()), np.ones(()))


@_rule(_aten.native_batch_norm.default, _aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    reader: Reader, node: fx.Node, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any
) -> Value:
    if node.target is _aten.native_batch_norm.default and rest[0]:
        reader.fail("it normalises by the batch")
    value = reader.value(x)
    dims = (-1,) + (1,) * (len(value.shape) - 1)
    scale = 1.0 / np.sqrt(reader.array(var, "running_var") + rest[-1])
    if weight is not None:
        scale = scale * reader.array(weight, "weight")
    shift = -reader.array(mean, "running_mean") * scale
    if bias is not None:
        shift = shift + reader.array(bias, "bias")
    return reader.builder.affine(value, scale.reshape(dims), shift.reshape(dims), np.ones(()))


@_rule(operator.getitem)
def _item(reader: Reader, node: fx.Node, source: fx.Node, index: int) -> Value:
    if index != 0:
        reader.fail("it reads more than the values of an operation")
    return reader.value(source)


@_rule(_aten.addmm.default)
def _addmm(reader: Reader, node: fx.Node, bias: Any, x: Any, weight: Any) -> Value:
    if node.kwargs.get("beta", 1) != 1 or node.kwargs.get("alpha", 1) != 1:
        reader.fail("it scales its product")
    return _product(reader, x, weight, reader.array(bias, "bias"))


@_rule(_aten.mm.default)
def _mm(reader: Reader, node: fx.Node, x: Any, weight: Any) -> Value:
    return _product(reader, x, weight, np.zeros(()))


@_rule(_aten.bmm.default)
def _columns(reader: Reader, node: fx.Node, matrices: Any, x: Any) -> Value:
    """The product of one matrix, repeated for each image, and a column of values."""
    value = reader.value(x)
    if value.shape[1:] != (1,):
        reader.fail(f"only a product with a column of values, got {value.shape}")
    while matrices.target in (_aten.expand.default, _aten.view.default, _aten._unsafe_view.default):
        source = matrices.args[0]
        if source.meta["shape"][-2:] != matrices.meta["shape"][-2:]:
            reader.fail("its matrices are no repeated one")
        matrices = source
    weight = reader.array(matrices, "weight")
    weight = weight[0] if weight.ndim == 3 and len(weight) == 1 else weight
    if weight.ndim != 2:
        reader.fail("its matrices differ from image to image")
    column = reader.builder.reshape(value, (value.shape[0],))
    product = reader.builder.linear(column, weight, np.zeros(len(weight)))
    return reader.builder.reshape(product, (len(weight), 1))


@_rule(_aten.linear.default)
def _linear(reader: Reader, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Value:
    shift = np.zeros(()) if bias is None else reader.array(bias, "bias")
    return reader.builder.linear(
        reader.value(x), reader.array(weight, "weight"), _full(shift, weight.meta["shape"][0])
    )


def _product(reader: Reader, x: Any, weight: Any, bias: Float64) -> Value:
    matrix = np.ascontiguousarray(reader.array(weight, "weight").T)
    return reader.builder.linear(reader.value(x), matrix, _full(bias, len(matrix)))


def _full(bias: Float64, outputs: int) -> Float64:
    """A bias with an entry for each output."""
    return np.broadcast_to(bias, (outputs,)).copy()


@_rule(_aten.convolution.default, _aten._convolution.default)
def _convolution(
    reader: Reader,
    node: fx.Node,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *rest: Any,
) -> Value:
    kernel = reader.array(weight, "weight")
    if kernel.ndim != 4 or transposed:
        reader.fail("only convolutions of images, not transposed")
    if groups != 1 or _pair(dilation) != (1, 1):
        reader.fail(f"only one group and no dilation, got {groups} and {tuple(dilation)}")
    shift = np.zeros(()) if bias is None else reader.array(bias, "bias")
    return reader.builder.convolution(
        reader.value(x), kernel, _full(shift, len(kernel)), _pair(stride), _pair(padding)
    )


@_rule(_aten.constant_pad_nd.default)
def _pad(reader: Reader, node: fx.Node, x: Any, sizes: Any, filling: float = 0) -> Value:
    value = reader.value(x)
    left, right, top, bottom = ([*sizes, 0, 0, 0, 0])[:4]
    is_even = len(sizes) <= 4 and left == right >= 0 and top == bottom >= 0 and filling == 0
    if not is_even or len(value.shape) != 3:
        reader.fail("only zeros around an image, as many on both sides")
    if node.users and any(
        user.target not in (_aten.convolution.default, _aten._convolution.default)
        for user in node.users
    ):
        reader.fail("zeros around a value have no native form without a convolution")
    return Value(**{**vars(value), "padding": (value.padding[0] + top, value.padding[1] + left)})


@_rule(_aten.max_pool2d_with_indices.default, _aten.max_pool2d.default)
def _max_pool(
    reader: Reader,
    node: fx.Node,
    x: Any,
    window: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Value:
    if any(user.target is operator.getitem and user.args[1] != 0 for user in node.users):
        reader.fail("it gives the indices too")
    if _pair(dilation) != (1, 1):
        reader.fail("only windows without dilation")
    return _pool(reader, "max", x, window, stride, padding, ceil_mode)


@_rule(_aten.avg_pool2d.default)
def _mean_pool(
    reader: Reader,
    node: fx.Node,
    x: Any,
    window: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    counts_padding: bool = True,
    divisor: int | None = None,
) -> Value:
    rows, columns = _pair(window)
    if divisor not in (None, rows * columns):
        reader.fail("its divisor is not the size of its windows")
    if not counts_padding and _pair(padding) != (0, 0):
        reader.fail("its padding does not count")
    return _pool(reader, "mean", x, window, stride, padding, ceil_mode)


def _pool(
    reader: Reader, kind: str, x: Any, window: Any, stride: Any, padding: Any, ceil_mode: bool
) -> Value:
    stride = _pair(stride) if isinstance(stride, int) or len(stride) else None
    return reader.builder.pooling(
        reader.value(x), kind, _pair(window), stride, _pair(padding), ceil_mode
    )


@_rule(_aten._adaptive_avg_pool2d.default)
def _adaptive_pool(reader: Reader, node: fx.Node, x: Any, size: Any) -> Value:
    value = reader.value(x)
    sides = value.shape[1:]
    if any(side % count for side, count in zip(sides, size, strict=True)):
        reader.fail(f"windows of {sides} to {tuple(size)} differ in size")
    return reader.builder.pooling(value, "mean", (sides[0] // size[0], sides[1] // size[1]))


@_rule(_aten.mean.dim)
def _mean(reader: Reader, node: fx.Node, x: Any, dims: Any, keepdim: bool = False) -> Value:
    value = reader.value(x)
    count = len(value.shape) + 1
    if count != 4 or {dim % count for dim in dims} != {2, 3}:
        reader.fail("only the mean over all positions of an image")
    pooled = reader.builder.pooling(value, "mean", (value.shape[1], value.shape[2]))
    return reader.builder.reshape(pooled, tuple(node.meta["shape"][1:]))


def _simple(name: str) -> Rule:
    def rule(reader: Reader, node: fx.Node, x: Any, *args: Any) -> Value:
        return reader.builder.activation(reader.value(x), name)

    return rule


for _name in ("relu", "sigmoid", "tanh"):
    for _spelling in (_name, f"{_name}_"):
        RULES[getattr(_aten, _spelling).default] = _simple(_name)


@_rule(_aten.leaky_relu.default, _aten.leaky_relu_.default)
def _leaky_relu(reader: Reader, node: fx.Node, x: Any, slope: float = 0.01) -> Value:
    return reader.builder.activation(reader.value(x), "leaky_relu", float(slope))


@_rule(_aten.clamp.default, _aten.clamp_.default, _aten.clamp_min.default, _aten.clamp_min_.default)
def _clamp(reader: Reader, node: fx.Node, x: Any, least: Any = None, most: Any = None) -> Value:
    if least != 0 or most is not None:
        reader.fail(f"only a lower bound of 0, got {least} and {most}")
    return reader.builder.activation(reader.value(x), "relu")


@_rule(_aten.softplus.default)
def _softplus(
    reader: Reader, node: fx.Node, x: Any, beta: float = 1, threshold: float = 20
) -> Value:
    if beta != 1 or threshold != 20:
        reader.fail(f"only beta 1 and threshold 20, got {beta}, {threshold}")
    return reader.builder.activation(reader.value(x), "softplus")


@_rule(_aten.gelu.default)
def _gelu(reader: Reader, node: fx.Node, x: Any) -> Value:
    is_tanh = node.kwargs.get("approximate", "none") == "tanh"
    return reader.builder.activation(reader.value(x), "gelu_tanh" if is_tanh else "gelu")


def _pair(value: Any) -> tuple[int, int]:
    """The values of both dimensions, from a number or a sequence of one or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values
