"""Optimality beside other attacks, by the runner and the metric of AttackBench (attackbenchlib 2).

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_attackbench.py
        [--networks relu,...] [--norms l2,linf,l1] [--budgets 100,300,1000,2000] [--images N]
        [--attacks advcore,DDN] [--minutes M]

Each attack runs untargeted on each network with each budget of queries, which are forwards and
backwards of an image. advcore runs at its efforts, by `advcore.adapters.attackbench`. Rivals
take as many steps as the budget pays for, at their default settings, and in l2 also at those that
`sweep_rivals.py` has chosen for the network. Foolbox's Brendel & Bethge attack needs numba, and is
left out where that is missing.

attackbenchlib counts the queries, and takes the smallest image that fools the model in any of them.
Its local optimality of an attack on a network is 1 where the attack reaches the smallest distance
of all attacks at all budgets on each image; the global one is the mean over the networks.

Each run is kept as it ends, ours by the build and sources of the package. A second call goes on
where the first stopped, also after ``--minutes``. Figures go to
``benchmarks/results/bench_attackbench.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import bench_anytime
import numpy as np
import torch
from harness import machine, networks, norm_rivals, rivals
from harness.torchvision_operators import define_missing_operators
from pages.attackbench import table

from advcore._files import replacing
from advcore.adapters.attackbench import advcore_attack
from advcore.effort import EFFORTS

os.environ.setdefault("WANDB_MODE", "disabled")
NETWORKS = (
    "relu", "abc_mnist_6_100_nat", "smallcnn_fmn_regular", "wk_convex_linf0.1", *networks.CIFAR,
)  # fmt: skip
NORMS = ("l2", "linf", "l1")
BUDGETS = (100, 300, 1000, 2000)
STEPPED = {"DDN": "DDN-1000", "FMN": "FMN-1000", "ALMA": "ALMA-1000", "PDGD": "PDGD-500"}
"""Rivals in l2 with two queries a step, and their names in `rivals.RIVALS`."""
Attack = Callable[..., torch.Tensor]


@functools.cache
def library() -> Any:
    """attackbenchlib, with the operator that torchvision may lack kept alive."""
    library.operator = define_missing_operators()  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("attackbench")


def by_harness(rival: rivals.Rival, settings: dict[str, Any]) -> Attack:
    """A rival of the harness with the signature that attackbenchlib inspects."""

    def attack(model: Any, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return rival.call(model, inputs, labels, False, settings)

    return attack


def by_foolbox(name: str, **settings: Any) -> Attack:
    """An attack of Foolbox on the model as it is."""

    def attack(model: Any, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        import foolbox

        wrapped = foolbox.PyTorchModel(model.eval(), (0, 1), device="cpu")
        run = getattr(foolbox.attacks, name)(**settings).run
        found: torch.Tensor = run(wrapped, inputs, foolbox.criteria.Misclassification(labels))
        return found

    return attack


def attacks(network: str, norm: str, budget: int) -> dict[str, tuple[Attack, dict[str, Any]]]:
    """Each attack in a norm that may use a budget, and the settings by which its run is kept."""
    found: dict[str, tuple[Attack, dict[str, Any]]] = {
        f"advcore {effort}": (
            functools.partial(advcore_attack, effort=effort),
            {"effort": effort, "build": bench_anytime._build_hash()},
        )
        for effort in EFFORTS
    }
    steps = {"steps": budget // 2}

    def add(name: str, rival: rivals.Rival, settings: dict[str, Any]) -> None:
        found[name] = by_harness(rival, settings), settings

    halved = {"steps": max(budget // (2 * norm_rivals.HALVINGS), 1), "loss": "dlr"}
    add("APGD minimal", norm_rivals.apgd(norm), halved)
    if norm == "l2":
        swept = rivals.chosen_settings(network, targeted=False)
        for name, key in STEPPED.items():
            add(name, rivals.RIVALS[key], {**rivals.RIVALS[key].default, **steps})
            chosen = swept.get(key, rivals.RIVALS[key].default)
            add(f"{name} (swept)", rivals.RIVALS[key], {**chosen, **steps})
        sdf = rivals.RIVALS["SuperDeepFool"]
        add("SuperDeepFool", sdf, sdf.default)
        found["DDN of Foolbox"] = by_foolbox("DDNAttack", **steps), {"foolbox": 1, **steps}
        if importlib.util.find_spec("numba"):
            about = {"foolbox": 2, **steps}
            found["BB of Foolbox"] = by_foolbox("L2BrendelBethgeAttack", **steps), about
        return found
    for name, rival in norm_rivals.NORM_RIVALS.items():
        if rival.norm == norm and not name.startswith("APGD"):
            label = name.replace("-1000", "").replace("-500", "").replace(f" {norm}", "")
            add(label, rival, {**rival.default, **steps})
    return found


def cell(case: networks.Case, norm: str, budget: int, name: str) -> dict[str, Any]:
    """The runner's results of one attack, from the cache where they are there."""
    every = attacks(case.name, norm, budget)
    attack, settings = every[name]
    plain = name.removesuffix(" (swept)")
    if plain != name and settings == every[plain][1]:
        return cell(case, norm, budget, plain)
    about = [networks.weights_hash(case.model), norm, budget, name, settings, rivals.VERSION]
    digest = hashlib.sha256(case.images.tobytes() + json.dumps(about).encode())
    path = networks.CACHE / f"attackbench-{case.name}-{digest.hexdigest()[:16]}.json"
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(case.images), torch.from_numpy(case.classes)
    )
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        results = library().run_attack(
            case.model,
            torch.utils.data.DataLoader(data, batch_size=len(data)),
            attack,
            norm,
            device=torch.device("cpu"),
            query_budget=budget,
        )
    case.model._backward_hooks.clear()  # the runner leaves its own
    networks.CACHE.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(results).encode())
    return cell(case, norm, budget, name)


def run_all(
    names: list[str], norm: str, budgets: list[int], images: int, chosen: list[str], clock: Any
) -> dict[str, dict[str, dict[str, Any]]]:
    """Results by attack and budget, "DDN at 100", and by network. ``clock`` may end it."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for network in names:
        case = networks.case(network, targeted=False, images=images)
        for budget in budgets:
            for name in attacks(network, norm, budget):
                if chosen and not any(name.startswith(each) for each in chosen):
                    continue
                clock.check()
                results = cell(case, norm, budget, name)
                found.setdefault(f"{name} at {budget}", {})[network] = results
                print(f"{network:22} {norm:4} {name} at {budget}: {queries(results):.0f}")
    return found


def queries(results: dict[str, Any]) -> float:
    """Mean queries of an image."""
    return float(np.mean(np.add(results["num_forwards"], results["num_backwards"])))


def figures(found: dict[str, dict[str, dict[str, Any]]], norm: str) -> dict[str, Any]:
    """Optimality, by attackbenchlib, and queries of each attack and budget."""
    names = {network for by_network in found.values() for network in by_network}
    reference = {
        network: [by_network[network] for by_network in found.values() if network in by_network]
        for network in names
    }
    table = {}
    for attack, by_network in found.items():
        values = library().compute_global_optimality(by_network, norm, reference, use_wandb=False)
        table[attack] = {
            "global_optimality": values["global_optimality"],
            "local_optimality": values["local_optimality"],
            "queries": float(np.mean([queries(each) for each in by_network.values()])),
            "failed_batches": sum(sum(each["batch_failures"]) for each in by_network.values()),
        }
    return table


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing, prints a table for each norm and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--norms", default=",".join(NORMS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--attacks", default="", help="beginnings of their names; default all")
    parser.add_argument("--minutes", type=float, help="no run begins after so many")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names, budgets = options.networks.split(","), [int(each) for each in options.budgets.split(",")]
    chosen = [each for each in options.attacks.split(",") if each]
    clock = bench_anytime.Clock(options.minutes)
    commit, norms = machine.describe()["commit"], {}
    for norm in options.norms.split(","):
        norms[norm] = figures(run_all(names, norm, budgets, options.images, chosen, clock), norm)
        print(f"\n{norm}\n\n{table(norms[norm], budgets)}\n")
    about = {"networks": names, "images": options.images, "budgets": budgets, "commit": commit}
    machine.save("bench_attackbench", {**about, "norms": norms})


if __name__ == "__main__":
    main()
