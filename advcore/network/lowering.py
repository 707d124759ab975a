"""Recognise torch modules that are chains of known layers, and convert them to native layers.

Only exact types are accepted, as the forward of a subclass, or of a module of the user's with one
`Sequential` inside, may do anything. Any other module raises `Unsupported` and runs through torch.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .layers import ACTIVATIONS, TORCH_NAMES, Convolution, Layer, Unsupported

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]


def lower(module: object, input_shape: tuple[int, ...]) -> list[Layer | Convolution]:
    """Native layers of ``module`` for images of ``input_shape``; see `Network.from_torch`.

    Raises
    ------
    Unsupported
        The module has no native form; the error names the module and the reason.
    ValueError
        ``input_shape`` is empty, or an entry is not positive.
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
    """A fully connected layer under construction, in float64.

    Attributes
    ----------
    weight : ndarray (out, in)
    bias : ndarray (out,)
    activation, slope
        See `Layer`.
    """

    weight: Float64
    bias: Float64
    activation: str = "identity"
    slope: float = 0.01

    def absorb(self, scale: Float64, shift: Float64) -> bool:
        """Put ``h -> scale * h + shift`` into the weight and bias, with an entry for each output.

        The result is False, and nothing changes, where that is not possible.
        """
        if self.activation != "identity":
            return False
        self.weight = scale[:, None] * self.weight
        self.bias = scale * self.bias + shift
        return True

    def to_native(self) -> Layer | Convolution:
        """The layer in float32; ValueError where a value overflows there."""
        weight, bias = self.weight.astype(np.float32), self.bias.astype(np.float32)
        return Layer(weight, bias, self.activation, self.slope)


@dataclass
class _Convolution(_Linear):
    """A convolution under construction, for images of ``shape``: weight (out, in, y, x)."""

    shape: tuple[int, int, int] = (1, 1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    padding_value: Float64 | None = None
    pooling: str = "none"
    window: tuple[int, int] = (1, 1)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(features, height, width) after the pooling."""
        return self.to_native().out_shape

    def absorb(self, scale: Float64, shift: Float64) -> bool:
        """See `_Linear.absorb`; there is an entry for each position of each feature."""
        scales = scale.reshape(len(self.bias), -1)
        is_uniform = len(scale) > 0 and bool((np.ptp(scales, axis=1) == 0).all())
        shifts = shift.reshape(len(self.bias), -1)
        is_uniform = is_uniform and bool((np.ptp(shifts, axis=1) == 0).all())
        if self.activation != "identity" or self.pooling != "none" or not is_uniform:
            return False
        self.weight = scales[:, :1, None, None] * self.weight
        self.bias = scales[:, 0] * self.bias + shifts[:, 0]
        return True

    def to_native(self) -> Convolution:
        """See `_Linear.to_native`."""
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
    """Visits the modules in the order of the forward, and collects layers.

    Attributes
    ----------
    shape : tuple of int
        Shape of the value after the last module, without the batch.
    layers : list
        Layers under construction.
    scale, shift : ndarray or None
        The map ``h -> scale * h + shift``, with one entry per value, that waits for a Linear or
        Conv2d to absorb it; None where no map waits.
    dtype : torch.dtype or None
        Type of all weights so far; None before the first.
    location : str
        The module being visited, for error texts.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        if not shape or min(shape) < 1:
            raise ValueError(f"input_shape must be positive integers, got {shape}")
        self.shape = shape
        self.layers: list[_Linear] = []
        self.scale: Float64 | None = None
        self.shift: Float64 | None = None
        self.dtype: object = None
        self.location = ""

    def fail(self, why: str) -> NoReturn:
        """Raise `Unsupported` for the module being visited."""
        raise Unsupported(f"{self.location}: {why}")

    def visit(self, module: torch.nn.Module, path: str) -> None:
        """Add the layers of ``module``, whose name in the model is ``path``."""
        from torch import nn

        self.location = f"{f'layer {path}' if path else 'model'} ({type(module).__name__})"
        self.check(module)
        kind: type[Any] = type(module)
        if kind is nn.Sequential:
            for name, child in module._modules.items():  # named_children() leaves out repetitions
                assert child is not None
                self.visit(child, f"{path}.{name}" if path else name)
        elif kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
            return
        elif kind is nn.Flatten or self.is_flatten_images(kind):
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
        """Refuse hooks and modes that make a known type behave unlike itself."""
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
        """A copy of a weight in float64; `Unsupported` unless it is a plain finite tensor."""
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
        start, end = module.start_dim, module.end_dim
        start += dims if start < 0 else 0
        end += dims if end < 0 else 0
        if not 1 <= start <= end < dims:
            self.fail(
                f"start_dim {module.start_dim}, end_dim {module.end_dim} on images of {self.shape}"
            )
        size = math.prod(self.shape[start - 1 : end])
        self.shape = (*self.shape[: start - 1], size, *self.shape[end:])

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
        are_integers = all(isinstance(size, int) for size in sizes)
        dim_exists = 1 <= dim <= len(self.shape)
        if not (dim_exists and are_integers and math.prod(sizes) == self.shape[dim - 1]):
            self.fail(f"dim {module.dim}, sizes {module.unflattened_size} on {self.shape}")
        self.shape = (*self.shape[: dim - 1], *sizes, *self.shape[dim:])

    def convolution(self, module: Any) -> None:
        padding = self.convolution_padding(module)
        weight = self.array(module.weight, "weight")
        bias = np.zeros(len(weight)) if module.bias is None else self.array(module.bias, "bias")
        if len(self.shape) != 3 or self.shape[0] != weight.shape[1]:
            self.fail(f"it takes ({weight.shape[1]}, H, W), the value before it has {self.shape}")
        if self.layers and not isinstance(self.layers[-1], _Convolution):
            self.fail("convolutions after a Linear have no native form")
        self.check_map()
        padding_value = np.zeros(self.shape[0])
        if self.scale is not None and self.shift is not None:
            maps = np.stack([part.reshape(self.shape[0], -1) for part in (self.scale, self.shift)])
            if np.ptp(maps, axis=2).any():
                self.fail("the normalisation before it differs from pixel to pixel")
            scale, shift = maps[:, :, 0]
            bias = bias + weight.sum(axis=(2, 3)) @ shift
            if any(padding):  # zero for the convolution is -shift / scale before it
                if not scale.all():
                    self.fail("the normalisation before it has a scale of zero")
                padding_value = -shift / scale
            weight = weight * scale[:, None, None]
            self.scale = self.shift = None
        channels, height, width = self.shape
        stride = tuple(module.stride)
        sizes = zip((height, width), module.kernel_size, stride, padding, strict=True)
        positions = tuple((size + 2 * pad - k) // step + 1 for size, k, step, pad in sizes)
        if min(positions) < 1:
            self.fail(f"its kernel does not fit {self.shape}")
        self.layers.append(
            _Convolution(
                weight,
                bias,
                shape=(channels, height, width),
                stride=stride,
                padding=padding,
                padding_value=padding_value,
            )
        )
        self.shape = (len(weight), *positions)

    def convolution_padding(self, module: Any) -> tuple[int, int]:
        """Rows and columns of padding of a Conv2d that has one group and no dilation."""
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
        return padding[0], padding[1]

    def check_map(self) -> None:
        """Refuse the output of a convolution that was reshaped after it."""
        layer = self.layers[-1] if self.layers else None
        if isinstance(layer, _Convolution) and self.shape != layer.out_shape:
            self.fail(f"the values before it were reshaped from {layer.out_shape} to {self.shape}")

    def pooling(self, module: Any, kind: str) -> None:
        layer = self.layers[-1] if self.layers else None
        if not isinstance(layer, _Convolution) or layer.pooling != "none" or self.scale is not None:
            self.fail("it has no convolution with its activation directly before it")
        if len(self.shape) != 3:
            self.fail(f"it does not take values of shape {self.shape}")
        self.check_map()
        height, width = self.shape[1:]
        window = self.window(module)
        if window[0] > height or window[1] > width:
            self.fail(f"its windows do not fit {self.shape}")
        layer.pooling, layer.window = kind, window
        self.shape = (self.shape[0], height // window[0], width // window[1])

    def window(self, module: Any) -> tuple[int, int]:
        """Rows and columns of a pooling's windows, which stand side by side."""
        sides = self.shape[1:]
        if hasattr(module, "output_size"):  # adaptive: windows side by side where they divide
            size = module.output_size
            sizes = [size] * 2 if size is None or isinstance(size, int) else size
            counts = [side if n is None else n for side, n in zip(sides, sizes, strict=True)]
            if any(side % n for side, n in zip(sides, counts, strict=True)):
                self.fail(f"windows of {sides} to {module.output_size} differ in size")
            return sides[0] // counts[0], sides[1] // counts[1]
        window = _pair(module.kernel_size)
        is_padded = _pair(module.padding) != (0, 0)
        is_dilated = _pair(getattr(module, "dilation", 1)) != (1, 1)
        if _pair(module.stride) != window or is_padded or is_dilated:
            self.fail("only windows side by side, without padding or dilation")
        divides = not any(side % n for side, n in zip(sides, window, strict=True))
        if module.ceil_mode and not divides:
            self.fail("windows that reach beyond the end (ceil_mode)")
        if getattr(module, "return_indices", False):
            self.fail("it returns the indices too")
        if getattr(module, "divisor_override", None) not in (None, window[0] * window[1]):
            self.fail("its divisor is not the size of its windows")
        return window

    def affine(self, scale: Float64, shift: Float64) -> None:
        """Append ``h -> scale * h + shift``; both are (C,), one entry per channel."""
        positions = math.prod(self.shape[1:])
        scale, shift = np.repeat(scale, positions), np.repeat(shift, positions)
        layer = self.layers[-1] if self.layers else None
        if layer is not None and self.scale is None and layer.absorb(scale, shift):
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
        """Whether the type is this package's `Normalize` or torchvision's."""
        return kind.__name__ == "Normalize" and (
            kind.__module__ == "advcore.network"
            or kind.__module__.startswith("torchvision.transforms.")
        )

    @staticmethod
    def is_flatten_images(kind: type[Any]) -> bool:
        """Whether the type is this package's `FlattenImages`."""
        name = f"{__package__}.input_shape"
        return kind.__name__ == "FlattenImages" and kind.__module__ == name

    def normalize(self, module: Any) -> None:
        if type(module).__module__.startswith("torchvision") and len(self.shape) != 3:
            # torchvision takes the third dimension from the end as the channels.
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

        kind = type(module)
        name = next((name for name in ACTIVATIONS if kind is getattr(nn, TORCH_NAMES[name])), None)
        forward = getattr(kind, "forward", None)
        if name is None and not str(getattr(forward, "__module__", "torch.")).startswith("torch."):
            self.fail(
                "a module with a forward of its own runs through torch; the native engine takes "
                "chains of layers (nn.Sequential)"
            )
        if name is None:
            self.fail("this type of module has no native form")
        if name == "softplus" and (module.beta != 1 or module.threshold != 20):
            self.fail(f"only beta 1 and threshold 20, got {module.beta}, {module.threshold}")
        if name == "gelu" and module.approximate == "tanh":
            name = "gelu_tanh"
        layer = self.layers[-1] if self.layers else None
        is_pooled = isinstance(layer, _Convolution) and layer.pooling != "none"
        if layer is None or self.scale is not None or layer.activation != "identity" or is_pooled:
            self.fail("it has no Linear or Conv2d directly before it")
        layer.activation = name
        if name == "leaky_relu":
            layer.slope = float(module.negative_slope)

    def finish(self) -> list[Layer | Convolution]:
        """The native layers, after the last module."""
        self.location = "model"
        if not self.layers:
            self.fail("it has no Linear or Conv2d")
        if len(self.shape) != 1:
            self.fail(f"its output has shape {self.shape}, not (K,)")
        if self.scale is not None and self.shift is not None:
            self.layers.append(_Linear(np.diag(self.scale), self.shift))
        if self.shape == (1,):  # a single logit z: two classes with logits (0, z)
            self.layers.append(_Linear(np.array([[0.0], [1.0]]), np.zeros(2)))
            source = self.layers[-2]
            if source.activation == "identity" and not isinstance(source, _Convolution):
                pair = self.layers.pop()
                product = _Linear(pair.weight @ source.weight, pair.weight @ source.bias)
                self.layers[-1] = product
        output = self.layers[-1]
        if isinstance(output, _Convolution) and math.prod(self.shape) != len(output.bias):
            self.fail("its logits come from several positions of a convolution")
        try:
            with np.errstate(over="ignore"):
                return [layer.to_native() for layer in self.layers]
        except ValueError as error:
            self.fail(str(error))


def _pair(value: Any) -> tuple[int, int]:
    """The values of both dimensions, from a number or a sequence of one or two."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values
