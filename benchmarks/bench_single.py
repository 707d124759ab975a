"""One image a call: what a call costs beside its search, the first time, again, and in training.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_single.py [--images N]

For a fully connected network, a convolutional and a residual one, as modules on one thread:

- *first*: the overhead of a call with a module that was never seen (a copy each time);
- *again*: that of a call with the same module;
- *training*: that of a call after all weights have changed in place;
- *check*: comparing the module with what is kept of it, and *evaluation*: a forward and an input
  gradient of one image through torch.

The overhead is the time of the call without that of the search itself. All are medians of CPU
milliseconds, over ``--images`` images. Figures go to ``benchmarks/results/bench_single.json``;
docs/decisions.md quotes them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import machine, networks

import advcore
from advcore.oracles.module_of import module_of
from advcore.solve import native, rounds
from advcore.solve.readings import READINGS

NAMES = ("relu", "rays_smallcnn_bn", "vnncomp_resnet2b")


class Searches:
    """Adds up the seconds of the searches of all calls while it is entered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._runs = [(kind, kind.run) for kind in (native.NativeBackend, rounds.RoundBackend)]

    def __enter__(self) -> Searches:
        for kind, run in self._runs:
            kind.run = self._timed(run)  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        for kind, run in self._runs:
            kind.run = run  # type: ignore[attr-defined]

    def _timed(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = time.process_time()
            try:
                return run(*args)
            finally:
                self.seconds += time.process_time() - begin

        return timed


def median_ms(seconds: list[float]) -> float:
    """The median in milliseconds."""
    return 1e3 * float(np.median(seconds))


def measure(name: str, images: int) -> dict[str, float]:
    """Figures of one network."""
    case = networks.case(name, targeted=True, images=images)
    model = copy.deepcopy(case.model)

    def overhead(searches: Searches, module: Any, i: int) -> float:
        x, classes = case.images[i : i + 1], case.classes[i : i + 1]
        searches.seconds, begin = 0.0, time.process_time()
        advcore.minimize_distortion(module, x, classes, effort="fast", threads=1)
        return time.process_time() - begin - searches.seconds

    out: dict[str, float] = {}
    with Searches() as searches:
        overhead(searches, model, 0)
        rows = range(len(case.images))
        out["first"] = median_ms([overhead(searches, copy.deepcopy(model), i) for i in rows])
        out["again"] = median_ms([overhead(searches, model, i) for i in rows])
        training = []
        for i in rows:
            for parameter in model.parameters():
                parameter.data *= 1.0001
            training.append(overhead(searches, model, i))
        out["training"] = median_ms(training)
    found, checks, evaluations = module_of(model), [], []
    (entry,) = [readings for _, readings in READINGS._kept.values() if readings][-1][:1]
    x = torch.from_numpy(case.images[:1]).clone().requires_grad_(True)
    for _ in rows:
        begin = time.process_time()
        READINGS.find(found, entry.key[:-2])
        checks.append(time.process_time() - begin)
        begin = time.process_time()
        torch.autograd.grad(model(x).sum(), x)
        evaluations.append(time.process_time() - begin)
    return {**out, "check": median_ms(checks), "evaluation": median_ms(evaluations)}


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints and stores the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NAMES))
    parser.add_argument("--images", type=int, default=50)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = {}
    for name in args.networks:
        figures[name] = measure(name, args.images)
        print(name, {key: round(value, 3) for key, value in figures[name].items()}, flush=True)
    print(machine.save("bench_single", {"networks": figures}))


if __name__ == "__main__":
    main()
