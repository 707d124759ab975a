"""The fastest configuration of a network's kernels on the GPU that is here, remembered on disk.

At the first run of a network's shapes on a device the candidates are compiled, checked against the
reference and timed on random rows. What was found is kept in kernels.json in ``ADVCORE_CACHE`` or
~/.cache/advcore; ``ADVCORE_AUTOTUNE=0`` takes the table of `configs` instead.
"""
# mypy: disable-error-code="import-untyped, import-not-found"

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
from torch import Tensor

from advcore.network import ACTIVATIONS

from .configs import Config, candidates, default_config
from .geometry import Geometry
from .network import propagate, propagate_reference
from .plan import PRECISION, Plan
from .slots import MAX_SCHEDULES, MAX_STAGES, PROBLEM

if TYPE_CHECKING:
    from advcore.network import Network

ROWS = 4096
"""Of a timed round, where memory allows it; always the same for the same shapes."""
CHECKED = 16
"""Rows compared with the reference."""
TOLERANCE = {"ieee": 1e-3, "tf32x3": 1e-3, "bf16x3": 1e-2, "tf32": 1e-1}
"""Of gradients, relative to the largest: far above rounding, far below a wrong kernel."""
COMPILE_SECONDS = 300
CONFIDENCE = 1e-4


def architecture(device: torch.device | str) -> int:
    """Compute capability of a GPU: 90 is sm_90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def config_for(network: Network, device: torch.device | str, precision: str = PRECISION) -> Config:
    """The remembered configuration, else that of `tune`, else the default."""
    geometry = Geometry.of(network, precision)
    key = cache_key(geometry, precision, torch.cuda.get_device_name(device))
    stored = load(key)
    if stored is not None:
        return stored
    if os.environ.get("ADVCORE_AUTOTUNE") == "0":
        return default_config(geometry, precision, architecture(device))
    found = tune(network, device, precision)
    save(key, found)
    return found


def tune(network: Network, device: torch.device | str, precision: str = PRECISION) -> Config:
    """The fastest candidate; RuntimeError with the reasons where none of them works."""
    seconds, failures = measure(network, device, precision)
    if not seconds:
        raise RuntimeError("no configuration of the kernels works here: " + "; ".join(failures))
    return min(seconds, key=lambda config: seconds[config])


def measure(
    network: Network, device: torch.device | str, precision: str = PRECISION
) -> tuple[dict[Config, float], list[str]]:
    """Seconds of a round for each candidate that works, and why the others do not."""
    arch = architecture(device)
    geometry = Geometry.of(network, precision)
    configs = candidates(geometry, precision, arch)
    compile_in_parallel(geometry, precision, arch, configs)
    rounds = Rounds(network, precision, torch.device(device))
    seconds, failures = {}, []
    with torch.cuda.device(rounds.device):
        for config in configs:
            try:
                seconds[config] = rounds.seconds(Plan(network, precision, arch, config))
            except Exception as error:  # out of resources, a compiler's fault, a wrong result
                failures.append(f"{config}: {type(error).__name__}: {error}")
    return seconds, failures


def compile_in_parallel(
    geometry: Geometry, precision: str, arch: int, configs: list[Config]
) -> None:
    """Fill Triton's cache from processes of their own: its compiler holds the interpreter's lock.

    What a process fails at is compiled, or fails, where it is needed.
    """
    shapes = [geometry.widths, geometry.kinds, geometry.slopes, geometry.parts]
    running = []
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # not what lies in the current folder
    for config in configs[1 : os.cpu_count() or 1]:  # the first is compiled here
        task = json.dumps([shapes, precision, arch, config.to_json()])
        command = [sys.executable, "-m", f"{__package__}.warm", task]
        with contextlib.suppress(OSError):
            running.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
    from .warm import warm

    with contextlib.suppress(Exception):
        warm(geometry, precision, arch, configs[0])
    for process in running:
        try:
            process.wait(COMPILE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Rounds:
    """Random slots of a network on a GPU, and the time of a round over them."""

    def __init__(self, network: Network, precision: str, device: torch.device) -> None:
        self.network, self.precision, self.device = network, precision, device
        geometry = Geometry.of(network, precision)
        n = network.inputs
        self.stride = -(-n // 16) * 16
        floats = 2 * (self.stride + geometry.columns[-1])
        self.rows = max(CHECKED, min(ROWS, 2**29 // floats // 64 * 64))
        random = np.random.default_rng(0)
        self.x = random.random((self.rows, n), dtype=np.float32)
        self.problems = np.zeros(self.rows, PROBLEM)
        self.problems["label"] = random.integers(network.classes, size=self.rows)
        self.problems["want_gradient"] = self.problems["finite"] = True
        self.problems["against"] = -1
        self.problems["k"] = 0.5  # no kinks, and T not small: the gradients of sums that round
        logits = network.forward(self.x[:CHECKED])  # differently are close
        self.problems["T"] = 0.25 * float((logits.max(axis=1) - logits.min(axis=1)).mean()) + 1e-6
        self.fractions = np.full((MAX_SCHEDULES, MAX_STAGES), 0.3, np.float32)

    def tensors(self, plan: Plan) -> dict[str, Tensor]:
        """A fresh round on the device."""
        vectors = torch.zeros(2, self.rows, self.stride, device=self.device)
        vectors[0, :, : self.network.inputs] = torch.from_numpy(self.x)
        size = 4 * self.stride
        self.problems["trial"] = vectors.data_ptr() + size * np.arange(self.rows)
        self.problems["trial_gradient"] = self.problems["trial"] + size * self.rows
        host = {
            "problems": torch.from_numpy(self.problems.view(np.uint8).copy()),
            "rows": torch.arange(self.rows, dtype=torch.int32),
            "count": torch.tensor([self.rows], dtype=torch.int32),
            "fractions": torch.from_numpy(self.fractions).reshape(-1),
            "weights": plan.packed,
        }
        out = {name: tensor.to(self.device) for name, tensor in host.items()}
        for name, size in plan.buffers(self.rows).items():
            out[name] = torch.full((size,), 1.0 if name == "widths" else 0.0, device=self.device)
        return {**out, "vectors": vectors.reshape(-1)}

    def check(self, plan: Plan, tensors: dict[str, Tensor]) -> None:
        """ValueError where the first rows are not those of the reference."""
        problems = self.problems[:CHECKED].copy()
        widths = np.ones((CHECKED, plan.geometry.layers), np.float32)
        _, expected = propagate_reference(
            self.network, self.x[:CHECKED], problems, widths, self.fractions, CONFIDENCE,
            dtype=torch.float64,
        )  # fmt: skip
        dx = tensors["vectors"].view(2, self.rows, -1)[1, :CHECKED, : self.network.inputs]
        error = np.abs(dx.double().cpu().numpy() - expected).max() / np.abs(expected).max()
        if not error <= TOLERANCE[self.precision]:
            raise ValueError(f"gradients are wrong by {error:.2e}")

    def seconds(self, plan: Plan, rounds: int = 10, repeats: int = 5) -> float:
        """Median time of a round in a CUDA graph."""
        tensors = self.tensors(plan)

        def one() -> None:
            plan.run(tensors, slots=self.rows, confidence=CONFIDENCE)

        one()
        torch.cuda.synchronize()
        self.check(plan, tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                one()
        graph.replay()
        times = []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3 / rounds)
        return float(statistics.median(times))


def cache_key(geometry: Geometry, precision: str, device: str) -> str:
    """What a stored configuration belongs to; another source of the kernels is another key."""
    kinds = [ACTIVATIONS[kind] for kind in geometry.kinds]
    source = str(getattr(propagate, "cache_key", ""))[:16]
    return json.dumps([device, precision, geometry.widths, kinds, triton.__version__, source])


def cache_path() -> Path:
    """The file of the configurations found."""
    folder = os.environ.get("ADVCORE_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "advcore") / "kernels.json"


def load(key: str) -> Config | None:
    """The configuration stored under a key, if there is one that can be read."""
    try:
        return Config(**json.loads(cache_path().read_text())[key])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(key: str, config: Config) -> None:
    """Store a configuration; a folder that cannot be written is a warning."""
    path = cache_path()
    entries: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        entries = dict(json.loads(path.read_text()))
    entries[key] = config.to_json()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with open(handle, "w") as file:
            json.dump(entries, file, indent=1)
        Path(name).replace(path)
    except OSError as error:
        warnings.warn(f"the tuned kernels are not remembered: {error}", stacklevel=2)
