"""Recognise torch modules that are chains of known layers, and turn them into native layers.

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

from .layers import Convolution, Layer, Unsupported

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]


def lower(module: object, input_shape: tuple[int, ...]) -> list[Layer | Convolution]:
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

    def scaled(self, scale: Float64, shift: Float64) -> bool:
        """Takes ``h -> scale * h + shift``, an entry for each output; False where it cannot."""
        if self.activation != "identity":
            return False
        self.weight = scale[:, None] * self.weight
        self.bias = scale * self.bias + shift
        return True

    def finished(self) -> Layer | Convolution:
        """In float32; a `Layer` refuses what overflows there."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return Layer(weight, bias, self.activation, self.slope)


@dataclass
class _Convolution(_Linear):
    """The same with weight (out, in, y, x), for images of ``shape``."""

    shape: tuple[int, int, int] = (1, 1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_value: Float64 | None = None
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(features, height, width) after the pooling."""
        return self.finished().out_shape

    def scaled(self, scale: Float64, shift: Float64) -> bool:
        """See `_Linear.scaled`; the entries are those of all positions."""
        features = scale.reshape(len(self.bias), -1)
        same = len(scale) > 0 and bool((np.ptp(features, axis=1) == 0).all())
        shifts = shift.reshape(len(self.bias), -1)
        same = same and bool((np.ptp(shifts, axis=1) == 0).all())
        if self.activation != "identity" or self.pooling != "none" or not same:
            return False
        self.weight = features[:, :1, None, None] * self.weight
        self.bias = features[:, 0] * self.bias + shifts[:, 0]
        return True

    def finished(self) -> Convolution:
        """See `_Linear.finished`."""
        value = np.zeros(self.shape[0]) if self.padding_value is None else self.padding_value
        return Convolution(
            self.weight.astype(np.float32),
            self.bias.astype(np.float32),
            self.shape,
            self.activation,
            self.slope,
            self.stride,
            self.padding,
            value.astype(np.float32),
            self.pooling,
            self.window,
        )


class _Lowering:
    """The walk over the modules: layers so far, shape of the value, and an affine part on hold.

    ``scale`` and ``shift`` hold ``h -> scale * h + shift`` (one entry per value) until a Linear or
    Conv2d comes that can take it; without one they are None.
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
        elif kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
            return
        elif kind is nn.Flatten:
            self.flatten(module)
        elif kind is nn.Unflatten:
            self.unflatten(module)
        elif kind is nn.Linear:
            self.linear(module)
        elif kind is nn.Conv2d:
            self.convolution(module)
        elif kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d):
            self.pooling(module, "max" if kind is nn.MaxPool2d else "mean")
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

    def unflatten(self, module: Any) -> None:
        dim = module.dim if isinstance(module.dim, int) else 0
        dim += len(self.shape) + 1 if dim < 0 else 0
        sizes = tuple(module.unflattened_size)
        known = all(isinstance(size, int) for size in sizes)
        if not (1 <= dim <= len(self.shape) and known and math.prod(sizes) == self.shape[dim - 1]):
            self.fail(f"dim {module.dim}, sizes {module.unflattened_size} on {self.shape}")
        self.shape = (*self.shape[: dim - 1], *sizes, *self.shape[dim:])

    def convolution(self, module: Any) -> None:
        if module.groups != 1 or tuple(module.dilation) != (1, 1):
            self.fail(f"only one group and no dilation, got {module.groups} and {module.dilation}")
        padding = module.padding
        if padding == "valid":
            padding = (0, 0)
        if isinstance(padding, str):
            if not all(size % 2 for size in module.kernel_size):
                self.fail("padding 'same' of an even kernel differs from side to side")
            padding = tuple((size - 1) // 2 for size in module.kernel_size)
        if module.padding_mode != "zeros" and any(padding):
            self.fail(f"only zeros around the image, got {module.padding_mode!r}")
        weight = self.array(module.weight, "weight")
        bias = np.zeros(len(weight)) if module.bias is None else self.array(module.bias, "bias")
        if len(self.shape) != 3 or self.shape[0] != weight.shape[1]:
            self.fail(f"it takes ({weight.shape[1]}, H, W), the value before it has {self.shape}")
        if self.layers and not isinstance(self.layers[-1], _Convolution):
            self.fail("convolutions after a Linear have no native form")
        self.check_map()
        value = np.zeros(self.shape[0])
        if self.scale is not None and self.shift is not None:
            channels = np.stack(
                [part.reshape(self.shape[0], -1) for part in (self.scale, self.shift)]
            )
            if np.ptp(channels, axis=2).any():
                self.fail("the normalisation before it differs from pixel to pixel")
            scale, shift = channels[:, :, 0]
            bias = bias + weight.sum(axis=(2, 3)) @ shift
            if any(padding):  # zero for the convolution is -shift / scale before it
                if not scale.all():
                    self.fail("the normalisation before it has a scale of zero")
                value = -shift / scale
            weight = weight * scale[:, None, None]
            self.scale = self.shift = None
        channels_, height, width = self.shape
        stride = tuple(module.stride)
        sizes = zip((height, width), module.kernel_size, stride, padding, strict=True)
        positions = tuple((size + 2 * pad - k) // step + 1 for size, k, step, pad in sizes)
        if min(positions) < 1:
            self.fail(f"its kernel does not fit {self.shape}")
        self.layers.append(
            _Convolution(
                weight,
                bias,
                shape=(channels_, height, width),
                stride=stride,
                padding=tuple(padding),
                padding_value=value,
            )
        )
        self.shape = (len(weight), *positions)

    def check_map(self) -> None:
        """Refuse values of a convolution that were reshaped since."""
        last = self.layers[-1] if self.layers else None
        if isinstance(last, _Convolution) and self.shape != last.out_shape:
            self.fail(f"the values before it were reshaped from {last.out_shape} to {self.shape}")

    def pooling(self, module: Any, kind: str) -> None:
        last = self.layers[-1] if self.layers else None
        if not isinstance(last, _Convolution) or last.pooling != "none" or self.scale is not None:
            self.fail("it has no convolution with its activation directly before it")
        if len(self.shape) != 3:
            self.fail(f"it does not take values of shape {self.shape}")
        self.check_map()
        sides = self.shape[1:]

        def pair(value: Any) -> tuple[int, int]:
            values = (value,) if isinstance(value, int) else tuple(value)
            return values * 2 if len(values) == 1 else values

        if hasattr(module, "output_size"):  # adaptive: windows side by side where they divide
            size = module.output_size
            wanted = [size] * 2 if size is None or isinstance(size, int) else size
            counts = [side if n is None else n for side, n in zip(sides, wanted, strict=True)]
            if any(side % n for side, n in zip(sides, counts, strict=True)):
                self.fail(f"windows of {sides} to {module.output_size} differ in size")
            window = (sides[0] // counts[0], sides[1] // counts[1])
        else:
            window = pair(module.kernel_size)
            plain = pair(module.padding) == (0, 0) and pair(getattr(module, "dilation", 1)) == (
                1,
                1,
            )
            if pair(module.stride) != window or not plain:
                self.fail("only windows side by side, without padding or dilation")
            exact = not any(side % n for side, n in zip(sides, window, strict=True))
            if module.ceil_mode and not exact:
                self.fail("windows that reach beyond the end (ceil_mode)")
            if getattr(module, "return_indices", False):
                self.fail("it returns the indices too")
            if getattr(module, "divisor_override", None) not in (None, window[0] * window[1]):
                self.fail("its divisor is not the size of its windows")
        if window[0] > sides[0] or window[1] > sides[1]:
            self.fail(f"its windows do not fit {self.shape}")
        last.pooling, last.window = kind, window
        self.shape = (self.shape[0], sides[0] // window[0], sides[1] // window[1])

    def affine(self, scale: Float64, shift: Float64) -> None:
        """Append ``h -> scale * h + shift`` per channel, (C,) along the first dimension."""
        rest = math.prod(self.shape[1:])
        scale, shift = np.repeat(scale, rest), np.repeat(shift, rest)
        last = self.layers[-1] if self.layers else None
        if last is not None and self.scale is None and last.scaled(scale, shift):
            return
        if self.scale is None or self.shift is None:
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
            kind.__module__ == "advcore.network"
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
        last = self.layers[-1] if self.layers else None
        pooled = isinstance(last, _Convolution) and last.pooling != "none"
        if last is None or self.scale is not None or last.activation != "identity" or pooled:
            self.fail("it has no Linear or Conv2d directly before it")
        last.activation = name
        if name == "leaky_relu":
            last.slope = float(module.negative_slope)

    def finish(self) -> list[Layer | Convolution]:
        self.where = "model"
        if not self.layers:
            self.fail("it has no Linear or Conv2d")
        if len(self.shape) != 1:
            self.fail(f"its output has shape {self.shape}, not (K,)")
        if self.scale is not None and self.shift is not None:
            self.layers.append(_Linear(np.diag(self.scale), self.shift))
        if self.shape == (1,):  # a single logit z: two classes with logits (0, z)
            self.layers.append(_Linear(np.array([[0.0], [1.0]]), np.zeros(2)))
            before = self.layers[-2]
            if before.activation == "identity" and not isinstance(before, _Convolution):
                pair, last = self.layers.pop(), self.layers.pop()
                merged = _Linear(pair.weight @ last.weight, pair.weight @ last.bias)
                self.layers.append(merged)
        last = self.layers[-1]
        if isinstance(last, _Convolution) and math.prod(self.shape) != len(last.bias):
            self.fail("its logits come from several positions of a convolution")
        try:
            with np.errstate(over="ignore"):
                return [layer.finished() for layer in self.layers]
        except ValueError as error:
            self.fail(str(error))
