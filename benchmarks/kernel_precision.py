"""What the precision of the products does to gradients and distortions, emulated on the CPU.

For each network: error of the input gradient of the smoothed log-odds against float64, relative to
its largest entry (median and largest over images), the same of the logits relative to the largest
logit; then the attack with random targets, whose model multiplies as `advcore.kernels.precision`
emulates it, in the search and in its verification. `fails` counts adversarial images whose margin
in float64 is negative.

    python benchmarks/kernel_precision.py [--images 1000] [--networks embedded,...]

Figures go to benchmarks/results/kernel_precision.json. How tensor cores truncate their sums is not
emulated: bench_gpu.py measures on hardware.
"""

from __future__ import annotations

import argparse
from typing import Any

import machine
import networks
import numpy as np
import torch
from advcore.kernels.precision import product
from torch import Tensor, nn

import advcore
from advcore.network import Network

NETWORKS = "embedded,fc100_100_10,relu,tanh,saturated,abc_mnist_6_100_nat"
PRECISIONS = ("ieee", "float64", "tf32x3", "bf16x3", "tf32")
# float64: rounded to float32 after each product; another order of the sums, as a control.


def multiply(a: Tensor, b: Tensor, precision: str) -> Tensor:
    if precision == "float64":
        return (a.double() @ b.double()).to(a.dtype)
    return product(a, b, precision)


class Product(torch.autograd.Function):
    """x W' + b with the gradient of x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, precision: str) -> Tensor:
        ctx.weight, ctx.precision = weight, precision
        return multiply(x, weight.T, precision) + bias

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> Any:
        return multiply(dz, ctx.weight, ctx.precision), None, None, None


class Emulated(nn.Module):
    """A Linear that multiplies in a precision, forward and backward."""

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach())
        self.register_buffer("bias", linear.bias.detach())
        self.precision = precision

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.weight, self.bias, self.precision)


def emulated(network: Network, precision: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with the products of every layer in a precision."""
    parts = [
        Emulated(part.to(dtype), precision) if isinstance(part, nn.Linear) else part
        for part in network.to_torch()
    ]
    return nn.Sequential(*parts).eval()


def margins(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Target's logit minus the best other (B)."""
    z = model(x)
    own = z.gather(1, targets[:, None])[:, 0]
    return own - z.scatter(1, targets[:, None], -1e30).max(dim=1).values


def gradient(model: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of m_T, T 2% of the margin's size as the solver's."""
    x = x.clone().requires_grad_(True)
    z = model(x)
    own = z.gather(1, targets[:, None])[:, 0]
    rest = z.scatter(1, targets[:, None], -1e30)
    T = 0.02 * (own - rest.max(dim=1).values).abs().detach()
    m = own - T * (rest / T[:, None]).logsumexp(dim=1)
    m.sum().backward()
    return z.detach(), x.grad


def compare(name: str, images: int) -> dict[str, Any]:
    """Figures of each precision on one network."""
    case = networks.case(name, targeted=True, images=images)
    network = Network.from_torch(case.model, case.images.shape[1:])
    x, targets = torch.tensor(case.images).flatten(1), torch.tensor(case.classes)
    exact = emulated(network, "ieee", torch.float64)
    z64, g64 = gradient(exact, x.double(), targets)
    out: dict[str, Any] = {}
    first = None
    for precision in PRECISIONS:
        model = emulated(network, precision)
        z, g = gradient(model, x, targets)
        g_error = (g - g64).abs().amax(1) / g64.abs().amax(1)
        z_error = (z - z64).abs().amax(1) / z64.abs().amax(1)
        result = advcore.minimize_distortion(model, case.images, targets=case.classes)
        adversarial = torch.tensor(result.adversarial).flatten(1).double()
        with torch.inference_mode():
            m = margins(exact, adversarial, targets).numpy()
        success, d = np.asarray(result.success), np.asarray(result.distortion)
        first = d if first is None else first
        both = success & np.isfinite(first) & (first > 0)
        out[precision] = {
            "gradient_error": {"median": float(g_error.median()), "max": float(g_error.max())},
            "logit_error": float(z_error.max()),
            "success": float(success.mean()),
            "mean_distortion": float(d[success].mean()),
            "evaluations": float(np.mean(result.evaluations)),
            "within_1e-3_of_ieee": float((np.abs(d[both] / first[both] - 1) < 1e-3).mean()),
            "fails": int((m[success] < 0).sum()),
        }
        print(name, precision, out[precision], flush=True)
    return out


def main() -> None:
    """Every network and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--networks", default=NETWORKS)
    arguments = parser.parse_args()
    figures = {name: compare(name, arguments.images) for name in arguments.networks.split(",")}
    print(machine.save("kernel_precision", {"images": arguments.images, "networks": figures}))


if __name__ == "__main__":
    main()
