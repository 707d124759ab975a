"""Tries the settings of every rival on held-out images and stores the best for each network.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/sweep_rivals.py
        [--networks embedded,relu,...] [--untargeted] [--images 50] [--rivals DDN-100,...]

The images are correctly classified test images that the benchmark does not measure
(`networks.case`, held out). The best setting is the one with the highest success, and among equals
the one with the smallest mean distortion, images that it missed counted at the largest distance
that any setting of that rival ended with on any image. C&W is swept with 400 steps a search, not
1,000. Chosen settings, and the success and mean of every one tried, go to
``benchmarks/results/rival_settings.json``; networks and rivals not named keep what is there.
Without ``--rivals`` those that `bench_optimality.py` compares are swept.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from harness import envelope, networks, rivals


def sweep(
    name: str, targeted: bool, images: int, attacks: list[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """By rival: settings, success and mean distortion of each setting, best first."""
    case = networks.case(name, targeted=targeted, images=images, held_out=True)
    table = {}
    convolutional = case.images.ndim == 4
    for attack in attacks or rivals.names(targeted=targeted, convolutional=convolutional):
        rival = rivals.RIVALS[attack]
        shorter = dict([rival.searching]) if rival.searching else {}
        runs = [envelope.rival_run(case, attack, {**s, **shorter}) for s in rival.grid]
        table[attack] = ranked(list(rival.grid), [run.distances for run in runs])
        best = table[attack][0]
        print(
            f"{name:22} {attack:14} success {best['success']:6.1%}  mean {best['mean']:.4f}  "
            f"default {success(runs[0].distances):6.1%} {_mean(runs[0].distances):.4f}  "
            f"{best['settings']}",
            flush=True,
        )
    return table


def ranked(
    settings: list[dict[str, Any]], distances: list[envelope.Floats]
) -> list[dict[str, Any]]:
    """One row a setting, the best first: most successes, then the smallest mean."""
    every = np.concatenate(distances)
    finite = every[np.isfinite(every)]
    worst = float(finite.max()) if len(finite) else 0.0
    rows = [
        {
            "settings": s,
            "success": success(d),
            "mean": round(float(np.where(np.isfinite(d), d, worst).mean()), 6),
        }
        for s, d in zip(settings, distances, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["success"], row["mean"]))


def success(distances: envelope.Floats) -> float:
    """Share of images that were found."""
    return float(np.isfinite(distances).mean())


def _mean(distances: envelope.Floats) -> float:
    found = distances[np.isfinite(distances)]
    return float(found.mean()) if len(found) else float("nan")


def _text(stored: dict[str, Any]) -> str:
    """JSON with a line for each network."""
    parts = []
    for key, table in stored.items():
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(v)}" for name, v in table.items())
        parts.append(f' "{key}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    """Sweeps the networks asked for and updates the file of settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join((*networks.DENSE, *networks.HARD)))
    parser.add_argument("--untargeted", action="store_true")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rivals", type=lambda text: text.split(","))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = "untargeted" if options.untargeted else "targeted"
    for name in options.networks.split(","):
        table = sweep(name, not options.untargeted, options.images, options.rivals)
        stored: dict[str, Any] = {"chosen": {}, "tried": {}}
        if rivals.SETTINGS.exists():
            stored = json.loads(rivals.SETTINGS.read_text())
        best = {attack: rows[0]["settings"] for attack, rows in table.items()}
        stored["chosen"].setdefault(name, {}).setdefault(kind, {}).update(best)
        tried = stored["tried"].setdefault(name, {}).setdefault(kind, {})
        tried.update({"images": options.images, **table})
        rivals.SETTINGS.parent.mkdir(exist_ok=True)
        rivals.SETTINGS.write_text(_text(stored))


if __name__ == "__main__":
    main()
