"""Curves of distortion against queries, and the table of ours over the best single rival."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .markdown import table as markdown_table
from .profiles import IMAGES, LINES

COLOURS = {
    "advcore": LINES["advcore default"][0],
    "DDN": LINES["DDN-1000"][0],
    "ALMA": LINES["ALMA-1000"][0],
    "PDGD": LINES["PDGD-500"][0],
    "FMN": LINES["FMN-1000"][0],
    "SuperDeepFool": LINES["SuperDeepFool"][0],
    "FAB": LINES["C&W 9x1000"][0],
}


def points(runs: dict[str, dict[str, Any]], curve: str) -> list[tuple[float, float]]:
    """Queries and mean distortion of the runs of a curve, in the order of their queries."""
    members = (row for name, row in runs.items() if name.rpartition("-")[0] == curve)
    return sorted((row["queries"], row["mean"]) for row in members)


def draw(networks: dict[str, Any], kind: str) -> Path:
    """One panel a network; queries an image against the mean over the smallest mean of all runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(networks))
    lines = -(-len(networks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.9 * columns, 2.3 * lines + 0.5), sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    handles = {}
    for axis, (network, values) in zip(axes.flat, networks.items(), strict=False):
        runs = values["runs"]
        least = min(row["mean"] for row in runs.values())
        for curve, colour in COLOURS.items():
            found = points(runs, curve)
            if found:
                queries, means = zip(*found, strict=True)
                (handles[curve],) = axis.plot(
                    queries, [mean / least for mean in means], "o-", color=colour, markersize=3,
                    linewidth=1.6 if curve == "advcore" else 1.0,
                )  # fmt: skip
        axis.set_title(network, fontsize=8)
        axis.set_xscale("log")
        axis.set_ylim(0.99, 1.3)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(networks) :]:
        axis.set_visible(False)
    figure.supxlabel(f"queries an image: forwards and backwards ({kind})", fontsize=8)
    figure.supylabel("mean distortion over the smallest", fontsize=8)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=7, fontsize=7,
        frameon=False,
    )  # fmt: skip
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"anytime_{kind}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def table(networks: dict[str, Any]) -> str:
    """Ours over the best single rival within the same queries, a line a network."""
    budgets = sorted({int(n) for values in networks.values() for n in values["over_best_rival"]})
    rows = []
    for network, values in networks.items():
        cells = [values["over_best_rival"].get(str(n)) for n in budgets]
        texts = (f"{cell['ratio']:.3f} {cell['rival']}" if cell else "" for cell in cells)
        rows.append((network, *texts))
    return markdown_table(("network", *(f"{2 * n:,} queries" for n in budgets)), rows)
