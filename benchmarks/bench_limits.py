"""Runs that cannot succeed, that have a budget, or that are cut short; and rows of a round.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_limits.py [--parts PART ...]

- *unreachable*: 3,000 digits that no setting was chosen on, random targets, on the network of
  one-hot outputs: success, and evaluations of the images that were and were not reached.
- *budgets*: share of random targets that each effort finds within ``max_evaluations``.
- *cut short*: share found, and distortion over that of a whole run, after parts of its time.
- *rows*: seconds through torch with 256 rows a round over those with as many as is the default, two
  threads, the two in turn.
- *padding*: rows that a model with few batch sizes evaluates over those that a run asks for, by the
  shares of the largest batch that are allowed besides 1 row.
- *one_size*: CPU seconds through torch with ``deterministic`` over those without, one thread, in
  turn, by the number of images; and the rows of a batch.

Figures go to ``benchmarks/results/bench_limits.json``; docs/decisions.md quotes them.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from harness import machine, networks

import advcore
from advcore import data
from advcore.effort import EFFORTS
from advcore.oracles.batches import few_sizes
from advcore.solve import rounds

BUDGETS = {
    "relu": (20, 50),
    "abc_mnist_6_100_nat": (20, 50),
    "embedded": (20, 40),
    "smallcnn_fmn_regular": (40, 120, 160),
    "wk_convex_linf0.1": (40, 120, 160),
    "rays_smallcnn_bn": (40, 100, 120, 160),
    "colt_mnist_linf0.1": (40, 100, 120, 160),
}


SHARES = {
    "1, 3/4, 1/2, 1/4, 1/16": (1, 3 / 4, 1 / 2, 1 / 4, 1 / 16),
    "1, 2/3, 1/3, 1/8, 1/32": (1, 2 / 3, 1 / 3, 1 / 8, 1 / 32),
    "1, 1/2, 1/4, 1/8, 1/16": (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16),
    "1, 1/2, 1/4, 1/16, 1/128": (1, 1 / 2, 1 / 4, 1 / 16, 1 / 128),
    "1, 3/4, 9/16, 27/64, 81/256": tuple((3 / 4) ** i for i in range(5)),
    "1, 1/4, 1/16, 1/64, 1/256": tuple(4.0**-i for i in range(5)),
    "1": (1,),
}
"""Shares of the largest batch; the first are those of `advcore.oracles.batches`."""
ONE_SIZE = {
    "embedded": (10, 100, 1000),
    "relu": (10, 100, 1000),
    "vnncomp_resnet2b": (10, 100),
    "smallcnn_fmn_regular": (10, 100),
}
"""Numbers of images by network."""


def unreachable(effort: str) -> dict[str, float]:
    """Success and evaluations on the network of one-hot outputs."""
    model = networks.case("one_hot", targeted=True, images=1).model
    images, labels = data.mnist("test")
    part = slice(7000, 10000)
    targets = data.random_targets(labels[part], classes=10, seed=2)
    flat = images[part].reshape(3000, -1)
    result = advcore.minimize_distortion(model, flat, targets, effort=effort)
    success, cost = result.success, result.evaluations
    return {
        "success": float(success.mean()),
        "mean": float(result.distortion[success].mean()),
        "evaluations_found": float(cost[success].mean()),
        "evaluations_missed": float(cost[~success].mean()),
    }


def budgets(name: str) -> dict[str, dict[str, float]]:
    """Share found by effort, and within how many evaluations."""
    count = 300 if name in networks.DENSE else 60
    case = networks.case(name, targeted=True, images=count)
    return {
        str(most): {
            effort: float(
                advcore.minimize_distortion(
                    case.model, case.images, case.classes, effort=effort, max_evaluations=most
                ).success.mean()
            )
            for effort in EFFORTS
        }
        for most in BUDGETS[name]
    }


def cut_short(name: str) -> dict[str, dict[str, float]]:
    """Success and distortion of a run through torch, by part of the time of a whole run."""
    case = networks.case(name, targeted=True, images=100)

    def run(limit: float | None) -> advcore.Result:
        return advcore.minimize_distortion(
            lambda x: case.model(x), case.images, case.classes, time_limit=limit
        )

    whole, out = run(None), {}
    for part in (0.1, 0.2, 0.4, 0.7):
        result = run(part * whole.seconds)
        ratio = result.distortion / whole.distortion
        out[str(part)] = {
            "success": float(result.success.mean()),
            "mean_ratio": float(ratio[result.success].mean()),
        }
    return out


def rows(name: str) -> float:
    """Seconds in rounds of 256 rows over those of the default."""
    case = networks.case(name, targeted=True, images=100)
    x, y = (np.concatenate([part] * 11)[:1024] for part in (case.images, case.classes))
    seconds: dict[int | None, list[float]] = {256: [], None: []}
    for _ in range(3):
        for size, times in seconds.items():
            result = advcore.minimize_distortion(
                lambda v: case.model(v), x, y, effort="fast", batch_size=size
            )
            times.append(result.seconds)
    return float(np.median(seconds[256]) / np.median(seconds[None]))


def padding(name: str, count: int) -> dict[str, float]:
    """Rows evaluated over rows asked for in the rounds of ``count`` images, by the sizes."""
    case = networks.case(name, targeted=True, images=count)
    asked: list[int] = []
    evaluate = rounds._evaluate

    def noted(oracle: Any, session: Any, rows: Any, paired: int) -> Any:
        asked.append(len(rows[0]))
        return evaluate(oracle, session, rows, paired)

    rounds._evaluate = noted
    try:
        advcore.minimize_distortion(lambda v: case.model(v), case.images, case.classes, threads=1)
    finally:
        rounds._evaluate = evaluate
    out = {}
    for text, shares in SHARES.items():
        sizes = few_sizes(max(asked), shares)
        out[text] = sum(map(sizes.padded, asked)) / sum(asked)
    return out


def one_size(name: str, count: int) -> dict[str, float]:
    """CPU seconds of ``count`` images with batches of one size over those without."""
    case = networks.case(name, targeted=True, images=100)
    repeats = -(-count // 100)
    x, y = (np.concatenate([part] * repeats)[:count] for part in (case.images, case.classes))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(3):
        for deterministic, times in seconds.items():
            begin = time.process_time()
            result = advcore.minimize_distortion(
                lambda v: case.model(v), x, y, effort="fast", threads=1, deterministic=deterministic
            )
            times.append(time.process_time() - begin)
    return {
        "ratio": float(np.median(seconds[True]) / np.median(seconds[False])),
        "rows": int(result.engine["batches"]),
    }


PARTS = {
    "unreachable": lambda: {effort: unreachable(effort) for effort in EFFORTS},
    "cut_short": lambda: {"smallcnn_fmn_regular": cut_short("smallcnn_fmn_regular")},
    "rows": lambda: {name: rows(name) for name in ("vnncomp_resnet2b", "wk_convex_linf0.1")},
    "padding": lambda: {
        name: {str(count): padding(name, count) for count in (12, 100)}
        for name in ("embedded", "relu", "smallcnn_fmn_regular")
    },
    "one_size": lambda: {
        name: {str(count): one_size(name, count) for count in counts}
        for name, counts in ONE_SIZE.items()
    },
    "budgets": lambda: {name: budgets(name) for name in BUDGETS},
}


def main() -> None:
    """Measures, prints and stores the figures; those of other parts stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parts = parser.parse_args().parts
    stored = machine.figures_file("bench_limits")
    figures: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {}
    figures.pop("machine", None)
    torch.set_num_threads(2)
    for name in parts:
        figures[name] = PARTS[name]()
        print(name, figures[name])
    print(machine.save("bench_limits", figures))


if __name__ == "__main__":
    main()
