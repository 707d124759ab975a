"""The oracle of a torch module or differentiable callable. Importing this file imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelRaised, warn_caller
from .logits import Logits
from .protocol import model_errors

if TYPE_CHECKING:
    import torch

    from .smoothing import Widths

Floats = NDArray[np.float32]


def _shape_hint(shape: tuple[int, ...]) -> str:
    """What may be wrong with images of this shape, if it looks so."""
    if len(shape) == 3 and shape[2] in (1, 3) and shape[0] not in (1, 3):
        return "; channels last? a model with convolutions takes (B, channels, height, width)"
    if len(shape) < 3:
        return "; images must have shape (N, ...): one image alone is images[None]"
    return ""


class TorchOracle:
    """Any torch module or differentiable callable, images (B, ...) to logits (B, K).

    Parameters
    ----------
    model : torch.nn.Module or callable
        Its parameters get no gradients, their ``requires_grad`` and the module stay as they are.
    image_shape : sequence of int
        Shape in which an image reaches the model, without the batch.
    device : str or torch.device, optional
        Where inputs go; default: the device of the module's first parameter or buffer, else CPU.
    sample : ndarray (B, n) float32, optional
        Images to try the model with; default one image of 0.5.
    survey : bool
        Whether to look for activations to smooth at once; else `survey` does it later.

    Notes
    -----
    Inputs have the dtype of the module's first floating-point parameter, else float32. On the CPU
    they are views of the solver's memory (DLPack); a model that writes to its input gets copies.
    Calls run outside autocast. The trial forwards of the constructor find the number of classes
    and the activations that `advcore.smoothing` can smooth; a module that has none, that runs them
    again in its backward (checkpointing) or that hides them (TorchScript, ``torch.compile``) has
    the kind "smooth".

    Raises
    ------
    TypeError, ValueError
        The model raised, its output is not a floating-point tensor (B, K), or no gradient can
        flow through it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        image_shape: Sequence[int],
        device: str | torch.device | None = None,
        sample: Floats | None = None,
        survey: bool = True,
    ) -> None:
        import torch

        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}")
        self._torch = torch
        self._model = model
        self._shape = tuple(image_shape)
        self._n = math.prod(self._shape)
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        if isinstance(model, torch.nn.Module):
            tensors = [*model.parameters(), *model.buffers()]
            self._device = tensors[0].device if tensors else self._device
            floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
            self._dtype = next(floating, self._dtype)
        if device is not None:
            self._device = torch.device(device)
        self._logits = Logits()
        self._copies = True
        self._leaf: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        self._widths: Widths | None = None
        self.saved_bytes = 0  # what a forward keeps of an image for its backward
        self.kind = "smooth"
        x = np.full((1, self._n), 0.5, np.float32) if sample is None else sample
        self._tried = np.ascontiguousarray(x[:1], dtype=np.float32)
        self._try(np.ascontiguousarray(x, dtype=np.float32))
        self.classes = self._logits.classes
        if survey:
            self.survey()

    def survey(self) -> None:
        """Find the activations to smooth, and with them the ``kind``; 4 ms for a small network."""
        try:
            self._survey(self._tried)
        except Exception:  # whatever a model does under a function mode, it still runs without
            self._leaf = self._output = self._widths = None
            self.kind = "smooth"

    def forward(
        self,
        x: Floats,
        k: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        measure: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """See `Oracle`."""
        mode = self._mode(k, slots, measure)
        with self._torch.inference_mode(False):
            output = self._evaluate(self._wrap(x), mode, grad)
            return self._logits.take(self._to_numpy(output), len(x))

    def forward_rows(
        self,
        x: torch.Tensor,
        k: torch.Tensor,
        slots: torch.Tensor,
        measured: torch.Tensor | None,
        capacity: int,
    ) -> torch.Tensor:
        """`forward` on tensors of the model's device, which it does not wait for.

        ``slots`` (B,) int64 are below ``capacity``; ``measured`` holds row numbers.
        """
        torch = self._torch
        with torch.inference_mode(False):
            mode = None
            if self._widths is not None:
                from .smoothing import Smoothing

                mode = Smoothing(self._widths, k, slots, measured, capacity)
            output = self._evaluate(x.detach(), mode, True).detach()
            self._logits.check(tuple(output.shape), len(x))
            logits = output.to(x.device, torch.float32).contiguous()
            if self._logits.outputs == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
            return logits

    def _evaluate(self, x: torch.Tensor, mode: Any, grad: bool) -> torch.Tensor:
        self._leaf = self._output = None
        with self._torch.set_grad_enabled(grad):
            if grad:
                x.requires_grad_(True)
            rows = x.clone() if self._copies else x
            output = self._call(rows.to(self._device, self._dtype), mode)
            if grad:
                self._leaf, self._output = x, output
            return output

    def forget(self) -> None:
        """See `Oracle`."""
        self._leaf = self._output = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    @contextmanager
    def limit_threads(self, count: int | None) -> Iterator[None]:
        """See `Oracle`; the threads are torch's."""
        if count is None:
            yield
            return
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(count)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def backward(self, dlogits: Floats) -> Floats:
        """See `Oracle`; zeros where the logits do not depend on the input."""
        gradient = self._vector_jacobian(self._torch.from_numpy(dlogits))
        if gradient is None:
            return np.zeros((len(dlogits), self._n), dtype=np.float32)
        return self._to_numpy(gradient)

    def backward_rows(self, dlogits: torch.Tensor) -> torch.Tensor:
        """`backward` on tensors, after `forward_rows`."""
        gradient = self._vector_jacobian(dlogits)
        if gradient is None:
            return dlogits.new_zeros(len(dlogits), self._n)
        return gradient.to(self._torch.float32).contiguous()

    def _vector_jacobian(self, dlogits: torch.Tensor) -> torch.Tensor | None:
        leaf, output = self._leaf, self._output
        if leaf is None or output is None:
            raise RuntimeError("backward needs a forward with grad=True before it")
        self._leaf = self._output = None
        if not output.requires_grad:
            return None
        seed = dlogits[:, 1:].contiguous() if self._logits.outputs == 1 else dlogits
        with self._torch.autocast(self._device.type, enabled=False):  # it reaches the backward too
            (gradient,) = self._torch.autograd.grad(
                output, leaf, seed.to(output), allow_unused=True
            )
        return gradient

    @property
    def device(self) -> torch.device:
        """Where the model is evaluated."""
        return self._device

    def _wrap(self, x: Floats) -> torch.Tensor:
        """``x`` as a tensor over the same memory where DLPack allows it (it wants writable)."""
        if not x.flags.writeable or not x.flags.c_contiguous:
            x = np.array(x, order="C")
        from torch.utils.dlpack import from_dlpack

        tensor: torch.Tensor = from_dlpack(x)
        return tensor

    def _to_numpy(self, tensor: torch.Tensor) -> Floats:
        array: Floats = tensor.detach().to("cpu", self._torch.float32).contiguous().numpy()
        return array

    def _call(self, x: torch.Tensor, mode: Any = None) -> torch.Tensor:
        """The model's output for flat rows ``x``, under the function mode if there is one."""
        images = x.reshape(len(x), *self._shape)
        exported = isinstance(self._model, self._torch.fx.GraphModule)
        hint = "; an exported program needs a dynamic batch dimension" if exported else ""
        if not exported and not self._logits.outputs:  # the first call
            hint = _shape_hint(self._shape)
        with self._torch.autocast(self._device.type, enabled=False), model_errors(images, hint):
            if mode is None:
                output = self._model(images)
            else:
                with mode:
                    output = self._model(images)
        if not isinstance(output, self._torch.Tensor):
            raise TypeError(f"model must return a tensor (B, K), got {type(output).__name__}")
        if not output.is_floating_point():
            raise TypeError(f"model must return floating-point logits, got {output.dtype}")
        logits: torch.Tensor = output
        return logits

    def _mode(
        self,
        k: Floats | None,
        slots: NDArray[np.int32] | None,
        measure: NDArray[np.bool_] | None,
    ) -> Any:
        """The function mode this forward needs; None where every row is exact and unmeasured."""
        smooth = k is not None and bool(np.any(k))
        measured = np.flatnonzero(False if measure is None else measure)
        if self._widths is None or not (smooth or measured.size):
            return None
        from .smoothing import Smoothing

        torch = self._torch
        if slots is None:
            raise ValueError("slots must be given where rows are smoothed or measured, got None")
        numbers = torch.from_numpy(slots.astype(np.int64)).to(self._device)
        return Smoothing(
            self._widths,
            torch.from_numpy(np.array(k, np.float32)).to(self._device) if smooth else None,
            numbers,
            torch.from_numpy(measured).to(self._device) if measured.size else None,
            int(slots.max()) + 1,
        )

    def _try(self, x: Floats) -> None:
        """Find the classes, and whether the model writes to its input."""
        torch = self._torch
        with torch.inference_mode(False), torch.no_grad():
            rows = self._wrap(x).clone().to(self._device, self._dtype)
            before, version = rows.clone(), rows._version
            output = self._call(rows)
            # through .data the version stays
            self._copies = rows._version != version or not torch.equal(rows, before)
            self._logits.take(self._to_numpy(output), len(x))
        few = x[:2]
        logits = self._count_saved(few)
        if len(few):
            self._check_gradient(few, logits)
        self._leaf = self._output = None

    def _check_gradient(self, x: Floats, logits: Floats) -> None:
        """Raises where no gradient of the last forward reaches ``x``; warns where it is zero."""
        # Not ones: logits that sum to a constant have no gradient along them.
        seed = np.random.default_rng(0).standard_normal(logits.shape, dtype=np.float32)
        # Weights that want gradients give the output a graph that need not reach the images.
        gradient = self._vector_jacobian(self._torch.from_numpy(seed).to(self._device))
        if gradient is not None and gradient.any():
            return
        try:
            moved = self.forward(x * np.float32(0.5) + np.float32(0.125), grad=False)
        except ModelRaised:  # it may refuse what is outside the caller's bounds
            moved = self.forward(np.ascontiguousarray(x[::-1]), grad=False)
        if np.array_equal(logits, moved, equal_nan=True):
            return
        if gradient is None:
            raise ValueError(
                "model must be differentiable with torch.autograd: its output changes with its "
                "input but no graph leads there (torch.no_grad, detach or NumPy inside?)"
            )
        warn_caller(
            "the gradient of the model's logits is exactly zero at the first images, although "
            "the logits change with them: round, sign or another step function inside? Images "
            "without a gradient are searched in random directions only"
        )

    def _count_saved(self, x: Floats) -> Floats:
        """A forward with a graph, and `saved_bytes`: all storages but the parameters'."""
        own: set[int] = set()
        if isinstance(self._model, self._torch.nn.Module):
            tensors = (*self._model.parameters(), *self._model.buffers())
            own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self._torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = self.forward(x)
        total = sum(size for place, size in kept.items() if place not in own)
        self.saved_bytes = total // max(len(x), 1)
        return logits

    def _survey(self, x: Floats) -> None:
        """Number the activations in forwards with 2 and 3 rows; keep those that follow the rows."""
        from .smoothing import Recomputation, Survey, Widths

        torch = self._torch
        if isinstance(self._model, torch.nn.Module):
            kinds = {type(module).__name__ for module in self._model.modules()}
            if "OptimizedModule" in kinds:  # torch.compile would trace the mode itself
                return
        surveyed = []
        for count in (2, 3):
            mode = Survey()
            with torch.inference_mode(False), torch.enable_grad():
                leaf = self._wrap(np.repeat(x, count, axis=0)).clone().requires_grad_(True)
                output = self._call(leaf.clone().to(self._device, self._dtype), mode)
                if mode.calls and output.requires_grad:
                    total = output.sum()
                    with Recomputation() as backward:
                        torch.autograd.grad(total, leaf, allow_unused=True)
                    if backward.seen:
                        return
            surveyed.append(mode.calls)
        widths = Widths()
        widths.learn(*surveyed)
        if not widths.tails:
            return
        self._widths = widths
        # one pass that measures and one that smooths: the model must run under the mode as well
        slots, k = np.zeros(1, np.int32), np.ones(1, np.float32)
        plain = self.forward(x, slots=slots, measure=np.ones(1, np.bool_), grad=False)
        self.forward(x, k, slots)
        self.backward(np.zeros_like(plain))
        widths.stored.clear()
        self.kind = widths.kind
