"""Tables of docs/jobs.md, made from the figures of bench_jobs.py and job_kills.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import machine

from .markdown import DOCS, between, table

FIGURES = ("bench_jobs", "job_kills")
PAGE = DOCS / "jobs.md"
MODELS = {
    "embedded": "network of the package, in the engine",
    "residual": "small residual network, through torch",
    "residual, small blocks": "the same",
}
KILLED = (-9, -15, 130)
"""Exit codes of a job that was killed; one with another code had ended before."""
LIMITS = {"embedded": 1.10, "residual": 1.03}
"""Targets of a job's time over a call's."""


def share(values: dict[str, float]) -> str:
    """Median of a ratio with the smallest and largest."""
    return f"{values['median']:.3f} ({values['min']:.3f} to {values['max']:.3f})"


def time_table(figures: dict[str, Any]) -> str:
    """A job's time over that of a call on all images at once."""
    rows = []
    for name, run in figures.items():
        limit = LIMITS.get(name)
        target = "" if limit is None else f"at most {limit:.2f}: "
        if limit is not None:
            target += "met" if run["cpu"]["median"] <= limit else "**missed**"
        rows.append(
            (
                MODELS[name],
                f"{run['images']:,} in blocks of {run['block']:,}",
                f"{run['seconds']:.1f} s",
                share(run["wall"]),
                share(run["cpu"]),
                target,
            )
        )
    head = ("model", "images", "call", "job / call, wall", "job / call, CPU", "target (CPU)")
    return table(head, rows)


def images_table(figures: dict[str, Any]) -> str:
    """What it costs to keep the adversarial images."""
    rows = [
        (f"`{kept}`", share(run["wall"]), share(run["cpu"]), f"{run['bytes_an_image']:,.0f}")
        for kept, run in figures.items()
    ]
    return table(("images", "job / call, wall", "job / call, CPU", "bytes an image on disk"), rows)


def memory_table(figures: dict[str, Any]) -> str:
    """Peak memory by the number of images."""
    rows = [
        (
            f"{int(count):,}",
            f"{int(count) * 784 * 4 / 2**20:,.0f} MiB",
            f"{run['peak_mib']:.0f} MiB",
        )
        for count, run in figures.items()
    ]
    return table(("images", "their .npy file", "peak memory of the process"), rows)


def costs(figures: dict[str, Any]) -> str:
    """The section on time, images and memory."""
    about, time = figures["machine"], figures["time"]
    embedded = figures["images"]["none"]
    machine_text = (
        f"{about['cpu']}, {about['cores']} cores, load {about['load']}, {about['date'][:10]}"
    )
    return "\n\n".join(
        (
            "Measured by `python benchmarks/bench_jobs.py`, each table in one run, a job and a "
            f"call in turn: {machine_text}. Figures are medians of pairs, with the smallest and "
            "largest. Where the machine has other load, the CPU times say more.",
            time_table(time),
            f"The adversarial images of {embedded['images']:,} digits of 784 values on 256 levels, "
            "in the engine:",
            images_table(figures["images"]),
            "Memory of a job that reads digits of a .npy file, in blocks of 1,000:",
            memory_table(figures["memory"]),
        )
    )


def kills(figures: dict[str, Any]) -> str:
    """A line on the jobs that were killed."""
    rows = []
    for name, trials in figures["trials"].items():
        rows.append(
            (
                name,
                str(len(trials)),
                str(sum(kill["exit"] in KILLED for trial in trials for kill in trial["kills"])),
                str(sum(trial["lost"] for trial in trials)),
                str(sum(trial["doubled"] for trial in trials)),
                f"{sum(trial['identical'] for trial in trials)} of {len(trials)}",
            )
        )
    head = ("", "jobs", "kills", "rows lost", "rows doubled", "all files have the same bytes")
    text = (
        f"Jobs of {figures['images']:,} digits, three of them damaged, killed at random moments "
        "and started again (`benchmarks/job_kills.py`):"
    )
    return f"{text}\n\n{table(head, rows)}"


def files() -> dict[Path, str]:
    """docs/jobs.md with its tables."""
    text = between("kills", PAGE.read_text(), kills(machine.load("job_kills")))
    return {PAGE: between("jobs", text, costs(machine.load("bench_jobs")))}
