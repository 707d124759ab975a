"""Distortion against queries: advcore at each budget, and each rival *run at that number of steps*.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_anytime.py
        [--networks relu,...] [--untargeted] [--images N] [--parts rivals,ours] [--minutes M]
        [--steps 10,25,...] [--plot]

Rivals run with 10, 25, 50, 100, 200, 500 and 1,000 steps. For each number of steps their settings
are those that do best on held-out images (`rivals.RIVALS` has what is tried). Where
`sweep_rivals.py` has chosen settings for the number, those are taken. advcore runs at each effort,
and at the highest one with ``max_queries`` of twice 10, 25, 50, ..., 2,000. A query is a forward or
a backward of one image, so a step of DDN, FMN, ALMA or PDGD takes two; FAB and SuperDeepFool take
a backward for each class. Every success is confirmed by an independent forward.

Each run is kept as it ends, a rival's by weights, images and settings, ours by those and the build
and sources of the package. A second call goes on where the first stopped, also after ``--minutes``.
The figures go to ``benchmarks/results/bench_anytime_targeted.json`` or ``..._untargeted.json``.
For each network they hold the runs that are there, and *over the best single rival*: for each
number of queries, our mean distortion over that of the best run of a rival within them. An image
that a run missed counts as the largest distance of the envelope, and no distance counts as more.
``--plot`` draws the curves.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import envelope, machine, networks, rivals
from harness.envelope import Floats
from pages import anytime
from sweep_rivals import rank_settings

import advcore
from advcore import _core
from advcore._files import replacing
from advcore.effort import EFFORTS

NETWORKS = (
    "embedded", "relu", "abc_mnist_6_100_nat", "tanh", networks.VIT, "smallcnn_fmn_regular",
    "wk_convex_linf0.1", "rays_smallcnn_bn", *networks.CIFAR, "squeezenet1_0",
)  # fmt: skip
STEPS = (10, 25, 50, 100, 200, 500, 1000)
BUDGETS = (10, 25, 50, 100, 200, 500, 1000, 2000)
"""Pairs of a forward and a backward; the budget in queries is twice that."""
CURVES = {"DDN": "DDN-1000", "FMN": "FMN-1000", "ALMA": "ALMA-1000", "PDGD": "PDGD-500"}
UNTARGETED_CURVES = {"FAB": "FAB", "SuperDeepFool": "SuperDeepFool"}
SWEEP_IMAGES = 20


class Clock:
    """Raises SystemExit between runs once the time is over."""

    def __init__(self, minutes: float | None) -> None:
        self.end = np.inf if minutes is None else time.monotonic() + 60 * minutes

    def check(self) -> None:
        """Raise if the time is over."""
        if time.monotonic() > self.end:
            raise SystemExit("the time is over; the same call goes on from here")


def curves(case: networks.Case) -> dict[str, str]:
    """The rivals of a case: the name of each curve, and that in `rivals.RIVALS`."""
    small = case.name not in networks.IMAGENET  # of 1,000 classes each has a backward there
    return CURVES | (UNTARGETED_CURVES if small and not case.targeted else {})


def settings_at(case: networks.Case, name: str, steps: int, clock: Clock) -> dict[str, Any]:
    """Settings of a rival for a number of steps: the swept ones, or the best on held-out images."""
    rival = rivals.RIVALS[name]
    swept_steps = rival.default.get("steps", 500 if name == "PDGD-500" else 1000)
    swept = rivals.chosen_settings(case.name, targeted=case.targeted).get(name)
    if steps == swept_steps and swept is not None:
        return swept
    change = {} if steps == swept_steps else {"steps": steps}
    tried = [{**settings, **change} for settings in rival.grid]
    if case.name in networks.IMAGENET:  # too slow for a sweep: the defaults
        return tried[0]
    held_out = networks.case(case.name, targeted=case.targeted, images=SWEEP_IMAGES, held_out=True)
    found = []
    for settings in tried:
        clock.check()
        found.append(envelope.rival_run(held_out, name, settings).distances)
    best: dict[str, Any] = rank_settings(tried, found)[0]["settings"]
    return best


def rival_cells(case: networks.Case, steps: tuple[int, ...], clock: Clock) -> None:
    """Run every rival at each number of steps, the small numbers first."""
    for count in steps:
        for curve, name in curves(case).items():
            settings = settings_at(case, name, count, clock)
            clock.check()
            run = envelope.rival_run(case, name, settings)
            _say(case, f"{curve}-{count}", run.distances, run.queries)
            _remember(case, curve, count, settings)


@functools.cache
def _build_hash() -> str:
    """Hash of the package's sources and its compiled module."""
    digest = hashlib.sha256()
    folder = Path(advcore.__file__).parent
    for path in (*sorted(folder.rglob("*.py")), Path(_core.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def our_cells(case: networks.Case, budgets: tuple[int, ...], clock: Clock) -> dict[str, Any]:
    """Rows of advcore at each effort, and at the highest one with each budget."""
    runs: dict[str, dict[str, Any]] = {f"advcore {e}": {"effort": e} for e in EFFORTS}
    for pairs in budgets:
        runs[f"advcore-{pairs}"] = {"effort": EFFORTS[-1], "max_queries": 2 * pairs}
    rows = {}
    for name, options in runs.items():
        digest = hashlib.sha256(case.images.tobytes() + case.classes.tobytes())
        digest.update(json.dumps([_build_hash(), networks.weights_hash(case.model)]).encode())
        digest.update(json.dumps([case.targeted, options]).encode())
        path = networks.CACHE / f"ours-{case.name}-{digest.hexdigest()[:16]}.npz"
        if not path.exists():
            clock.check()
            _run_ours(case, options, path)
        with np.load(path) as stored:
            rows[name] = {"distances": stored["distances"], **json.loads(str(stored["cost"]))}
        _say(case, name, rows[name]["distances"], rows[name]["queries"])
    return rows


def _run_ours(case: networks.Case, options: dict[str, Any], path: Path) -> None:
    classes: dict[str, Any] = {"targets" if case.targeted else "labels": case.classes}
    begin, cpu_begin = time.perf_counter(), time.process_time()
    result = advcore.minimize_distortion(case.model, case.images, **classes, **options)
    cost = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu_begin,
        "queries": float(result.queries.mean()),
        "most_queries": int(result.queries.max()),
        "path": result.engine["path"],
    }
    networks.CACHE.mkdir(parents=True, exist_ok=True)
    distances = envelope.distances(case, result.adversarial)
    with replacing(path) as file:
        np.savez_compressed(file, distances=distances, cost=np.array(json.dumps(cost)))


def _say(case: networks.Case, run: str, distances: Floats, queries: float) -> None:
    found = distances[np.isfinite(distances)]
    mean = found.mean() if len(found) else np.nan
    share = len(found) / len(distances)
    print(f"{case.name:22} {run:22} {queries:8.1f} queries {share:6.1%} {mean:.4f}", flush=True)


def _memory(case: networks.Case) -> Path:
    kind = "targeted" if case.targeted else "untargeted"
    return networks.CACHE / f"anytime-{case.name}-{kind}-{len(case.images)}.json"


def _remember(case: networks.Case, curve: str, steps: int, settings: dict[str, Any]) -> None:
    """Note that the rival has run at this number of steps, and with which settings."""
    path = _memory(case)
    known = json.loads(path.read_text()) if path.exists() else {}
    known.setdefault(curve, {})[str(steps)] = settings
    with replacing(path) as file:
        file.write(json.dumps(known).encode())


def rival_rows(case: networks.Case) -> dict[str, Any]:
    """Rows of the rivals' runs that are there."""
    path = _memory(case)
    known = json.loads(path.read_text()) if path.exists() else {}
    rows = {}
    for curve, by_steps in known.items():
        for steps, settings in by_steps.items():
            run = envelope.rival_run(case, curves(case)[curve], settings)
            rows[f"{curve}-{steps}"] = {
                "distances": run.distances,
                "queries": run.queries,
                "seconds": run.seconds,
                "cpu_seconds": run.cpu_seconds,
                "settings": settings,
            }
    return rows


def figures(rows: dict[str, Any]) -> dict[str, Any]:
    """The table of a network from its rows: means, and ours over the best single rival."""
    distances = {name: row["distances"] for name, row in rows.items()}
    smallest = np.min(list(distances.values()), axis=0)
    finite = smallest[np.isfinite(smallest)]
    cap = float(finite.max()) if len(finite) else 1.0
    runs = {}
    for name, row in rows.items():
        values = {key: value for key, value in row.items() if key != "distances"}
        if not np.isfinite(values.get("cpu_seconds", 0.0)):
            del values["cpu_seconds"]
        values["success"] = float(np.isfinite(distances[name]).mean())
        values["mean"] = float(np.minimum(distances[name], cap).mean())
        runs[name] = values
    return {"cap": cap, "runs": runs, "over_best_rival": over_best_rival(runs)}


def over_best_rival(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each budget of ours: our mean over the smallest of a rival's run within its queries."""
    table = {}
    for name, row in runs.items():
        pairs = name.removeprefix("advcore-")
        if not pairs.isdigit():
            continue
        # A rival may take a forward more than its steps, to look at the clean image.
        within = {
            rival: other["mean"]
            for rival, other in runs.items()
            if not rival.startswith("advcore") and other["queries"] <= 2 * int(pairs) + 2
        }
        if within:
            best = min(within, key=lambda rival: within[rival])
            table[pairs] = {"rival": best, "ratio": row["mean"] / within[best]}
    return table


def measure(
    name: str, targeted: bool, images: int, parts: list[str], steps: tuple[int, ...], clock: Clock
) -> dict[str, Any] | None:
    """Run what is missing of a network, and return its figures; None where there is no run."""
    case = networks.case(name, targeted=targeted, images=images)
    if "rivals" in parts:
        rival_cells(case, steps, clock)
    rows = rival_rows(case)
    if "ours" in parts:
        rows |= our_cells(case, BUDGETS, clock)
    return {"images": len(case.images), **figures(rows)} if rows else None


def main(arguments: list[str] | None = None) -> None:
    """Measures the networks asked for, prints and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--untargeted", action="store_true")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--parts", default="rivals,ours", help="rivals, ours, or both")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="of the rivals")
    parser.add_argument("--minutes", type=float, help="no run begins after so many")
    parser.add_argument("--plot", action="store_true", help="curves to docs/images")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kind = "untargeted" if options.untargeted else "targeted"
    results, parts = f"bench_anytime_{kind}", options.parts.split(",")
    steps, clock = tuple(map(int, options.steps.split(","))), Clock(options.minutes)
    commit = machine.describe()["commit"]  # before the figures written below make it dirty
    for name in [name for name in options.networks.split(",") if name]:
        values = measure(name, not options.untargeted, options.images, parts, steps, clock)
        if values is None or "ours" not in parts:
            continue
        path = machine.figures_file(results)
        stored = machine.load(results)["networks"] if path.exists() else {}
        machine.save(results, {"networks": stored | {name: {"commit": commit, **values}}})
    path = machine.figures_file(results)
    if path.exists():
        stored = machine.load(results)["networks"]
        print(anytime.table(stored))
        if options.plot:
            print(anytime.draw(stored, kind))


if __name__ == "__main__":
    main()
