"""Kernels that an evaluation through torch launches on a GPU, and the bytes that they move.

    python benchmarks/count_launches.py

An evaluation is a forward and a backward of ResNet-50 on pictures of 224x224, counted on torch's
device meta: no GPU is needed, and none is timed. Each operator that computes counts as one launch.
Its bytes are those of all tensors that it reads and writes.

- *exact*: the model as it is, as in rounds without a smoothed row.
- *smoothed by operators*: with smoothed activations and pooling, without the kernel of the ReLU.
- *smoothed*: the same with that kernel, each way one launch.

Figures go to ``benchmarks/results/count_launches.json``; docs/performance.md quotes them.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Iterable
from typing import Any
from unittest import mock

import torch
from harness import machine
from harness.resnet import resnet50
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advcore.oracles import smoothed_relu
from advcore.oracles.smoothing import Smoothing, SmoothingScales, Survey

SIDE = 224
"""Height and width of the pictures."""
ROWS = 4
"""Pictures of a batch. The weights are read once for all of them."""
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")
"""Operators beside views that launch nothing."""


def size(tensors: Iterable[Any]) -> int:
    """Bytes of those that are tensors with dimensions."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor) and t.dim())


class Launches(TorchDispatchMode):
    """Dispatch mode that counts launches and bytes, in all and by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def add(self, name: str, tensors: Iterable[Any]) -> None:
        self.launches[name] += 1
        self.bytes[name] += size(tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self.add(name, (*tree_leaves((args, kwargs)), *tree_leaves(out)))
        return out


class Kernels:
    """Stand-in for the kernels of the smoothed ReLU on the device meta: it counts alone."""

    def __init__(self, counted: Launches) -> None:
        self._counted = counted

    def takes(self, *tensors: Tensor) -> bool:
        return True

    def forward(
        self, h: Tensor, d: Tensor, slope: float, out: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        out, u = torch.empty_like(h) if out is None else out, torch.empty_like(h)
        self._counted.add("smoothed_relu_forward", (h, d, out, u))
        return out, u

    def backward(self, gradient: Tensor, u: Tensor, slope: float) -> Tensor:
        dh = torch.empty_like(u)
        self._counted.add("smoothed_relu_backward", (gradient, u, dh))
        return dh


def survey(model: torch.nn.Module, shape: tuple[int, ...]) -> SmoothingScales:
    """The calls of a model on the device meta that can be smoothed."""
    calls = []
    for rows in (2, 3):
        with Survey() as mode:
            model(torch.empty(rows, *shape, device="meta"))
        calls.append(mode.calls)
    scales = SmoothingScales()
    scales.update(calls[0], calls[1])
    return scales


def evaluation(
    model: torch.nn.Module, x: Tensor, scales: SmoothingScales | None = None, fused: bool = False
) -> Launches:
    """Count a forward and its backward: exact, or all rows smoothed, with the kernels or not."""
    counted = Launches()
    stand_in = Kernels(counted) if fused else None
    leaf, dlogits = x.detach().requires_grad_(), torch.empty(len(x), 1000)
    smoothing, slots = torch.empty(len(x)), torch.empty(len(x), dtype=torch.int64)
    with counted, mock.patch.object(smoothed_relu, "_kernels", return_value=stand_in):
        mode = scales and Smoothing(scales, smoothing, slots, None, len(x))
        with mode or contextlib.nullcontext():
            logits = model(leaf)
        torch.autograd.grad(logits, leaf, dlogits)
    return counted


def figures(counted: Launches) -> dict[str, Any]:
    return {
        "launches": counted.launches.total(),
        "megabytes_an_image": round(counted.bytes.total() / ROWS / 1e6, 1),
        "by_operator": {
            name: {"launches": count, "megabytes": round(counted.bytes[name] / ROWS / 1e6, 1)}
            for name, count in counted.launches.most_common()
        },
    }


def count() -> dict[str, Any]:
    """Figures of the three ways."""
    with torch.device("meta"):
        model, x = resnet50(), torch.empty(ROWS, 3, SIDE, SIDE)
        scales = survey(model, (3, SIDE, SIDE))
        scales.grow(ROWS, x.device)
        return {
            "exact": figures(evaluation(model, x)),
            "smoothed by operators": figures(evaluation(model, x, scales)),
            "smoothed": figures(evaluation(model, x, scales, fused=True)),
        }


def main() -> None:
    """Counts, prints and stores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    results = count()
    for name, result in results.items():
        print(f"{name:24} {result['launches']:5} launches {result['megabytes_an_image']:8} MB")
    print(machine.save("count_launches", {"rows": ROWS, "side": SIDE, **results}))


if __name__ == "__main__":
    main()
