"""Two installed builds of the package side by side: are their results the same, are they as fast?

    python benchmarks/compare_builds.py A/.venv/bin/python B/.venv/bin/python
        [--runs 5] [--cases dense,torch]

Each of the two interpreters has a build of advcore installed and runs in a process of its own, on
one thread. Both run a fixed set of cases through `advcore.minimize_distortion` alone, so that any
two versions can be compared, and take turns: A B, then B A, and so on. A case is a model, some of
the digits that the package carries, and options. It needs no files and trains nothing: weights that
are not the package's own are random with a fixed seed. The whole set takes about two minutes on two
idle cores; ``--cases`` keeps those whose names contain one of the given words.

Each case gets one line. It says "identical" where every array of both results has the same bits
(and the same type, shape and description of the engine); else it names the arrays that differ, the
number of images and the largest difference. It then gives the median time of A in milliseconds of
CPU time, and the median ratio of B's time to A's over the pairs, with the smallest and the largest.
The exit status is 1 where any result differs. Times decide nothing: noise is a few percent.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import advcore
from advcore import data

Arrays = dict[str, NDArray[Any]]
Run = Callable[[], advcore.Result]
ONE_THREAD = dict.fromkeys(
    ("ADVCORE_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


def called(module: nn.Module) -> Any:
    """The module in a function that does more than call it, so that it runs through torch."""
    return lambda x: 1 * module(x)


class DigitModule(nn.Module):
    """A convolutional network in torch with a forward of its own."""

    def __init__(self, residual: bool = False, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 5, stride=2, padding=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 7 * 7, classes)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of images (B, 1, 28, 28)."""
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first) + (first if self.residual else 0))
        return torch.as_tensor(self.last(torch.max_pool2d(second, 2).flatten(1)))


class NumpyTanh:
    """A model in NumPy: one hidden layer of tanh."""

    def __init__(self) -> None:
        random = np.random.default_rng(5)
        self.hidden = random.normal(0, 784**-0.5, (784, 50)).astype(np.float32)
        self.output = random.normal(0, 0.3, (50, 10)).astype(np.float32)
        self.values = np.zeros((0, 50), np.float32)

    def forward(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits (B, 10) of images (B, 784)."""
        self.values = np.tanh(3 * (x @ self.hidden))
        return self.values @ self.output

    def backward(self, dlogits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Gradient (B, 784) of ``dlogits`` (B, 10) at the images of the last `forward`."""
        return 3 * ((dlogits @ self.output.T) * (1 - self.values**2)) @ self.hidden.T


def seeded(module: nn.Module) -> nn.Module:
    """The module in eval mode, with weights that depend on their shapes alone."""
    random = np.random.default_rng(7)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        values = random.normal(0, (2 / fan_in) ** 0.5, tuple(parameter.shape))
        parameter.data = torch.from_numpy(values.astype(np.float32))
    return module.eval().requires_grad_(False)


def dense_network(activation: str, last_bias: float = 0.0) -> advcore.Network:
    """784-60-40-10 with random weights; ``last_bias`` is added to the logit of class 9."""
    random = np.random.default_rng(3)
    layers = []
    for inputs, outputs in ((784, 60), (60, 40), (40, 10)):
        weight = random.normal(0, (2 / inputs) ** 0.5, (outputs, inputs))
        is_last = outputs == 10
        bias = np.where(np.arange(outputs) == 9, last_bias, 0.0) if is_last else np.zeros(outputs)
        layers.append(advcore.Layer(weight, bias, "identity" if is_last else activation))
    return advcore.Network(layers)


def convolutional_network(side: int = 28, channels: int = 1) -> advcore.Network:
    """Two convolutions with ReLUs and max-pooling on square images, then a dense layer."""
    random = np.random.default_rng(4)
    conv1 = advcore.Convolution(
        random.normal(0, (2 / (25 * channels)) ** 0.5, (8, channels, 5, 5)),
        np.zeros(8), (channels, side, side), "relu", stride=(2, 2), padding=(2, 2),
    )  # fmt: skip
    conv2 = advcore.Convolution(
        random.normal(0, (2 / 72) ** 0.5, (8, 8, 3, 3)),
        np.zeros(8), conv1.out_shape, "relu", padding=(1, 1), pooling="max", window=(2, 2),
    )  # fmt: skip
    inputs = conv2.outputs
    dense = advcore.Layer(random.normal(0, inputs**-0.5, (10, inputs)), np.zeros(10))
    return advcore.Network([conv1, conv2, dense])


def all_cases() -> dict[str, Run]:
    """The cases by name."""
    return {**dense_cases(), **convolutional_cases(), **torch_cases(), **numpy_cases()}


def runs(
    model: Any, images: Any, targets: NDArray[np.int64], cases: dict[str, dict[str, Any]]
) -> dict[str, Run]:
    """A call for each name.

    An entry "images" of the options is how many of the images are taken, by default all; an entry
    "untargeted" leaves the targets out.
    """

    def run(options: dict[str, Any]) -> advcore.Result:
        options = dict(options)
        count = options.pop("images", len(images))
        classes = {} if options.pop("untargeted", False) else {"targets": targets[:count]}
        return advcore.minimize_distortion(model, images[:count], **classes, **options)

    return {name: lambda options=options: run(options) for name, options in cases.items()}


def dense_cases() -> dict[str, Run]:
    """Dense networks on the native path."""
    digits, labels = data.embedded_digits()
    x, pool = digits[:400], digits[500:]
    targets = data.random_targets(labels[:400], classes=10, seed=0)
    embedded = data.embedded_network()
    parameters = inspect.signature(advcore.minimize_distortion).parameters
    penalty = "penalty" if "penalty" in parameters else "norm"
    efforts = ("fast", "default", "thorough")
    image_bounds = (np.maximum(x - np.float32(0.3), 0), np.minimum(x + np.float32(0.3), 1))
    cases: dict[str, dict[str, Any]] = {
        **{f"dense {effort}": {"effort": effort} for effort in efforts},
        **{f"dense untargeted {e}": {"effort": e, "untargeted": True} for e in efforts},
        "dense cross_entropy": {"loss": "cross_entropy"},
        "dense cross_entropy untargeted": {"loss": "cross_entropy", "untargeted": True},
        "dense bisection": {"c_search": "bisection", "images": 50},
        "dense cross_entropy bisection": {
            "loss": "cross_entropy", "c_search": "bisection", "images": 50,
        },
        "dense unsquared penalty": {penalty: "l2_unsquared"},
        "dense one start an image": {"starts": pool[:400]},
        "dense pool of starts": {"starts": (pool, embedded.forward(pool).argmax(axis=1))},
        "dense levels": {"levels": 256},
        "dense max_evaluations": {"max_evaluations": 40},
        "dense bounds of each image": {"bounds": image_bounds},
        "dense other options": {
            "confidence": 1.0, "history": 8, "tolerance": 1e-2, "c_init": 0.1, "seed": 3,
            "batch_size": 7,
        },
    }  # fmt: skip
    return {
        **runs(embedded, x, targets, cases),
        **runs(
            dense_network("relu"), x, targets,
            {"dense relu": {}, "dense relu untargeted": {"untargeted": True}},
        ),
        **runs(dense_network("gelu"), x, targets, {"dense gelu": {}}),
        **runs(
            dense_network("relu", -1e4), x[:20], np.full(20, 9), {"dense unreachable class": {}}
        ),
    }  # fmt: skip


def convolutional_cases() -> dict[str, Run]:
    """Convolutional networks on the native path, one of them on images of 19,200 values."""
    digits, labels = data.embedded_digits()
    x = digits[:60].reshape(-1, 1, 28, 28)
    targets = data.random_targets(labels[:60], classes=10, seed=0)
    large_images = np.random.default_rng(2).random((6, 3, 80, 80), np.float32)
    cases: dict[str, dict[str, Any]] = {
        "convolutional": {},
        "convolutional thorough": {"effort": "thorough", "images": 30},
        "convolutional untargeted": {"untargeted": True},
        "convolutional cross_entropy": {"loss": "cross_entropy", "images": 30},
        "convolutional levels": {"levels": 256},
    }
    return {
        **runs(convolutional_network(), x, targets, cases),
        **runs(
            convolutional_network(80, 3), large_images, targets, {"convolutional large images": {}}
        ),
    }  # fmt: skip


def torch_cases() -> dict[str, Run]:
    """Modules through torch, and one that is lowered to the native engine."""
    digits, labels = data.embedded_digits()
    x = digits[:40].reshape(-1, 1, 28, 28)
    targets = data.random_targets(labels[:40], classes=10, seed=0)
    chain = seeded(
        nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(392, 10),
        )
    )  # fmt: skip
    cases: dict[str, dict[str, Any]] = {
        "torch": {},
        "torch untargeted": {"untargeted": True},
        "torch cross_entropy": {"loss": "cross_entropy"},
        "torch levels": {"levels": 256},
        "torch max_evaluations": {"max_evaluations": 40},
    }
    flat = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
    return {
        **runs(called(seeded(DigitModule())), x, targets, cases),
        **runs(called(seeded(DigitModule(residual=True))), x, targets, {"torch residual": {}}),
        **runs(
            called(seeded(DigitModule(classes=1))), torch.from_numpy(x), targets,
            {"torch one logit": {"untargeted": True}},
        ),
        **runs(called(seeded(flat)), x, targets, {"torch one linear logit": {"untargeted": True}}),
        **runs(chain, x, targets, {"torch lowered": {}}),
    }  # fmt: skip


def numpy_cases() -> dict[str, Run]:
    """A model with a forward and a backward in NumPy."""
    digits, labels = data.embedded_digits()
    targets = data.random_targets(labels[:100], classes=10, seed=0)
    cases = {"NumPy": {}, "NumPy untargeted": {"untargeted": True}}
    return runs(NumpyTanh(), digits[:100], targets, cases)


def arrays(result: advcore.Result) -> Arrays:
    """Every array of a result, and each entry of the description of the engine as text."""
    values = {f"engine {key}": np.array(str(value)) for key, value in result.engine.items()}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, (np.ndarray, torch.Tensor)):
            values[field.name] = np.asarray(value)
    return values


def differences(arrays_a: Arrays, arrays_b: Arrays) -> list[str]:
    """A phrase for each array whose type, shape or bits differ; empty where there is none."""
    phrases = [f"{name} in one only" for name in sorted(arrays_a.keys() ^ arrays_b.keys())]
    for name in [name for name in arrays_a if name in arrays_b]:
        a, b = arrays_a[name], arrays_b[name]
        if a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes():
            continue
        if a.dtype.kind == "U":
            phrases.append(f"{name}: {a} and {b}")
        elif a.dtype != b.dtype or a.shape != b.shape:
            phrases.append(f"{name}: {a.dtype} {a.shape} and {b.dtype} {b.shape}")
        else:
            bits = [
                np.ascontiguousarray(c).view(np.uint8).reshape(len(c), -1)  # also NaN, also -0
                for c in (a, b)
            ]
            images = int((bits[0] != bits[1]).any(axis=1).sum())
            with np.errstate(invalid="ignore"):
                gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
            largest_gap = float(np.max(gap, initial=0.0, where=~np.isnan(gap)))
            phrases.append(f"{name}: {images} of {len(a)} images, by up to {largest_gap:.3g}")
    return phrases


def serve(folder: Path) -> None:
    """The worker: runs the case whose name is the next line of the input, prints its CPU seconds.

    The arrays of the last run of each case are stored in ``folder``.
    """
    cases = all_cases()
    print(Path(advcore.__file__).parent, flush=True)
    for line in sys.stdin:
        name = line.strip()
        begin = time.process_time()
        result = cases[name]()
        seconds = time.process_time() - begin
        np.savez(folder / f"{name}.npz", **arrays(result))
        print(seconds, flush=True)


class Worker:
    """A process of one interpreter that runs cases when asked to."""

    def __init__(self, interpreter: str, folder: Path) -> None:
        folder.mkdir()
        self.interpreter, self.folder = interpreter, folder
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ONE_THREAD
        self.process = subprocess.Popen(
            [interpreter, "-W", "ignore", __file__, "--worker", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.package = self._read()

    def run(self, case: str) -> float:
        """CPU seconds of the case."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        return float(self._read())

    def load(self, case: str) -> Arrays:
        """The arrays of the case's last run."""
        with np.load(self.folder / f"{case}.npz") as file:
            return dict(file)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the process of {self.interpreter} failed")
        return line


def compare(workers: list[Worker], names: list[str], pairs: int) -> bool:
    """Prints a line a case; whether all results are identical."""
    worker_a, worker_b = workers
    identical, medians = 0, []
    for name in names:
        for worker in workers:  # not timed: caches and threads start here
            worker.run(name)
        times: dict[Worker, list[float]] = {worker_a: [], worker_b: []}
        for pair in range(pairs):
            for worker in workers if pair % 2 == 0 else reversed(workers):
                times[worker].append(worker.run(name))
        phrases = differences(worker_a.load(name), worker_b.load(name))
        identical += not phrases
        ratios = [b / a for a, b in zip(times[worker_a], times[worker_b], strict=True)]
        medians.append(statistics.median(ratios))
        print(
            f"{name:33} {'DIFFERENT' if phrases else 'identical'}"
            f" {1e3 * statistics.median(times[worker_a]):8.1f} ms"
            f"  {medians[-1]:.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            *(f"\n    {phrase}" for phrase in phrases),
            sep="", flush=True,
        )  # fmt: skip
    low, middle, high = np.quantile(medians, (0.25, 0.5, 0.75))
    print(
        f"{identical} of {len(names)} cases identical; time of B / A, "
        f"median of the cases {middle:.3f} (half of them {low:.3f} to {high:.3f})"
    )
    return identical == len(names)


def main(arguments: list[str] | None = None) -> int:
    """Runs the comparison; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("interpreters", nargs="*", metavar="python", help="of the build A, of B")
    parser.add_argument("--runs", type=int, default=5, help="timed pairs of each case")
    parser.add_argument("--cases", default="", help="parts of their names, with commas")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker is not None:
        serve(options.worker)
        return 0
    if len(options.interpreters) != 2 or options.runs < 1:
        parser.error("two interpreters and at least one run are needed")
    parts = options.cases.split(",")
    names = [name for name in all_cases() if any(part in name for part in parts)]
    if not names:
        parser.error(f"no case has any of {parts} in its name")
    with tempfile.TemporaryDirectory() as folder:
        workers = [Worker(p, Path(folder) / str(i)) for i, p in enumerate(options.interpreters)]
        try:
            for letter, worker in zip("AB", workers, strict=True):
                print(f"{letter}: {worker.package}")
            identical = compare(workers, names, options.runs)
        finally:
            for worker in workers:
                worker.close()
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
