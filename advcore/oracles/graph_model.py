"""A model as the graph of its operations, in functions that the function modes of a search see.

Exported programs, TorchScript, compiled and checkpointed modules run their activations below the
functions that `advcore.oracles.smoothing` intercepts, or once more in their backward. The graph
that `advcore.network.reading` records of them calls ATen operations; here those that the search
changes become the public functions again. Importing this file imports torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ..network import Unsupported
from ..network.reading.trace import differs, trace

_aten = torch.ops.aten


def _prelu(h: Tensor, weight: Tensor) -> Tensor:
    """The operation of `torch.prelu`, whose ``weight`` has the dimensions of ``h``."""
    return torch.prelu(h, weight.flatten())


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _aten.relu.default: torch.relu,
    _aten.relu_.default: torch.relu_,
    _aten.leaky_relu.default: functional.leaky_relu,
    _aten.leaky_relu_.default: functional.leaky_relu_,
    _aten.clamp.default: torch.clamp,
    _aten.clamp_.default: torch.clamp_,
    _aten.clamp_min.default: torch.clamp_min,
    _aten.clamp_min_.default: torch.clamp_min_,
    _aten.hardtanh.default: functional.hardtanh,
    _aten.hardtanh_.default: functional.hardtanh_,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.sigmoid_.default: torch.sigmoid_,
    _aten.tanh.default: torch.tanh,
    _aten.tanh_.default: torch.tanh_,
    _aten._prelu_kernel.default: _prelu,
    _aten.amax.default: torch.amax,
    _aten.amin.default: torch.amin,
    _aten.max.dim: torch.max,
    _aten.min.dim: torch.min,
    _aten.maximum.default: torch.maximum,
    _aten.minimum.default: torch.minimum,
    _aten.topk.default: torch.topk,
    _aten.sort.default: torch.sort,
    _aten.sort.stable: torch.sort,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.mul.Tensor: torch.mul,
    _aten.div.Tensor: torch.div,
}
"""The function of each operation, with the same arguments."""
_CLAMPS = (torch.clamp, torch.clamp_, torch.clamp_min, torch.clamp_min_)
_SMOOTHED = (
    torch.relu, torch.relu_, functional.leaky_relu, functional.leaky_relu_,
    torch.sigmoid, torch.sigmoid_, torch.tanh, torch.tanh_,
    functional.hardtanh, functional.hardtanh_, _prelu, torch.amax, torch.amin, torch.max,
    torch.min, torch.maximum, torch.minimum, torch.topk, torch.sort,
)  # fmt: skip
_POOLINGS: dict[Any, Callable[..., Any]] = {
    _aten.max_pool2d_with_indices.default: functional.max_pool2d,
    _aten.max_pool3d_with_indices.default: functional.max_pool3d,
    _aten.adaptive_max_pool2d.default: functional.adaptive_max_pool2d,
    _aten.adaptive_max_pool3d.default: functional.adaptive_max_pool3d,
}


def searched_graph(
    call: Callable[[Tensor], Tensor],
    image: Tensor,
    counts: tuple[int, int],
    found: int,
) -> tuple[fx.GraphModule | None, str | None]:
    """The graph of a model's operations where it has more to smooth than calls were ``found``.

    ``call``, ``image`` and ``counts`` are those of `record`. Without a graph the second value says
    why there is none; it is None where the calls were enough.
    """
    try:
        graph = record(call, image, counts)
        if smoothed_calls(graph) <= found:
            return None, None
        # Other images than the one that was recorded, so that a value read by the way is seen.
        low, high = (float(end) for end in image.aminmax())
        low, high = (low, high) if low < high else (min(low, 0.0), max(high, 1.0))
        draws = torch.Generator().manual_seed(0)
        other = torch.rand((counts[0], *image.shape[1:]), generator=draws).to(image)
        reason = differs(graph, call, low + (high - low) * other)
    except Unsupported as unsupported:
        reason = unsupported.reason
    except Exception as error:  # of a model that does not run under a dispatch mode
        reason = f"{type(error).__name__} when its operations were recorded"
    return (None, reason) if reason else (graph, None)


def record(call: Callable[[Tensor], Tensor], x: Tensor, counts: tuple[int, int]) -> fx.GraphModule:
    """Return a module with the operations of ``call``, images (B, ...) to logits (B, K).

    Parameters
    ----------
    call : callable
        The model. Nothing of it is changed, and its weights are not copied.
    x : Tensor (1, ...)
        An image, of the dtype and on the device of the model.
    counts : tuple of int
        Numbers of rows in which the model is recorded.

    Returns
    -------
    torch.fx.GraphModule
        It has not been compared with the model, see `advcore.network.reading.trace.differs`.

    Raises
    ------
    Unsupported
        The model cannot be recorded.
    """
    graph = trace(call, x, counts)
    for node in list(graph.graph.nodes):
        target: Any = node.target
        if target in _FUNCTIONS:
            node.target = _FUNCTIONS[target]
        elif target in _POOLINGS:
            _unpack(graph.graph, node)
    graph.recompile()
    return graph


def _unpack(graph: fx.Graph, node: fx.Node) -> None:
    """Replace a pooling with indices, of which only the values are read."""
    items = [user for user in node.users if user.target is operator.getitem]
    if len(items) != len(node.users) or any(user.args[1] != 0 for user in items):
        return
    target: Any = node.target
    function = _POOLINGS[target]
    with graph.inserting_before(node):
        pooled = graph.call_function(function, node.args, node.kwargs)
    for user in items:
        user.replace_all_uses_with(pooled)
        graph.erase_node(user)
    graph.erase_node(node)


def smoothed_calls(graph: fx.GraphModule) -> int:
    """Return the number of calls in a recorded graph that a search may change."""
    return sum(_is_smoothed(node) for node in graph.graph.nodes)


def _is_smoothed(node: fx.Node) -> bool:
    if node.target in _CLAMPS:
        bounds = [*node.args[1:], node.kwargs.get("min"), node.kwargs.get("max")]
        return all(isinstance(bound, (int, float, type(None))) for bound in bounds)
    return node.target in _SMOOTHED or node.target in _POOLINGS.values()
