"""Recognise fully connected torch modules and turn them into native layers.

Only exact types are accepted: a subclass, or a module of the user's with one `Sequential` inside,
may do anything in its forward. What is not recognised raises `Unsupported` and goes through torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .network import Layer, Unsupported

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]


def lower(module: object, input_shape: tuple[int, ...]) -> list[Layer]:
    """Layers of ``module`` for images of ``input_shape``; see `Network.from_torch`.

    Raises
    ------
    Unsupported
        With the module and the reason.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(module, torch.nn.Module):
        raise Unsupported(f"model ({type(module).__name__}): not a torch.nn.Module")
    if isinstance(module, torch.fx.GraphModule):
        raise Unsupported(
            "an exported program runs through torch; pass the module itself for the native engine"
        )
    state = torch.nn.modules.module
    for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"):
        if getattr(state, f"_global_{name}", None):
            raise Unsupported("global module hooks are registered")
    lowering = _Lowering(input_shape)
    lowering.visit(module, "")
    return lowering.finish()


@dataclass
class _Linear:
    """A layer under construction: weight (out, in) and bias (out,) in float64."""

    weight: Float64
    bias: Float64
    activation: str = "identity"
    slope: float = 0.01


class _Lowering:
    """The walk over the modules: layers so far, shape of the value, and an affine part on hold.

    ``scale`` and ``shift`` hold ``h -> scale * h + shift`` (one entry per value) until a Linear
    comes that can take it; without one they are None.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        if not shape or min(shape) < 1:
            raise ValueError(f"input_shape must be positive integers, got {shape}")
        self.shape = shape
        self.layers: list[_Linear] = []
        self.scale: Float64 | None = None
        self.shift: Float64 | None = None
        self.dtype: object = None
        self.where = ""

    def fail(self, why: str) -> NoReturn:
        raise Unsupported(f"{self.where}: {why}")

    def visit(self, module: torch.nn.Module, path: str) -> None:
        from torch import nn

        self.where = f"{f'layer {path}' if path else 'model'} ({type(module).__name__})"
        self.check(module)
        kind: type[Any] = type(module)
        if kind is nn.Sequential:
            for name, child in module._modules.items():  # named_children() leaves out repetitions
                assert child is not None
                self.visit(child, f"{path}.{name}" if path else name)
        elif kind in (nn.Identity, nn.Dropout):
            return
        elif kind is nn.Flatten:
            self.flatten(module)
        elif kind is nn.Linear:
            self.linear(module)
        elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            self.batch_norm(module, 2 if kind is nn.BatchNorm2d else 1)
        elif self.is_normalize(kind):
            self.normalize(module)
        else:
            self.activation(module)

    def check(self, module: torch.nn.Module) -> None:
        """Refuse what would make a known type behave unlike itself."""
        for name in ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"):
            if getattr(module, f"_{name}", None):
                self.fail(f"it has {name.replace('_', ' ')}")
        if "forward" in vars(module):
            self.fail("its forward is replaced on the instance")
        if hasattr(module, "parametrizations"):
            self.fail("it is parametrized")
        if module.training:
            self.fail("it is in training mode")

    def array(self, tensor: Any, name: str) -> Float64:
        """Copy of a weight as float64, if it is an ordinary finite float32/float64 tensor."""
        import torch

        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            self.fail(f"its {name} is a {type(tensor).__name__}, not a plain tensor")
        if tensor.dtype not in (torch.float32, torch.float64):
            self.fail(f"its {name} is {tensor.dtype}, not float32 or float64")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            self.fail(f"its {name} has no dense data ({tensor.layout}, {tensor.device})")
        if self.dtype not in (None, tensor.dtype):
            self.fail(f"its {name} is {tensor.dtype}, earlier ones are {self.dtype}")
        self.dtype = tensor.dtype
        array: Float64 = tensor.detach().cpu().to(torch.float64).numpy().copy()
        if not np.isfinite(array).all():
            self.fail(f"its {name} is not finite")
        return array

    def flatten(self, module: Any) -> None:
        dims = len(self.shape) + 1
        first, last = module.start_dim, module.end_dim
        first += dims if first < 0 else 0
        last += dims if last < 0 else 0
        if not 1 <= first <= last < dims:
            self.fail(
                f"start_dim {module.start_dim}, end_dim {module.end_dim} on images of {self.shape}"
            )
        merged = math.prod(self.shape[first - 1 : last])
        self.shape = (*self.shape[: first - 1], merged, *self.shape[last:])

    def linear(self, module: Any) -> None:
        weight = self.array(module.weight, "weight")
        outputs, inputs = weight.shape
        bias = np.zeros(outputs) if module.bias is None else self.array(module.bias, "bias")
        if self.shape != (inputs,):
            self.fail(f"it takes ({inputs},), the value before it has shape {self.shape}")
        if self.scale is not None and self.shift is not None:
            bias = bias + weight @ self.shift
            weight = weight * self.scale
            self.scale = self.shift = None
        self.layers.append(_Linear(weight, bias))
        self.shape = (outputs,)

    def affine(self, scale: Float64, shift: Float64) -> None:
        """Append ``h -> scale * h + shift`` per channel, (C,) along the first dimension."""
        rest = math.prod(self.shape[1:])
        scale, shift = np.repeat(scale, rest), np.repeat(shift, rest)
        last = self.layers[-1] if self.layers else None
        if last is not None and self.scale is None and last.activation == "identity":
            last.weight = scale[:, None] * last.weight
            last.bias = scale * last.bias + shift
        elif self.scale is None or self.shift is None:
            self.scale, self.shift = scale, shift
        else:
            self.scale, self.shift = scale * self.scale, scale * self.shift + shift

    def batch_norm(self, module: Any, spatial: int) -> None:
        if module.running_mean is None or module.running_var is None:
            self.fail("it has no running statistics, so it normalises by the batch")
        if len(self.shape) not in ((3,) if spatial == 2 else (1, 2)):
            self.fail(f"it does not take values of shape {self.shape}")
        if self.shape[0] != module.num_features:
            self.fail(f"it takes {module.num_features} channels, the value has {self.shape}")
        mean = self.array(module.running_mean, "running_mean")
        scale = 1.0 / np.sqrt(self.array(module.running_var, "running_var") + module.eps)
        if module.weight is not None:
            scale = scale * self.array(module.weight, "weight")
        shift = -mean * scale
        if module.bias is not None:
            shift = shift + self.array(module.bias, "bias")
        self.affine(scale, shift)

    @staticmethod
    def is_normalize(kind: type[Any]) -> bool:
        return kind.__name__ == "Normalize" and (
            kind.__module__ == "advcore.torch_modules"
            or kind.__module__.startswith("torchvision.transforms.")
        )

    def normalize(self, module: Any) -> None:
        if type(module).__module__.startswith("torchvision") and len(self.shape) != 3:
            # torchvision takes the third dimension from the end as the channels
            self.fail(f"it needs images of shape (C, H, W), got {self.shape}")
        parts = []
        for name in ("mean", "std"):
            value: Any = getattr(module, name)
            if hasattr(value, "detach"):
                value = value.detach().cpu().numpy()
            values = np.asarray(value, dtype=np.float64).reshape(-1)
            if values.size not in (1, self.shape[0]):
                self.fail(f"its {name} has {values.size} values for {self.shape[0]} channels")
            parts.append(np.broadcast_to(values, (self.shape[0],)))
        mean, std = parts
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std != 0).all()):
            self.fail("its mean or std is not finite, or std is zero")
        self.affine(1.0 / std, -mean / std)

    def activation(self, module: Any) -> None:
        from torch import nn

        names: dict[type[Any], str] = {
            nn.ReLU: "relu",
            nn.LeakyReLU: "leaky_relu",
            nn.Sigmoid: "sigmoid",
            nn.Tanh: "tanh",
            nn.Softplus: "softplus",
            nn.GELU: "gelu",
        }
        name = names.get(type(module))
        forward = getattr(type(module), "forward", None)
        if name is None and not str(getattr(forward, "__module__", "torch.")).startswith("torch."):
            self.fail(
                "its own forward cannot be read; write it as nn.Sequential for the native engine"
            )
        if name is None:
            self.fail("this type of module has no native form")
        if name == "softplus" and (module.beta != 1 or module.threshold != 20):
            self.fail(f"only beta 1 and threshold 20, got {module.beta}, {module.threshold}")
        if name == "gelu" and module.approximate == "tanh":
            name = "gelu_tanh"
        if not self.layers or self.scale is not None or self.layers[-1].activation != "identity":
            self.fail("it has no Linear directly before it")
        self.layers[-1].activation = name
        if name == "leaky_relu":
            self.layers[-1].slope = float(module.negative_slope)

    def finish(self) -> list[Layer]:
        self.where = "model"
        if not self.layers:
            self.fail("it has no Linear")
        if len(self.shape) != 1:
            self.fail(f"its output has shape {self.shape}, not (K,)")
        if self.scale is not None and self.shift is not None:
            self.layers.append(_Linear(np.diag(self.scale), self.shift))
        if self.shape == (1,):  # a single logit z: two classes with logits (0, z)
            self.layers.append(_Linear(np.array([[0.0], [1.0]]), np.zeros(2)))
            if self.layers[-2].activation == "identity":
                pair, last = self.layers.pop(), self.layers.pop()
                merged = _Linear(pair.weight @ last.weight, pair.weight @ last.bias)
                self.layers.append(merged)
        try:  # a Layer refuses what overflows in float32
            with np.errstate(over="ignore"):
                return [
                    Layer(
                        layer.weight.astype(np.float32),
                        layer.bias.astype(np.float32),
                        layer.activation,
                        layer.slope,
                    )
                    for layer in self.layers
                ]
        except ValueError as error:
            self.fail(str(error))
