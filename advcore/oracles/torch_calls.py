"""What surrounds the calls of a torch model: threads, memory and the form of the output.

Importing this file imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .logits import single_output

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Give torch, where it is loaded, ``count`` CPU threads inside the block; None: as before."""
    torch = sys.modules.get("torch")
    if torch is None or count is None:
        yield
        return
    default_count = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(default_count)


def padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    """A copy of ``x`` (B, ...) with copies of its last row after it, (rows, ...)."""
    import torch

    copies = x[-1:].detach().expand(rows - len(x), *x.shape[1:])
    return torch.cat([x, copies])  # also where none is missing: fresh memory is aligned


def wrapped(x: Floats) -> torch.Tensor:
    """``x`` as a tensor over the same memory, or a copy where DLPack would refuse it."""
    # DLPack takes writable memory only.
    if not x.flags.writeable or not x.flags.c_contiguous:
        x = np.array(x, order="C")
    from torch.utils.dlpack import from_dlpack

    tensor: torch.Tensor = from_dlpack(x)
    return tensor


def on_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A tensor on ``device`` with the values of an array."""
    import torch

    return torch.from_numpy(array).to(device)


def is_compiled(model: Any) -> bool:
    """Whether ``torch.compile`` has made the model or a module in it."""
    import torch

    if hasattr(model, "_torchdynamo_orig_callable"):
        return True
    return isinstance(model, torch.nn.Module) and any(
        type(part).__name__ == "OptimizedModule"
        or getattr(part, "_compiled_call_impl", None) is not None
        for part in model.modules()
    )


def dense_logits(output: Any) -> torch.Tensor:
    """The logits in what a model returned.

    Raises
    ------
    TypeError, ValueError
        They are no dense tensor of floating-point values.
    """
    import torch

    logits: torch.Tensor = output
    if not isinstance(output, torch.Tensor):
        logits = single_output(output, lambda value: isinstance(value, torch.Tensor), "a tensor")
    if not logits.is_floating_point():
        raise TypeError(f"model must return floating-point logits, got {logits.dtype}")
    if logits.layout != torch.strided or logits.is_nested:
        raise TypeError(
            f"model must return dense logits, got a tensor of the layout {logits.layout}"
            f"{' (nested)' if logits.is_nested else ''}: add .to_dense()"
        )
    if logits.device.type == "meta":
        raise ValueError("model must return logits with values, got a tensor on the device meta")
    return logits


def with_graph_bytes(model: Any, forward: Callable[[], Floats]) -> tuple[Floats, int]:
    """What ``forward`` returns, and the bytes that its graph keeps for a backward.

    Counted are all storages that the graph keeps, but those of the model's own tensors.
    """
    import torch

    model_addresses: set[int] = set()
    if isinstance(model, torch.nn.Module):
        tensors = (*model.parameters(), *model.buffers())
        model_addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    sizes: dict[int, int] = {}  # bytes by address

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = forward()
    return logits, sum(size for address, size in sizes.items() if address not in model_addresses)
