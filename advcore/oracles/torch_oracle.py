"""The oracle of a torch module or differentiable callable. Importing this file imports no torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OutOfTime
from .batches import BatchRule, BatchSizes
from .hints import error_hint
from .logits import Logits, SquashFunction
from .module_of import module_of
from .protocol import model_errors, takes_one_image
from .steps import check_reaches
from .survey import Surveyed
from .torch_calls import (
    dense_logits,
    is_compiled,
    on_device,
    padded,
    torch_threads,
    with_graph_bytes,
    wrapped,
)

if TYPE_CHECKING:
    import torch

    from .smoothing import SmoothingScales

Floats = NDArray[np.float32]


class TorchOracle(Surveyed):
    """Oracle of a torch module or differentiable callable, images (B, ...) to logits (B, K).

    Parameters
    ----------
    model : torch.nn.Module or callable
        Its parameters get no gradients. Their ``requires_grad`` and the module stay as they are.
    image_shape : sequence of int
        Shape in which an image reaches the model, without the batch.
    device : str or torch.device, optional
        Device that inputs are moved to. By default it is that of the module's first parameter or
        buffer, else the CPU.
    sample : ndarray (B, n) float32, optional
        Images of the trial forwards; default one image of 0.5.
    survey : bool
        Whether the constructor looks for activations to smooth; else `survey` does it later.
    batch_size : int, optional
        Most images of a forward in the trials and the survey.
    check_time : callable, optional
        Called before each forward but the first. It may raise.
    batch_rule : BatchRule, optional
        Chooses `batches`. One with few sizes is for models on a GPU and compiled ones: others get
        batches as they are, as a padded row costs a CPU what a row costs.

    Notes
    -----
    Inputs have the dtype of the module's first floating-point parameter, else float32. On the CPU
    they are views of the caller's memory (DLPack); a model that writes to its input gets copies.
    What must not be written to later is copied by the caller. Calls run outside autocast.

    The trial forwards of the constructor give the number of classes and the activations that
    `advcore.oracles.smoothing` can smooth. The kind is "smooth" for a module that has none of them,
    or that hides them and cannot be read as a graph of its operations (`unread` says why). Where it
    can, a search evaluates that graph in place of a module that runs its activations again in its
    backward (checkpointing) or hides them (exported programs, TorchScript, ``torch.compile``).

    ``saved_bytes`` is what an exact forward keeps of an image for its backward, ``smoothed_bytes``
    what a smoothed one keeps, 0 where none is smoothed.

    Raises
    ------
    TypeError, ValueError
        The model is not callable, its output is not a floating-point tensor (B, K), or no gradient
        can flow through it.
    ModelRaised
        The model raised.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        image_shape: Sequence[int],
        device: str | torch.device | None = None,
        sample: Floats | None = None,
        survey: bool = True,
        batch_size: int | None = None,
        check_time: Callable[[], None] | None = None,
        batch_rule: BatchRule | None = None,
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
        module = module_of(model).inner
        if module is not None:
            tensors = [*module.parameters(), *module.buffers()]
            self._device = tensors[0].device if tensors else self._device
            floating = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
            self._dtype = next(floating, self._dtype)
        if device is not None:
            self._device = torch.device(device)
        if self._device.type == "meta":
            raise ValueError("model must hold values, its parameters are on the device meta")
        self._logits = Logits(self._shape)
        self._batch_size = batch_size
        self.check_time = check_time
        self._is_compiled = is_compiled(model)
        any_size = self._device.type == "cpu" and not self._is_compiled
        if batch_rule is not None and any_size and not batch_rule.is_fixed:
            batch_rule = None
        self.batches: BatchSizes | None = None
        self._copies = True
        self._leaf: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        self._scales: SmoothingScales | None = None
        self._squash_call: int | None = None
        self._searched: Any = None  # what a search evaluates; None: the model
        self._found = 0  # calls that a search changes
        self.unread: str | None = None  # why the operations could not be read
        self.squash: SquashFunction | None = None
        self.noises: dict[Any, float] | None = None
        self.saved_bytes = self.smoothed_bytes = 0
        self.kind, self.surveyed = "smooth", False
        x = np.full((1, self._n), 0.5, np.float32) if sample is None else sample
        self._survey_image = np.ascontiguousarray(x[:1], dtype=np.float32)
        with suppress(OutOfTime):
            self._run_trial(np.ascontiguousarray(x, dtype=np.float32), batch_rule)
        self.classes = self._logits.classes
        if survey:
            self.survey()

    def with_model(self, model: Any, check_time: Callable[[], None] | None = None) -> TorchOracle:
        """A copy for a model like this oracle's, or None, that knows what was found out."""
        oracle = copy.copy(self)
        oracle._model, oracle.check_time = model, check_time
        oracle._leaf = oracle._output = oracle.noises = None
        oracle._logits, oracle._scales = copy.copy(self._logits), copy.copy(self._scales)
        if oracle._scales is not None:
            oracle._scales.table = None
        return oracle

    def graph_agrees(self, x: Floats, logits: Floats) -> bool:
        """Whether the searched graph, if there is one, has the model's ``logits`` (1, K) of x."""
        if self._searched is None:
            return True
        with self._torch.inference_mode(False), self._torch.no_grad():
            images = wrapped(x.copy()).reshape(1, *self._shape).to(self._device, self._dtype)
            found = self._to_numpy(dense_logits(self._searched(images)))
        own = logits[:, -found.shape[1] :]  # of a single logit the second
        tolerance = 1e-3 * (1 + float(np.abs(own).max()))
        return np.allclose(found, own, rtol=0, atol=tolerance, equal_nan=True)

    @property
    def graph(self) -> Any:
        """The graph that a search evaluates in place of the model, or None."""
        return self._searched

    def forward(
        self,
        x: Floats,
        smoothing: Floats | None = None,
        slots: NDArray[np.int32] | None = None,
        record_scales: NDArray[np.bool_] | None = None,
        grad: bool = True,
    ) -> Floats:
        """See `Oracle`."""
        mode = self._mode(smoothing, slots, record_scales)
        with self._torch.inference_mode(False):
            output = self._evaluate(wrapped(x), mode, grad, slots is not None)
            return self._logits.convert(self._to_numpy(output), len(x))

    def forward_along(self, clean: Floats, end: Floats, t: Floats) -> Floats:
        """Logits (B, P, K) of ``clean + t (end - clean)``, arrays (B, n), for t (P,).

        The images are made on the model's device.
        """
        torch = self._torch
        with torch.inference_mode(False), torch.no_grad():
            start = wrapped(clean).to(self._device)
            r = wrapped(end).to(self._device) - start
            logits = [
                self._logits.convert(
                    self._to_numpy(self._evaluate(start + float(step) * r, None, False)), len(clean)
                )
                for step in t
            ]
        return np.stack(logits, axis=1)

    def forward_rows(
        self,
        x: torch.Tensor,
        smoothing: torch.Tensor | None,
        slots: torch.Tensor,
        recorded_rows: torch.Tensor | None,
        capacity: int,
    ) -> torch.Tensor:
        """Logits (B, K) float32 like `forward`, on tensors of the model's device.

        It does not wait for the device.

        Parameters
        ----------
        x : Tensor (B, n) float32
        smoothing : Tensor (B,) float32, or None
            None: every row is exact.
        slots : Tensor (B,) int64
        recorded_rows : Tensor int64, or None
            Numbers of the rows whose smoothing scales are recorded.
        capacity : int
            A number above every slot.
        """
        torch = self._torch
        with torch.inference_mode(False):
            mode = None
            if self._scales is not None and (smoothing is not None or recorded_rows is not None):
                from .smoothing import Smoothing

                mode = Smoothing(self._scales, smoothing, slots, recorded_rows, capacity)
            output = self._evaluate(x.detach(), mode, True, True).detach()
            self._logits.check(tuple(output.shape), len(x))
            logits = output.to(x.device, torch.float32).contiguous()
            if self._logits.outputs == 1:
                logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
            return logits

    def _evaluate(
        self, x: torch.Tensor, mode: Any, grad: bool, searched: bool = False
    ) -> torch.Tensor:
        self._leaf = self._output = None
        tracked = grad or self._tracks
        with self._torch.set_grad_enabled(tracked):
            if tracked:
                x.requires_grad_(True)
            rows = x.clone() if self._copies and self.batches is None else x
            output = self._call(rows.to(self._device, self._dtype), mode, searched)
            if grad:
                self._leaf, self._output = x, output
            return output

    def forget(self) -> None:
        """See `Oracle`."""
        self._leaf = self._output = None
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def limit_threads(self, count: int | None) -> AbstractContextManager[None]:
        """See `Oracle`; the threads are torch's."""
        return torch_threads(count)

    def backward(self, dlogits: Floats) -> Floats:
        """See `Oracle`; zeros where the logits do not depend on the input."""
        rows = len(dlogits)
        gradient = self._vector_jacobian(self._torch.from_numpy(dlogits))
        if gradient is None:
            return np.zeros((rows, self._n), dtype=np.float32)
        return self._to_numpy(gradient[:rows])

    def backward_rows(self, dlogits: torch.Tensor) -> torch.Tensor:
        """Gradient (B, n) float32 like `backward`, on tensors, after `forward_rows`."""
        gradient = self._vector_jacobian(dlogits)
        if gradient is None:
            return dlogits.new_zeros(len(dlogits), self._n)
        return gradient.to(self._torch.float32).contiguous()

    def _vector_jacobian(self, dlogits: torch.Tensor) -> torch.Tensor | None:
        """Gradient (B, n) of the last forward; None where no graph leads to the input."""
        leaf, output = self._leaf, self._output
        if leaf is None or output is None:
            raise RuntimeError("backward needs a forward with grad=True before it")
        self._leaf = self._output = None
        if not output.requires_grad:
            return None
        dlogits = dlogits[:, 1:].contiguous() if self._logits.outputs == 1 else dlogits
        if self.batches is not None:  # the other rows need none
            zeros = dlogits.new_zeros(len(output) - len(dlogits), dlogits.shape[1])
            dlogits = self._torch.cat([dlogits, zeros])
        with (
            self._torch.inference_mode(False),
            self._torch.enable_grad(),
            self._torch.autocast(self._device.type, enabled=False),  # it reaches the backward too
        ):
            seed: Any = dlogits.to(output)
            if leaf.device.type == "cpu":
                # The same gradient. Given a seed, torch imports sympy at first, which takes 0.8 s.
                seed = seed.clone() if seed.is_inference() else seed
                output, seed = (output * seed).sum(), None
            gradients: tuple[torch.Tensor | None] = self._torch.autograd.grad(
                output, leaf, seed, allow_unused=True
            )
        return gradients[0]

    @property
    def outputs(self) -> int:
        """See `Oracle`."""
        return self._logits.outputs

    @property
    def _tracks(self) -> bool:
        """Whether every forward keeps a graph: torch compiles one with and one without anew."""
        return self._is_compiled and self.batches is not None

    @property
    def device(self) -> torch.device:
        """Device on which the model is evaluated."""
        return self._device

    def _to_numpy(self, tensor: torch.Tensor) -> Floats:
        array: Floats = tensor.detach().to("cpu", self._torch.float32).contiguous().numpy()
        return array

    def _call(self, x: torch.Tensor, mode: Any = None, searched: bool = False) -> torch.Tensor:
        """The model's output for flat rows ``x``, under the function mode if there is one.

        With ``searched`` it is that of what a search evaluates.
        """
        if self.check_time is not None and self._logits.outputs:
            self.check_time()
        modes = [] if mode is None else [mode]
        if searched and self._squash_call is not None:
            from .squashing import Unsquash

            modes.append(Unsquash(self._squash_call))
        rows = count = len(x)
        if self.batches is not None:
            count = self.batches.padded(rows)
            x = padded(x, count)
            if mode is not None:
                mode.pad(count)
        images = x.reshape(count, *self._shape)
        model = self._model if self._searched is None or not searched else self._searched
        with (
            self._torch.autocast(self._device.type, enabled=False),
            model_errors(tuple(images.shape), lambda error: self._hint(error, images)),
            ExitStack() as stack,
        ):
            for each in modes:  # the first is the outermost
                stack.enter_context(each)
            output = model(images)
        logits = dense_logits(output)
        return logits[:rows] if rows < count == len(logits) else logits

    def _hint(self, error: Exception, images: torch.Tensor) -> str:
        """Text of the remedy for an error of the model, or nothing."""
        if isinstance(self._model, self._torch.fx.GraphModule):
            return "; an exported program needs a dynamic batch dimension"
        is_module = isinstance(self._model, self._torch.nn.Module)
        dtype = str(images.dtype).removeprefix("torch.") if is_module else None
        return error_hint(error, tuple(images.shape), dtype)

    def _mode(
        self,
        smoothing: Floats | None,
        slots: NDArray[np.int32] | None,
        record_scales: NDArray[np.bool_] | None,
    ) -> Any:
        """Function mode of a forward; None where every row is exact and records no scales."""
        any_smoothed = smoothing is not None and bool(np.any(smoothing))
        recorded_rows = np.flatnonzero(False if record_scales is None else record_scales)
        if self._scales is None or not (any_smoothed or recorded_rows.size):
            return None
        from .smoothing import Smoothing

        if slots is None:
            raise ValueError(
                "slots must be given where rows are smoothed or record scales, got None"
            )

        return Smoothing(
            self._scales,
            on_device(np.array(smoothing, np.float32), self._device) if any_smoothed else None,
            on_device(slots.astype(np.int64), self._device),
            on_device(recorded_rows, self._device) if recorded_rows.size else None,
            int(slots.max()) + 1,
        )

    def _run_trial(self, x: Floats, rule: BatchRule | None) -> None:
        """Evaluate ``x`` to learn the number of classes and whether the model writes to its input.

        The first rows also give `saved_bytes`, and with a rule `batches`, and show whether
        gradients reach the input.
        """
        size = min(self._batch_size or len(x), len(x))
        if rule is not None:
            self._try_backward(x, 1)
            self.batches = rule.sizes(self)
            size = min(size, self.batches.most)
        try:
            self._copies = False
            for start in range(0, max(len(x), 1), max(size, 1)):
                self._copies |= self._writes_to_input(x[start : start + size])
        except ValueError as error:
            hint = takes_one_image(self._writes_to_input, x[:size])
            if hint:
                raise type(error)(f"{error}{hint}") from error.__cause__
            raise
        if rule is None:
            self._try_backward(x, min(2, size))

    def _try_backward(self, x: Floats, count: int) -> None:
        """Evaluate the first ``count`` rows of ``x`` and their gradient, and set `saved_bytes`."""
        few = x[:count].copy()  # the model may write to its input here, if not above
        logits, total = with_graph_bytes(self._model, lambda: self.forward(few))
        self.saved_bytes = total // max(len(few), 1)
        if len(few):
            self._check_gradient(x[:2], logits)
        self._leaf = self._output = None

    def _writes_to_input(self, x: Floats) -> bool:
        """Evaluate ``x``, and check its logits; whether the model has changed its input."""
        torch = self._torch
        with torch.inference_mode(False), torch.set_grad_enabled(self._tracks):
            rows = wrapped(x).clone().to(self._device, self._dtype).requires_grad_(self._tracks)
            original, version = rows.detach().clone(), rows._version
            output = self._call(rows)
            self._logits.convert(self._to_numpy(output), len(x))
            # A write through .data leaves the version as it is, so values are compared too.
            return rows._version != version or not torch.equal(rows, original)

    def _check_gradient(self, x: Floats, logits: Floats) -> None:
        """Check that a gradient of the last forward reaches its rows, see `check_reaches`.

        They are the first rows of ``x``, with logits (B, K).
        """
        # Not ones: logits that sum to a constant have no gradient along them.
        dlogits = np.random.default_rng(0).standard_normal(logits.shape, dtype=np.float32)
        # Weights that require gradients give the output a graph that need not reach the images.
        with model_errors((len(logits), *self._shape), what="the model's backward raised"):
            gradient = self._vector_jacobian(self._torch.from_numpy(dlogits).to(self._device))
        # Models of half precision are not looked at: their logits are steps too.
        may_step = self._dtype not in (self._torch.float32, self._torch.float64)
        dx = None if gradient is None else self._to_numpy(gradient)
        check_reaches(self.forward, x, logits, dlogits, dx, may_step)
