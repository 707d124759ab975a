"""ONNX graphs that were exported for a fixed number of images, evaluated for any number.

Importing this file imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..network.input_shape import in_shape
from .onnx_operators import UnsupportedNode

TRIAL = 3
"""Number of images of the trial forward of a graph for any batch. It differs from 1, so that a
fixed batch of one shows."""

REMEDY = "export it in eval mode with a dynamic batch"


class FixedBatch(nn.Module):
    """Evaluates a network of exactly ``batch`` images for any number of them.

    The images go through the network in groups of ``batch``, all groups at once by `torch.vmap`;
    the last group is filled up with zeros. Activations inside have no smoothed form.
    """

    def __init__(self, network: nn.Module, batch: int, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.batch, self.input_shape = network, batch, input_shape

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits (B, classes) of the images (B, ...)."""
        x = in_shape(x, self.input_shape)
        groups = max(-(-len(x) // self.batch), 1)
        filled = torch.cat([x, x.new_zeros(groups * self.batch - len(x), *x.shape[1:])])
        grouped = filled.reshape(groups, self.batch, *x.shape[1:])
        logits: Tensor = torch.vmap(self.group_logits)(grouped)
        return logits.flatten(0, 1)[: len(x)]

    def group_logits(self, x: Tensor) -> Tensor:
        """Compute the logits (batch, classes) of one group."""
        logits: Tensor = self.network(x)
        one_row = self.batch == 1 and torch.is_tensor(logits) and logits.dim() == 1
        return logits[None] if one_row else logits

    def extra_repr(self) -> str:
        return f"batch={self.batch}"


def for_any_batch(
    network: nn.Module, fixed: nn.Module, batch: int | None, shape: tuple[int, ...]
) -> nn.Module:
    """Return a module that gives the logits of the file for any number of images of ``shape``.

    It is ``network`` where that agrees with the file, else a `FixedBatch`.

    network : the graph, read for any number of images.
    fixed : the graph as it is in the file.
    batch : number of images in the file, or None. A file without one whose graph takes one image
        at a time is read as a file for one.

    Raises
    ------
    ValueError : the graph fails, its output is no logits, or the images of a batch influence each
        other.
    """
    count = TRIAL + 1 if batch == TRIAL else TRIAL
    groups = FixedBatch(fixed, batch or 1, shape).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(-(-count // groups.batch) * groups.batch, *shape, generator=generator)
    several = _trial(network, x[:count])
    if batch is None and not several.error:
        return network
    trials = [_trial(groups.group_logits, part) for part in x.split(groups.batch)]
    if trials[0].error:
        raise ValueError(several.error if batch is None else trials[0].error)
    logits = torch.cat([one.output for one in trials])[:count]
    if not several.error and agree(several.output, logits, logits):
        return network
    if batch is None and several.output is not None and several.output.numel() != logits.numel():
        raise ValueError(several.error)
    place = min(batch or 1, count) - 1  # alone it comes first, and beside zeros
    alone = _trial(groups, x[place : place + 1])
    if alone.error:
        raise ValueError(alone.error)
    if not agree(alone.output, logits[place : place + 1], logits):
        raise ValueError(
            f"the logits of an image depend on its place in the batch of {batch}, or on the "
            f"other images there; {REMEDY}"
        )
    return groups


class _Trial(NamedTuple):
    """The output for some images, if there is one, and why it is no logits, or an empty text."""

    output: Any
    error: str


def _trial(network: Callable[[Tensor], Any], x: Tensor) -> _Trial:
    many = f"{len(x)} images" if len(x) > 1 else "one image"
    try:
        with torch.no_grad():
            output = network(x)
    except UnsupportedNode as error:
        return _Trial(None, str(error))
    except Exception as error:
        return _Trial(None, f"it fails for {many} ({error}); {REMEDY}")
    if not torch.is_tensor(output):
        return _Trial(None, f"its output must be a tensor, got {type(output).__name__}")
    if output.dim() == 2 and len(output) == len(x):
        return _Trial(output, "")
    actual = tuple(output.shape)
    return _Trial(output, f"its output for {many} must be ({len(x)}, classes), got {actual}")


def agree(a: Tensor, b: Tensor, logits: Tensor) -> bool:
    """Whether ``a`` is ``b`` up to rounding, where ``logits`` (B, classes) show how they vary."""
    finite = logits.double()[logits.isfinite().all(1)]
    if a.shape != b.shape or not len(finite):
        return torch.equal(a, b)
    spread = (finite - finite.mean(0)).abs().max().item()
    tolerance = 1e-3 * spread + 1e-5 * finite.abs().max().item()
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance, equal_nan=True)
