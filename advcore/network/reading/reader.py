"""What each operation of a graph gives for one image, by the rules of `rules.py`.

Importing this file imports torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx

from ..lowering import Builder, Float64, Value

_aten = torch.ops.aten
ROWS = 2
"""Rows in which an operation that moves values is tried."""
_NUMBERS = (_aten.sym_size.int, operator.mul, operator.add)
"""What a graph computes sizes by."""
Rule = Callable[..., Any]
"""What an operation gives: a function of the `Reader`, the node, and the node's arguments."""


class Reader:
    """Reads the nodes of a graph in their order.

    Attributes
    ----------
    values : dict of node to Value or Tensor
        What each node gives: a value of every image, or a constant of the model.
    """

    def __init__(self, graph: fx.GraphModule, rules: Mapping[Any, Rule]) -> None:
        self.graph = graph
        self.rules = rules
        self.builder = Builder()
        self.values: dict[fx.Node, Any] = {}

    def fail(self, why: str) -> NoReturn:
        """Raise `Unsupported` for the operation at work."""
        self.builder.fail(why)

    def read(self, node: fx.Node) -> None:
        """Keep what a node gives."""
        self.builder.location = f"operation {node.target} ({node.name})"
        self.check(node)
        if node.op == "placeholder":
            result: Any = self.builder.image(node.meta["shape"][1:])
        elif node.op == "get_attr":
            result = getattr(self.graph, str(node.target)).detach()
        elif node.target in _NUMBERS:
            result = None  # the number of rows is in it
        elif not any(isinstance(self.values.get(x), Value) for x in node.all_input_nodes):
            result = self.constant(node)
        else:
            rule = self.rules.get(node.target)
            if rule is None:
                self.fail("it has no native form")
            result = rule(self, node, *node.args)
        if isinstance(result, Value) and sum(_reads(user) for user in node.users) > 1:
            result = Value(**{**vars(result), "is_shared": True})
        self.values[node] = result

    def check(self, node: fx.Node) -> None:
        """Refuse values that are not those of one image after the other, in float32 or float64."""
        dtype = node.meta.get("dtype")
        if (
            dtype is not None
            and dtype.is_floating_point
            and dtype not in (torch.float32, torch.float64)
        ):
            self.fail(f"its values are {dtype}, not float32 or float64")

    def constant(self, node: fx.Node) -> Any:
        """The result of an operation on constants alone; None where the number of rows is in it."""
        inputs = [self.values.get(x) for x in node.all_input_nodes]
        if any(value is None for value in inputs) or not callable(node.target):
            return None
        args = fx.node.map_arg(node.args, self.values.get)
        kwargs = fx.node.map_arg(node.kwargs, self.values.get)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def number(self, argument: Any) -> Any:
        """A size in the graph for ``ROWS`` rows."""
        if argument.target is _aten.sym_size.int:
            return ROWS
        function: Any = argument.target
        if function not in _NUMBERS:
            self.fail("a place in it depends on the image")
        return function(*fx.node.map_arg(argument.args, self.number))

    def value(self, argument: Any) -> Value:
        """The value of an argument that belongs to an image."""
        value = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if not isinstance(value, Value):
            self.fail("it takes no value of the image where the native form has one")
        return value

    def array(self, argument: Any, name: str) -> Float64:
        """A constant in float64; `Unsupported` unless it is finite."""
        value = self.values.get(argument) if isinstance(argument, fx.Node) else argument
        if isinstance(value, Value) or value is None:
            self.fail(f"its {name} depends on the image")
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type == "meta":
                self.fail(f"its {name} has no dense data ({value.layout}, {value.device})")
            array: Float64 = value.detach().cpu().to(torch.float64).numpy().copy()
        else:
            array = np.asarray(value, dtype=np.float64)
        if not np.isfinite(array).all():
            self.fail(f"its {name} is not finite")
        return array

    def per_image(self, node: fx.Node, argument: Any, name: str) -> Float64:
        """A constant that broadcasts to the values of an image; the same for every image."""
        array = self.array(argument, name)
        dims = len(node.meta["shape"])
        if array.ndim == dims:
            if len(array) != 1:
                self.fail(f"its {name} has {len(array)} rows")
            array = array[0]
        return array


def _reads(user: fx.Node) -> bool:
    """Whether a user reads the values, not only their number of rows."""
    return user.target is not _aten.sym_size.int
