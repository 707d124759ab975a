"""Tables of docs/models.md, made from the figures of bench_convolutions.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("bench_convolutions",)
PAGE = DOCS / "models.md"
NAMES = {
    "rays_smallcnn_bn": "MNIST, max-pooling, RayS",
    "smallcnn_fmn_regular": "MNIST, max-pooling, FMN",
    "colt_mnist_linf0.1": "MNIST, COLT",
    "wk_convex_linf0.1": "MNIST, Wong and Kolter",
    "abc_cifar_cnn_a_mix": "CIFAR-10, convolutional",
    "vnncomp_resnet2b": "CIFAR-10, residual (through torch)",
}


def engine_table(figures: dict[str, Any]) -> str:
    """Engine and torch, evaluation by evaluation and whole runs."""
    rows = []
    for name, measurements in figures.items():
        if "exact" not in measurements:
            continue
        cells = [NAMES.get(name, name), f"{measurements['convolution_weights']:,}"]
        for kind in ("exact", "smoothed"):
            part = measurements[kind]
            cells.append(
                f"{part['engine_ms']:.3f}, {part['torch_ms']:.3f}, **{part['ratio']:.1f}**"
            )
        run = measurements.get("run")
        cells.append("" if run is None else f"**{run['ratio']:.1f}**")
        rows.append(tuple(cells))
    head = ("network", "weights of the convolutions", "exact: ms of the engine, of torch, ratio",
            "smoothed", "whole run, ratio")  # fmt: skip
    return table(head, rows)


def rivals_table(figures: dict[str, Any]) -> str:
    """Milliseconds an image and distortion over that of the default effort."""
    networks = {name: runs["rivals"] for name, runs in figures.items() if "rivals" in runs}
    rows = []
    for attack in next(iter(networks.values()))["attacks"]:
        cells = [attack]
        for runs in networks.values():
            run, our_run = runs["attacks"][attack], runs["attacks"]["advcore default"]
            cells.append(
                f"{1e3 * run['seconds'] / runs['images']:.1f} ms, "
                f"{run['seconds'] / our_run['seconds']:.1f}, {run['mean'] / our_run['mean']:.3f}"
                + ("" if run["success"] == 1 else f" ({run['success']:.0%} found)")
            )
        rows.append(tuple(cells))
    return table(("", *(NAMES[name] for name in networks)), rows)


def files() -> dict[Path, str]:
    """docs/models.md with its tables."""
    figures = machine.load("bench_convolutions")
    text = between("convolutions", PAGE.read_text(), engine_table(figures["networks"]))
    return {PAGE: between("convolutional rivals", text, rivals_table(figures["networks"]))}
