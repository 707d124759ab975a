"""From a torch model to layers of the native engine. Importing this file imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import OutOfTime
from ..layers import Unsupported
from ..merge import AnyLayer
from ..modes import parts_in_training
from .reader import Reader
from .rules import RULES
from .trace import differs, trace


def lower(
    model: Callable[..., Any], shape: tuple[int, ...], counts: tuple[int, int] = (2, 3)
) -> list[AnyLayer]:
    """Native layers of ``model`` for images of ``shape``; see `Network.from_torch` and `read`."""
    return read(model, shape, counts)[1]


def read(
    model: Callable[..., Any],
    shape: tuple[int, ...],
    counts: tuple[int, int] = (2, 3),
    check_time: Callable[[], None] = lambda: None,
) -> tuple[fx.GraphModule, list[AnyLayer]]:
    """Graph and native layers of ``model`` for images of ``shape``.

    ``counts`` are the numbers of rows in which the model is recorded, as in `trace`. ``check_time``
    is called before each forward of the model, and may raise `OutOfTime`.

    Raises
    ------
    Unsupported
        The model has no native form, or cannot be read; the error says why.
    OutOfTime
        From ``check_time``.
    """
    if isinstance(model, torch.nn.Module) and not isinstance(model, fx.GraphModule):
        for name, part in parts_in_training(model):
            where = f"layer {name}" if name else "model"
            raise Unsupported(f"{where} ({type(part).__name__}): it is in training mode")
    image = _gray_image(model, shape)

    def call(x: Tensor) -> Any:
        check_time()
        return model(x)

    try:
        graph = trace(call, image, counts)
        rows = torch.Generator().manual_seed(0)
        x = torch.rand((counts[0], *shape), generator=rows).to(image)
        layers = lower_graph(graph)
        reason = differs(graph, call, x)
    except (Unsupported, OutOfTime):
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise Unsupported(f"the model raised {type(error).__name__} ({text})") from error
    if reason:
        raise Unsupported(reason)
    return graph, layers


def _gray_image(model: Any, shape: tuple[int, ...]) -> Tensor:
    """An image (1, ...) of 0.5 with the type and place that the model takes."""
    tensors = []
    if isinstance(model, torch.nn.Module):
        tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise Unsupported("its parameters have no dense data (meta)")
    floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.full((1, *shape), 0.5, dtype=next(floating, torch.float32), device=device)


def lower_graph(graph: fx.GraphModule) -> list[AnyLayer]:
    """Native layers of a graph that `trace` has made.

    Raises
    ------
    Unsupported
        An operation has no native form; the error names it and the reason.
    """
    reader = Reader(graph, RULES)
    for node in graph.graph.nodes:
        if node.op == "output":
            return reader.builder.finish(reader.value(node.args[0]))
        reader.read(node)
    raise AssertionError("a graph has an output")
