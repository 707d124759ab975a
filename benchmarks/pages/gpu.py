"""The section on GPUs of docs/benchmarks.md, made from the figures of bench_gpu.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, table

FIGURES = ("bench_gpu",)
PAGE = DOCS / "benchmarks.md"
Figures = dict[str, Any]
RIVALS = ("PDGD-500", "DDN-1000", "ALMA-1000")
WHOLE, WARM, TIMES, SHARE = 0.3, 0.05, 100.0, 0.5
"""Wanted: seconds for all targets, and for one; ratio to the best rival; share of the bound."""


def load() -> Figures | None:
    """The stored figures of bench_gpu.py, if it has run."""
    path = machine.RESULTS / "bench_gpu.json"
    return json.loads(path.read_text()) if path.is_file() else None


def section(stored: Figures | None) -> str:
    """Markdown: the table, the targets, and the figures of the other parts."""
    if stored is None:
        return (
            "## On a GPU\n\nNot measured yet: no GPU has been at hand. `benchmarks/gpu.sh` builds, "
            "tests and measures on one,\nand leaves the figures that this section is made of."
        )
    head = (
        f"## On a GPU\n\n{stored['device']}, torch {stored['torch']}, copies at "
        f"{stored['copy_TB_s']:.2f} TB/s. {stored['network']}, {stored['images']}, "
        "each with all 9 wrong classes."
    )
    parts = [_table(stored), _targets(stored)] if "every_target" in stored else []
    return "\n\n".join([head, *parts, *_parts(stored)])


def _ok(part: Any) -> bool:
    return isinstance(part, dict) and "failed" not in part


def _table(figures: Figures) -> str:
    runs = {"advcore": figures["every_target"]}
    runs |= {name: figures[name] for name in RIVALS if name in figures}
    our_seconds = figures["every_target"].get("seconds")
    rows = []
    for name, run in runs.items():
        if not _ok(run):
            rows.append((name, "failed", "", "", ""))
            continue
        ratio = f"{run['seconds'] / our_seconds:.1f}" if our_seconds else ""
        success, mean = f"{100 * run['success']:.2f}%", f"{run['mean_distortion']:.4f}"
        rows.append((name, f"{run['seconds']:.3f}", ratio, success, mean))
    return table(("attack", "seconds", "times advcore", "success", "mean distortion"), rows)


def _targets(figures: Figures) -> str:
    all_targets, single_target = figures["every_target"], figures.get("one_target")
    rows: list[tuple[str, str, str]] = []

    def add(goal: str, measured: str, enough: bool) -> None:
        rows.append((goal, measured, "yes" if enough else "no"))

    if _ok(all_targets):
        seconds, mean = all_targets["seconds"], all_targets["mean_distortion"]
        goal = f"{all_targets['images']:,} problems in {WHOLE} s"
        add(goal, f"{seconds:.3f} s", seconds < WHOLE)
        if "share_of_bound" in all_targets:
            share = all_targets["share_of_bound"]
            text = f"{100 * share:.0f}%, {all_targets['round_seconds']:.3f} s of rounds"
            add(f"{100 * SHARE:.0f}% of the bound of memory", text, share >= SHARE)
        # Means are over each attack's own successes: only those that reach as many are compared.
        least_success = all_targets["success"] - 0.001
        runs = [figures[name] for name in RIVALS if _ok(figures.get(name))]
        runs = [run for run in runs if run["success"] > least_success]
        if runs:
            ratio = min(run["seconds"] for run in runs) / seconds
            add(f"{TIMES:.0f} times the fastest attack", f"{ratio:.0f} times", ratio >= TIMES)
            ratio = mean / min(run["mean_distortion"] for run in runs)
            add("a lower mean distortion than any", f"{ratio:.4f} of the best", ratio < 1)
    if _ok(single_target):
        goal = f"{single_target['images']:,} problems in {1e3 * WARM:.0f} ms once warm"
        add(goal, f"{1e3 * single_target['seconds']:.0f} ms", single_target["seconds"] < WARM)
    return table(("wanted", "measured", ""), rows)


def _parts(figures: Figures) -> list[str]:
    out = []
    cpu, host_rounds = figures.get("agreement"), figures.get("torch_path")
    single_target = figures.get("one_target")
    if _ok(cpu) and _ok(single_target):
        ratio = cpu["cpu_seconds"] / single_target["seconds"]
        out.append(
            f"Against the CPU's engine with {cpu['threads']} threads, {cpu['images']:,} images "
            f"with one target each: {ratio:.1f} times as fast, the "
            f"same success for {100 * cpu['same_success']:.2f}%, the same status for "
            f"{100 * cpu['same_status']:.2f}%, distortions within 0.1% for "
            f"{100 * cpu['within_1e-3']:.2f}%, mean distortion {cpu['mean_ratio']:.5f} of it."
        )
    if _ok(host_rounds) and _ok(single_target):
        ratio = host_rounds["seconds"] / single_target["seconds"]
        out.append(f"The same by torch's kernels, rounds by the host: {ratio:.1f} times the time.")
    if _ok(pictures := figures.get("resnet50")):
        out.append(
            f"ResNet-50, {pictures['images']} random pictures of side {pictures['side']}, "
            f"untargeted, with the effort fast: {pictures['seconds']:.2f} s, "
            f"{pictures['evaluations']:.1f} evaluations an image, success for "
            f"{100 * pictures['success']:.1f}%."
        )
    if _ok(figures.get("precision")):
        head = ("precision", "seconds", "mean distortion", "evaluations", "success")
        rows = [
            (
                *(name, f"{run['seconds']:.3f}", f"{run['mean_distortion']:.4f}"),
                *(f"{run['evaluations']:.1f}", f"{100 * run['success']:.2f}%"),
            )
            for name, run in figures["precision"].items()
        ]
        out.append(table(head, rows))
    if _ok(figures.get("slots")):
        runs = figures["slots"].items()
        text = ", ".join(f"{int(count):,}: {run['seconds']:.3f} s" for count, run in runs)
        out.append(f"By images at work: {text}.")
    return out


def files() -> dict[Path, str]:
    """docs/benchmarks.md with its last section, the one on GPUs, made anew."""
    rest, heading, _ = PAGE.read_text().partition("## On a GPU\n")
    if not heading:
        raise ValueError(f"{PAGE} has no section on GPUs")
    return {PAGE: f"{rest}{section(load())}\n"}
