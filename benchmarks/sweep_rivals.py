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

from advcore._files import write_text


def sweep(
    name: str, targeted: bool, images: int, attacks: list[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Success and mean distortion of each setting of each rival, best first."""
    case = networks.case(name, targeted=targeted, images=images, held_out=True)
    table = {}
    convolutional = case.images.ndim == 4
    for attack in attacks or rivals.names(targeted=targeted, convolutional=convolutional):
        rival = rivals.RIVALS[attack]
        brief = dict([rival.searching]) if rival.searching else {}
        runs = [envelope.rival_run(case, attack, {**s, **brief}) for s in rival.grid]
        table[attack] = rank_settings(list(rival.grid), [run.distances for run in runs])
        best_row = table[attack][0]
        print(
            f"{name:22} {attack:14} "
            f"success {best_row['success']:6.1%}  mean {best_row['mean']:.4f}  "
            f"default {success_share(runs[0].distances):6.1%} {_mean(runs[0].distances):.4f}  "
            f"{best_row['settings']}",
            flush=True,
        )
    return table


def rank_settings(
    settings: list[dict[str, Any]], distances: list[envelope.Floats]
) -> list[dict[str, Any]]:
    """One row a setting, the best first: most successes, then the smallest mean."""
    all_distances = np.concatenate(distances)
    finite_distances = all_distances[np.isfinite(all_distances)]
    largest = float(finite_distances.max()) if len(finite_distances) else 0.0
    rows = [
        {
            "settings": s,
            "success": success_share(d),
            "mean": round(float(np.where(np.isfinite(d), d, largest).mean()), 6),
        }
        for s, d in zip(settings, distances, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["success"], row["mean"]))


def success_share(distances: envelope.Floats) -> float:
    """Share of images that were found."""
    return float(np.isfinite(distances).mean())


def _mean(distances: envelope.Floats) -> float:
    successes = distances[np.isfinite(distances)]
    return float(successes.mean()) if len(successes) else float("nan")


def _text(sections: dict[str, Any]) -> str:
    """JSON with a line for each network."""
    parts = []
    for key, table in sections.items():
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
        sections: dict[str, Any] = {"chosen": {}, "tried": {}}
        if rivals.SETTINGS.exists():
            sections = json.loads(rivals.SETTINGS.read_text())
        best_settings = {attack: rows[0]["settings"] for attack, rows in table.items()}
        sections["chosen"].setdefault(name, {}).setdefault(kind, {}).update(best_settings)
        trials = sections["tried"].setdefault(name, {}).setdefault(kind, {})
        trials.update({"images": options.images, **table})
        rivals.SETTINGS.parent.mkdir(exist_ok=True)
        write_text(rivals.SETTINGS, _text(sections))


if __name__ == "__main__":
    main()
