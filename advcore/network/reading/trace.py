"""A torch model as one graph of ATen operations, for any number of rows.

A dispatch mode records the operations of two forwards with different numbers of rows. It sits below
everything that dresses a model: modules, functions, TorchScript, exported programs and checkpoints
all arrive here as the same operations. A whole number that differs between the two records is an
affine function of the number of rows. `docs/decisions.md` compares this with ``torch.export``,
``torch.fx`` and ``make_fx``. Importing this file imports torch.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..layers import Unsupported

_jit: Any = torch.jit  # its stubs do not export all of it

Call = Callable[[Tensor], Tensor]

_aten = torch.ops.aten
_REFUSED_TAGS = {
    torch.Tag.nondeterministic_seeded: "is random",
    torch.Tag.data_dependent_output: "reads a value of a tensor",
    torch.Tag.dynamic_output_shape: "gives a shape that depends on the values of a tensor",
}
"""Tags of operations that have no place in a graph, and what the operation does."""
_VALUE_READS = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default)


_STANCE = threading.RLock()
"""Held while compiled modules run eagerly. Two threads that set and restore at the same time would
leave them so."""


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled modules run as they were before ``torch.compile`` inside the block.

    Under a dispatch mode torch would not compile them, then or later.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    with _STANCE, torch.compiler.set_stance("force_eager"):
        yield


class Operation(NamedTuple):
    """One operation of a record.

    Attributes
    ----------
    function : torch.ops overload
    arguments : list
        Leaves of the positional and named arguments. A tensor of the record is a `Place`.
    structure : TreeSpec
        How the arguments are nested.
    outputs : list
        Leaves of the result, tensors or others.
    output_structure : TreeSpec
    """

    function: Any
    arguments: list[Any]
    structure: Any
    outputs: list[Any]
    output_structure: Any


class Place(NamedTuple):
    """The tensor that output ``output`` of operation ``operation`` is; operation -1: the input."""

    operation: int
    output: int


class Rows(NamedTuple):
    """The whole number ``constant + factor * rows``."""

    constant: int
    factor: int


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Dispatch mode that records the operations of a forward.

    Attributes
    ----------
    operations : list of Operation
    places : dict of id to Place
        Where each tensor comes from. ``operations`` keeps them alive, so that an id names one.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.operations: list[Operation] = []
        self.input = x
        self.constants: set[int] = set()  # addresses of the storages of the model's own tensors
        self.places = {id(x): Place(-1, 0)}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False. Otherwise torch imports its compiler, which takes a second."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs or {}))
        placed = [
            self.places.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        ]
        self._check(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        outputs, output_structure = pytree.tree_flatten(result)
        for index, output in enumerate(outputs):
            if isinstance(output, Tensor):
                self.places[id(output)] = Place(len(self.operations), index)
        self.operations.append(Operation(func, placed, structure, outputs, output_structure))
        return result

    def _check(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an operation that a graph for all images cannot have."""
        for tensor in pytree.tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(tensor) not in self.places:
                self.constants |= _address(tensor)
        for tag in func.tags:
            if tag in _REFUSED_TAGS and not _is_harmless(func, args, kwargs):
                raise Unsupported(f"the operation {func} {_REFUSED_TAGS[tag]}")
        if func in _VALUE_READS:
            raise Unsupported(
                f"the operation {func} {_REFUSED_TAGS[torch.Tag.data_dependent_output]}"
            )
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[index] if index < len(args) else kwargs.get(argument.name)
            if isinstance(written, Tensor) and self._is_constant(written):
                raise Unsupported(f"the operation {func} changes a tensor of the model")

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is the model's own, or a view of one."""
        return id(tensor) not in self.places or bool(_address(tensor) & self.constants)


def _is_harmless(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation with a refused tag does not do here what the tag says."""
    if func is _aten.index.Tensor:  # Only a mask gives a shape that depends on values.
        return all(
            index is None or index.dtype not in (torch.bool, torch.uint8) for index in args[1]
        )
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0.0  # attention


def _address(tensor: Tensor) -> set[int]:
    """The address of a tensor's storage; empty for one without."""
    has_storage = tensor.layout == torch.strided and tensor.device.type != "meta"
    return {tensor.untyped_storage().data_ptr()} - {0} if has_storage else set()


def trace(call: Call, image: Tensor, counts: tuple[int, int] = (2, 3)) -> fx.GraphModule:
    """Return the operations of ``call`` as a graph, images (B, ...) to logits (B, K), for any B.

    Parameters
    ----------
    call : callable
        A module or function; it gets images of the dtype and device of ``image``. Nothing of it is
        changed.
    image : Tensor (1, ...)
        Its copies are the rows of the two forwards.
    counts : tuple of int
        Numbers of rows of the two forwards. Where both are the same, the graph holds for this
        number alone.

    Returns
    -------
    torch.fx.GraphModule
        One placeholder ``x``, calls of ATen overloads, the tensors of the model as attributes, one
        output. The tensors are the model's own: a change of a weight in place is seen. Nodes have
        ``meta["shape"]``, the shape with ``counts[0]`` rows, and ``meta["dtype"]``. It has not been
        compared with ``call``, see `differs`.

    Raises
    ------
    Unsupported
        The operations depend on values of the images, are random, change a tensor of the model or
        depend on the number of rows in another way than by sizes, as far as the two forwards show
        it. What is computed without torch, as in NumPy, is not seen: compare other images.
    """
    records = []
    for count in counts:
        # With gradients, as without them torch runs some layers by operations that have none.
        with torch.inference_mode(False), torch.enable_grad(), _eager():
            leaf = image.detach().expand(count, *image.shape[1:]).clone().requires_grad_(True)
            recorder = _Recorder(leaf.clone())
            # TorchScript runs other operations in its first calls than later.
            with _jit.optimized_execution(False), recorder:
                output = call(recorder.input)
        place = recorder.places.get(id(output)) if isinstance(output, Tensor) else None
        if place is None or place.operation < 0:
            raise Unsupported("the output of the model is not the result of one of its operations")
        records.append((recorder, place))
    (few, place), (more, other) = records
    if place != other or len(few.operations) != len(more.operations):
        raise Unsupported("the operations of the model depend on the number of rows")
    return _Builder(few, more, counts).build(place)


class _Builder:
    """Makes the graph from two records of the same operations."""

    def __init__(self, few: _Recorder, more: _Recorder, counts: tuple[int, int]) -> None:
        self.few, self.more, self.counts = few, more, counts
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.attributes: dict[int, fx.Node] = {}
        self.nodes: dict[Place, fx.Node] = {}
        self.numbers: dict[Rows, fx.Node] = {}

    def build(self, output: Place) -> fx.GraphModule:
        x = self.graph.placeholder("x")
        self.describe(x, self.few.input)
        self.nodes[Place(-1, 0)] = x
        self.rows = self.graph.call_function(_aten.sym_size.int, (x, 0))
        for index, pair in enumerate(zip(self.few.operations, self.more.operations, strict=True)):
            self.add(index, *pair)
        self.graph.output(self.nodes[output])
        # An operation that writes to a tensor has an effect even where nothing reads its result.
        self.graph.eliminate_dead_code(
            lambda node: node.op in ("placeholder", "output") or _writes(node)
        )
        return fx.GraphModule(self.root, self.graph)

    def add(self, index: int, few: Operation, more: Operation) -> None:
        if few.function is not more.function or few.structure != more.structure:
            raise Unsupported("the operations of the model depend on the number of rows")
        pairs = zip(few.arguments, more.arguments, strict=True)
        leaves = [self.leaf(few.function, a, b) for a, b in pairs]
        args, kwargs = pytree.tree_unflatten(leaves, few.structure)
        node = self.graph.call_function(few.function, args, kwargs)
        if len(few.outputs) == 1 and few.output_structure.is_leaf():
            self.describe(node, few.outputs[0])
            self.nodes[Place(index, 0)] = node
            return
        for number, value in enumerate(few.outputs):
            item = self.graph.call_function(operator.getitem, (node, number))
            self.describe(item, value)
            self.nodes[Place(index, number)] = item

    def leaf(self, function: Any, few: Any, more: Any) -> Any:
        """The argument of a node for one argument of both records."""
        if isinstance(few, Place) and few == more:
            return self.nodes[few]
        if isinstance(few, Tensor) and isinstance(more, Tensor):
            return self.constant(few, more)
        if type(few) is type(more) and few == more:
            return few
        if isinstance(few, int) and isinstance(more, int) and not isinstance(few, bool):
            return self.number(function, few, more)
        raise Unsupported(f"an argument of {function} depends on the number of rows in its own way")

    def number(self, function: Any, few: int, more: int) -> fx.Node:
        """The node of a whole number that depends on the number of rows."""
        factor, rest = divmod(more - few, self.counts[1] - self.counts[0])
        if rest:
            raise Unsupported(f"a size in {function} is no affine function of the number of rows")
        number = Rows(few - factor * self.counts[0], factor)
        if number not in self.numbers:
            node = self.rows
            if factor != 1:
                node = self.graph.call_function(operator.mul, (node, factor))
            if number.constant:
                node = self.graph.call_function(operator.add, (node, number.constant))
            self.numbers[number] = node
        return self.numbers[number]

    def constant(self, few: Tensor, more: Tensor) -> fx.Node:
        """The node of a tensor that the model has, or makes, in both forwards alike."""
        if few is not more and not _same(few, more):
            raise Unsupported("the model makes a tensor that depends on the number of rows")
        if id(few) not in self.attributes:
            name = f"tensor_{len(self.attributes)}"
            if isinstance(few, torch.nn.Parameter):
                self.root.register_parameter(name, few)
            else:
                self.root.register_buffer(name, few)
            node = self.graph.get_attr(name)
            self.describe(node, few)
            self.attributes[id(few)] = node
        return self.attributes[id(few)]

    @staticmethod
    def describe(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in every bit that counts."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(a, b)


def differs(graph: Call, call: Call, x: Tensor, tolerance: float = 1e-5) -> str | None:
    """Say how a graph differs from the model on images ``x`` (B, ...); None: it does not.

    Logits must be equal to ``tolerance`` of the largest one, gradients (B, ...) for random
    cotangents to ``1e-3`` of the largest one. A model that has a backward of its own, or that stops
    gradients by ``torch.no_grad``, differs in its gradient.
    """
    results = []
    for function in (call, graph):
        with torch.inference_mode(False), torch.enable_grad(), _eager():
            leaf = x.detach().clone().requires_grad_(True)
            logits = function(leaf.clone())
            seed = torch.Generator().manual_seed(0)
            weights = torch.randn(logits.shape, generator=seed).to(logits)
            gradient = None
            if logits.requires_grad:
                # Of a single number, as with others torch imports its symbolic shapes, for 0.8 s.
                (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            results.append((logits.detach(), gradient))
    (logits, gradient), (traced_logits, traced_gradient) = results
    if logits.shape != traced_logits.shape or not _close(logits, traced_logits, tolerance):
        return "its operations, recorded, give other logits"
    if not _close(gradient, traced_gradient, 1e-3):
        return "its operations, recorded, have another gradient: it has a backward of its own"
    return None


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    largest = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=tolerance * largest, equal_nan=True)
