"""The Triton kernels by themselves, by name, beside plain torch on the same GPU.

    python benchmarks/bench_kernels.py

For four networks of sigmoids, a round of 4,096 rows: `propagate` (the whole round in one kernel)
and its parts, `linear_forward`, `head` and `linear_backward`, a launch for each layer. Each is
timed alone, in a graph of 20, the median of 7; the fastest of five configurations is shown. Beside
them torch in float32 and with TF32: addmm and sigmoid; the smoothed log-odds and their gradient;
the products of the backward; and the sum of the three. Gradients are checked against float64
before a time counts. Figures go to benchmarks/results/bench_kernels.json.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import traceback
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import torch
from advcore.kernels.configs import Config, candidates
from advcore.kernels.geometry import Geometry
from advcore.kernels.plan import PRECISION, Plan
from advcore.kernels.tune import CONFIDENCE, Rounds, architecture, compile_in_parallel
from torch import Tensor

from advcore.network import Layer, Network

SHAPES = ((784, 100, 100, 10), (784, 200, 200, 10), (784, 512, 512, 10), (784, 1000, 1000, 10))
INSIDE, REPEATS = 20, 7


def network(widths: tuple[int, ...]) -> Network:
    """Random weights, sigmoids between the layers."""
    rng = np.random.default_rng(0)
    layers = []
    for i in range(len(widths) - 1):
        shape = (widths[i + 1], widths[i])
        kind = "identity" if i + 2 == len(widths) else "sigmoid"
        weight = rng.normal(0, 1 / np.sqrt(widths[i]), shape)
        layers.append(Layer(weight, rng.normal(0, 0.1, shape[0]), kind))
    return Network(layers)


def microseconds(run: Callable[[], object]) -> float:
    """Of one run, in a graph."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(INSIDE):
            run()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / INSIDE)
    return statistics.median(times)


def of_plan(rounds: Rounds, plan: Plan) -> dict[str, float]:
    """Microseconds by the name of the kernel, after a round that is right."""
    tensors = rounds.tensors(plan)
    plan.run(tensors, slots=rounds.rows, confidence=CONFIDENCE)
    torch.cuda.synchronize()
    rounds.check(plan, tensors)
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    launches = plan.launches(addresses, slots=rounds.rows, confidence=CONFIDENCE)
    out: dict[str, float] = {}
    for step, kernel, launch in zip(plan.steps, plan._loaded(), launches, strict=True):
        name = step.kernel.__name__
        out[name] = out.get(name, 0) + microseconds(lambda k=kernel, of=launch: k.launch(of))
    return out


def of_torch(net: Network, x: Tensor, targets: Tensor) -> dict[str, float]:
    """The same parts by torch's kernels, on dense rows."""
    weights = [torch.tensor(layer.weight, device=x.device) for layer in net.layers]
    biases = [torch.tensor(layer.bias, device=x.device) for layer in net.layers]
    values = [x]

    def forward() -> None:
        del values[1:]
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = torch.addmm(bias, values[-1], weight.T)
            values.append(z if i + 1 == len(weights) else torch.sigmoid(z))

    forward()
    logits = values[-1]
    T = 0.3 * (logits.max(dim=1).values - logits.min(dim=1).values)[:, None]
    own = torch.zeros_like(logits).scatter_(1, targets[:, None], 1.0)

    def head() -> Tensor:
        z = values[-1]
        rest = torch.where(own > 0, -torch.inf, z)
        scaled = rest / T
        log_odds = (z * own).sum(dim=1) - T[:, 0] * scaled.logsumexp(dim=1)
        return own - torch.softmax(scaled, dim=1) + 0 * log_odds[:, None]

    seed = head()

    def backward() -> Tensor:
        g = seed
        for i in range(len(weights) - 1, -1, -1):
            g = g @ weights[i]
            if i > 0:
                g = g * values[i] * (1 - values[i])
        return g

    out = {"linear_forward": microseconds(forward), "head": microseconds(head)}
    out["linear_backward"] = microseconds(backward)
    out["propagate"] = sum(out.values())
    return out


def compare(widths: tuple[int, ...]) -> dict[str, Any]:
    """Fastest configuration of each form, and torch."""
    net, device = network(widths), torch.device("cuda", torch.cuda.current_device())
    arch, geometry = architecture(device), Geometry.of(net, PRECISION)
    found = candidates(geometry, PRECISION, arch)
    configs = [config for config in found if config.fused][:3]
    configs += [config for config in found if not config.fused][:2]
    compile_in_parallel(geometry, PRECISION, arch, configs)
    rounds = Rounds(net, PRECISION, device)
    best: dict[str, Any] = {}
    failures = []
    for config in configs:
        try:
            times = of_plan(rounds, Plan(net, PRECISION, arch, config))
        except Exception as error:
            failures.append(f"{config}: {error}")
            continue
        for name, time in times.items():
            if name not in best or time < best[name]["microseconds"]:
                best[name] = {"microseconds": time, "config": describe(config)}
    x = torch.tensor(rounds.x, device=device)
    targets = torch.from_numpy(rounds.problems["label"].astype(np.int64)).to(device)
    torch_times = {}
    for name, tf32 in (("float32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch_times[name] = of_torch(net, x, targets)
    torch.backends.cuda.matmul.allow_tf32 = False
    flops = 4 * rounds.rows * sum(a * b for a, b in itertools.pairwise(widths))
    if "propagate" in best:
        best["propagate"]["TFLOP_s"] = flops / best["propagate"]["microseconds"] / 1e6
    return {"rows": rounds.rows, "kernels": best, "torch": torch_times, "failures": failures}


def describe(config: Config) -> str:
    """Tile, warps and stages."""
    tile = f"{config.BM}x{config.BN}x{config.BK}"
    return f"{tile}, {config.warps} warps, {config.stages} stages"


def main() -> None:
    """Every shape; one that fails is named and the others go on."""
    if not torch.cuda.is_available():
        sys.exit("no GPU that torch can use")
    stored: dict[str, Any] = {"device": torch.cuda.get_device_name(), "precision": PRECISION}
    for widths in SHAPES:
        name = "-".join(map(str, widths))
        try:
            stored[name] = compare(widths)
        except Exception:
            traceback.print_exc()
            stored[name] = {"failed": traceback.format_exc(limit=1).splitlines()[-1]}
        print(name, stored[name], flush=True)
        machine.save("bench_kernels", stored)
    if any(isinstance(part, dict) and "failed" in part for part in stored.values()):
        sys.exit("bench_kernels: a shape failed")


if __name__ == "__main__":
    main()
