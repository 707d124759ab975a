"""How near the smallest distortion: advcore and rival attacks, network by network.

    ADVCORE_DATA=... OMP_WAIT_POLICY=passive python benchmarks/bench_optimality.py
        [--networks embedded,relu,...] [--untargeted] [--norm linf] [--images N]
        [--refresh | --ours] [--plot]

For each network (`harness/networks.py`) and attack it measures success, mean and median ||r||_2,
the gap to the *envelope*, and evaluations (pairs of a forward and a backward) and further forwards
an image. The envelope is the smallest distortion of all rivals for each image. The rivals run at
the settings that `sweep_rivals.py` chose for the network on other images; where these are not the
defaults, the run at the defaults is part of the envelope too. Every success, ours and theirs, is
confirmed by an independent float32 forward of the network. The rivals' runs are cached by weights,
images and settings (`harness/envelope.py`), so that after a change of the engine only the engine
runs; ``--refresh`` runs them again. ``--ours`` needs no run of theirs. It compares the mean over
the images with that of the stored envelope, and leaves out the figures that compare image by image.

The images are the first correctly classified test images, 200 on dense networks and 100 on
convolutional ones, and those of 20 ImageNet pictures that SqueezeNet classifies correctly. Targets
are random (seed 0) where the run is not untargeted. C&W runs 9 searches of 1,000 steps; on
convolutional networks 200, where 1,000 would take an hour for each.

``--norm linf`` and ``l1`` compare with the rivals of `harness/norm_rivals.py` at fixed settings, by
default on 40 images; their figures have the norm in the name of their file.

Figures go to ``benchmarks/results/bench_optimality_targeted.json`` or ``..._untargeted.json``;
networks not named keep what is there. ``--plot`` draws the stored figures into ``docs/images``:
performance profiles (the share of the images within a factor of the best of all attacks), and
distortion against evaluations for each effort.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch
from harness import envelope, machine, networks
from harness.envelope import Floats, load_envelope
from pages import profiles

import advcore
from advcore.effort import EFFORTS

__all__ = ["load_envelope", "main", "measure"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on one case."""

    distances: Floats  # (N,), infinite: not found
    evaluations: float
    forwards: float
    extra: dict[str, Any]  # settings of a rival; further figures of ours


def our_rows(case: networks.Case) -> dict[str, Row]:
    """advcore at every effort; on the hard networks also with a pool of images to start from."""
    runs: dict[str, dict[str, Any]] = {
        f"advcore {effort}": {"effort": effort} for effort in EFFORTS
    }
    if case.name in networks.HARD:
        runs["advcore default, starts"] = {"starts": networks.pool(case.name)}
    rows = {}
    for name, options in runs.items():
        classes: dict[str, Any] = {"targets" if case.targeted else "labels": case.classes}
        result = advcore.minimize_distortion(
            case.model, case.images, norm=case.norm, **classes, **options
        )
        extra = {
            "p99_evaluations": float(np.percentile(result.evaluations, 99)),
            "claimed": float(result.success.mean()),
            "path": result.engine["path"],
        }
        rows[name] = Row(
            envelope.distances(case, result.adversarial),
            float(result.evaluations.mean()),
            float(result.forwards.mean()),
            extra,
        )
    return rows


def rivals_rows(case: networks.Case, *, refresh: bool) -> dict[str, Row]:
    """The rivals' runs, from the cache where they are there."""
    return {
        name: Row(run.distances, run.evaluations, run.forwards, {"settings": run.settings})
        for name, run in envelope.rival_runs(case, refresh=refresh)
    }


def figures(row: Row, envelope_distances: Floats) -> dict[str, Any]:
    """Figures of a row for the table; ``envelope_distances`` has shape (N,).

    The shares of images near the envelope count those that some rival found; an image that the
    attack missed is above. Means of ratios take the images that both found.
    """
    d = row.distances
    successes, rival_successes = np.isfinite(d), np.isfinite(envelope_distances)
    compared = successes & rival_successes
    ratio = d[rival_successes] / envelope_distances[rival_successes]
    out: dict[str, Any] = {"success": float(successes.mean())}
    if successes.any():
        out["mean"] = float(d[successes].mean())
        out["median"] = float(np.median(d[successes]))
    if compared.any():
        out["mean_over_envelope"] = float(d[compared].mean() / envelope_distances[compared].mean())
        out["mean_ratio"] = float((d[compared] / envelope_distances[compared]).mean())
        out["largest_ratio"] = float((d[compared] / envelope_distances[compared]).max())
    if rival_successes.any():
        out["within_0.1%"] = float((ratio <= 1.001).mean())
        out["more_than_1%_above"] = float((ratio > 1.01).mean())
    out["found_by_no_rival"] = float((successes & ~rival_successes).mean())
    return out | {"evaluations": row.evaluations, "forwards": row.forwards} | row.extra


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as text, one line an attack."""
    head = ("success", "mean", "median", "/envelope", "ratio", "<0.1%", ">1%", "evals", "p99",
            "forwards")  # fmt: skip
    keys = ("success", "mean", "median", "mean_over_envelope", "mean_ratio", "within_0.1%",
            "more_than_1%_above", "evaluations", "p99_evaluations", "forwards")  # fmt: skip
    forms = (".1%", ".4f", ".4f", ".4f", ".4f", ".1%", ".1%", ".1f", ".0f", ".1f")
    lines = [f"  {'':24}" + "".join(f"{word:>10}" for word in head)]
    for name, values in rows.items():
        cells = [
            f"{format(values[key], form) if key in values else '-':>10}"
            for key, form in zip(keys, forms, strict=True)
        ]
        lines.append(f"  {name:24}" + "".join(cells))
    return "\n".join(lines)


def measure(
    name: str, targeted: bool, images: int | None, refresh: bool = False, norm: str = "l2"
) -> dict[str, Any]:
    """Figures of all attacks on a network, and their performance profiles."""
    count = images or (envelope.default_images(name) if norm == "l2" else 40)
    case = networks.case(name, targeted=targeted, images=count)
    case = dataclasses.replace(case, norm=norm)
    rows = rivals_rows(case, refresh=refresh)
    envelope_distances = np.min([row.distances for row in rows.values()], axis=0)
    envelope_row = Row(envelope_distances, *_total_cost(rows), {})
    all_rows = {**rows, "envelope": envelope_row, **our_rows(case)}
    out: dict[str, Any] = {
        "images": len(case.images),
        "attacks": {attack: figures(row, envelope_distances) for attack, row in all_rows.items()},
        "profiles": profiles.profiles({a: row.distances for a, row in all_rows.items()}),
    }
    if name in networks.HARD:
        out["clean_softmax_exactly_1"] = networks.saturation(name)
    choice = "next-likeliest" if name == networks.NEXT else "random"
    kind = f"{choice} targets" if targeted else "untargeted"
    print(f"{name}: {len(case.images)} images, {kind}\n{table(out['attacks'])}", flush=True)
    return out


def measure_ours(
    name: str, targeted: bool, previous: dict[str, Any], norm: str = "l2"
) -> dict[str, Any]:
    """The stored figures of a network with advcore's measured anew, against the envelope's mean."""
    case = networks.case(name, targeted=targeted, images=previous["images"])
    case = dataclasses.replace(case, norm=norm)
    envelope_mean = previous["attacks"]["envelope"]["mean"]
    attacks = dict(previous["attacks"])
    for attack, row in our_rows(case).items():
        values = figures(row, np.full(len(case.images), np.inf))
        del values["found_by_no_rival"]
        if values["success"] == previous["attacks"]["envelope"]["success"] == 1:
            values["mean_over_envelope"] = values["mean"] / envelope_mean
        attacks[attack] = values
    print(f"{name}: {len(case.images)} images, advcore alone\n{table(attacks)}", flush=True)
    return {"images": len(case.images), "attacks": attacks}


def _total_cost(rows: dict[str, Row]) -> tuple[float, float]:
    """Evaluations and forwards of all runs together: the price of the envelope."""
    return sum(r.evaluations for r in rows.values()), sum(r.forwards for r in rows.values())


def _load_networks(kind: str) -> dict[str, Any]:
    name = f"bench_optimality_{kind}"
    return machine.load(name)["networks"] if machine.figures_file(name).exists() else {}


def _save(kind: str, network: str, values: dict[str, Any]) -> str:
    """Adds the network, with the commit it was measured at, to the stored figures."""
    networks_stored = _load_networks(kind) | {network: values}
    ordered = {name: networks_stored[name] for name in networks.ALL if name in networks_stored}
    return str(machine.save(f"bench_optimality_{kind}", {"networks": ordered}))


def main() -> None:
    """Measures the networks asked for, prints and stores the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default=",".join(networks.ALL), help="may be empty")
    parser.add_argument("--images", type=int)
    parser.add_argument("--untargeted", action="store_true")
    parser.add_argument("--norm", choices=["l2", "linf", "l1"], default="l2")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--refresh", action="store_true", help="run the rivals again")
    which.add_argument("--ours", action="store_true", help="run advcore alone")
    parser.add_argument("--plot", action="store_true", help="performance profiles to docs/images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kind = "untargeted" if options.untargeted else "targeted"
    if options.norm != "l2":
        kind = f"{options.norm}_{kind}"
    names = [name for name in options.networks.split(",") if name]
    if options.ours and (unknown_networks := set(names) - set(_load_networks(kind))):
        parser.error(f"--ours: no figures of {', '.join(sorted(unknown_networks))} are stored")
    commit = machine.describe()["commit"]  # before the figures written below make it dirty
    for name in names:
        if options.ours:
            stored = _load_networks(kind)[name]
            values = measure_ours(name, not options.untargeted, stored, options.norm)
        else:
            values = measure(
                name, not options.untargeted, options.images, options.refresh, options.norm
            )
        print(_save(kind, name, {"commit": commit, **values}))
    if options.plot:
        previous = _load_networks(kind)
        network_profiles = {
            name: values["profiles"] for name, values in previous.items() if "profiles" in values
        }
        print(profiles.draw(network_profiles, kind))
        dense = {name: previous[name]["attacks"] for name in networks.DENSE if name in previous}
        if dense and kind == "targeted":
            print(profiles.draw_effort(dense))


if __name__ == "__main__":
    main()
