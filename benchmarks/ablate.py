"""The worth of each part of the search: the default effort with one part changed at a time.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/ablate.py [--networks embedded,...]
        [--images 200]

For each network and variant: the mean distortion over that of the default, the share of the images
more than 1% above the default's, success, evaluations and forwards. Random targets (seed 0).
Figures go to ``benchmarks/results/ablation.json``; `make_pages.py ablation` makes the table of
``docs/decisions.md`` from them. Variants of the engine itself (history in bf16, pairs of the total
function, small systems in float32) need a changed build and are described there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from harness import machine, networks

import advcore
from advcore.effort import Effort, Schedule

NETWORKS = "embedded,fc100_100_10,fc200_200_10,tanh,relu,abc_mnist_6_100_nat"


def exact_only(search: Schedule) -> Schedule:
    """The search on the exact network alone, with the same number of evaluations."""
    if not search.smoothing:
        return search
    return replace(
        search,
        smoothing=(0.0,),
        budget=(sum(search.budget),),
        temperature=(search.temperature[-1],),
    )


def one_temperature(search: Schedule) -> Schedule:
    """T at its last value from the start."""
    return replace(search, temperature=search.temperature[-1:] * len(search.temperature))


def with_searches(effort: Effort, change: Callable[[Schedule], Schedule]) -> Effort:
    """The effort with each of its searches changed."""
    return replace(effort, searches=tuple(change(search) for search in effort.searches))


def options_of(variant: str, effort: Effort) -> dict[str, Any]:
    """The options of the call; ``effort`` is the default one for this network."""
    if variant.startswith("history"):
        return {"history": int(variant.split()[1])}
    changed: dict[str, dict[str, Any]] = {
        "default": {},
        "no polish": {"effort": with_searches(effort, lambda s: replace(s, polish_budget=0))},
        "no smoothing": {"effort": with_searches(effort, exact_only)},
        "one temperature": {"effort": with_searches(effort, one_temperature)},
        "one search": {"effort": Effort(effort.searches[:2], 2)},  # and its refinement
        "every network to the end": {
            "effort": with_searches(effort, lambda s: replace(s, continuation_tolerance=0.0))
        },
        "c by bisection": {"c_search": "bisection"},
        "cross-entropy": {"loss": "cross_entropy"},
    }
    return changed[variant]


VARIANTS = (
    "default",
    "no polish",
    "no smoothing",
    "every network to the end",
    "one temperature",
    "one search",
    "history 3",
    "history 8",
    "c by bisection",
    "cross-entropy",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--images", type=int, default=200)
    arguments = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for name in arguments.networks.split(","):
        case = networks.case(name, targeted=True, images=arguments.images)
        effort = networks.effort_of(case, "default")
        figures[name] = {}
        base = np.empty(0)
        for variant in VARIANTS:
            result = advcore.minimize_distortion(
                case.model, case.images, case.classes, **options_of(variant, effort)
            )
            d = result.minimum_distortion()
            base = d if variant == "default" else base
            found = np.isfinite(d) & np.isfinite(base)
            row = {
                "success": float(result.success.mean()),
                "mean_over_default": float(d[found].mean() / base[found].mean()),
                "more_than_1%_above": float((d[found] > 1.01 * base[found]).mean()),
                "evaluations": float(result.evaluations.mean()),
                "forwards": float(result.forwards.mean()),
            }
            figures[name][variant] = row
            print(
                f"{name:20} {variant:26} success {row['success']:6.1%}  "
                f"/default {row['mean_over_default']:.4f}  >1% {row['more_than_1%_above']:5.1%}  "
                f"evaluations {row['evaluations']:6.1f} + {row['forwards']:4.1f}",
                flush=True,
            )
    print(machine.save("ablation", {"images": arguments.images, "networks": figures}))


if __name__ == "__main__":
    main()
