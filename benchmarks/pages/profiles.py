"""Performance profiles: the share of the images within a factor of the best attack, per network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
IMAGES = Path(__file__).parents[2] / "docs" / "images"
EXCESS = np.geomspace(1e-4, 0.1, 46)  # factors 1.0001 to 1.1, 15 a decade
LINES = {  # colour, style
    "advcore fast": ("#fdae61", "-"),
    "advcore default": ("#e31a1c", "-"),
    "advcore thorough": ("#67001f", "-"),
    "advcore default, starts": ("#b15928", "-"),
    "DDN-1000": ("#1f78b4", "--"),
    "ALMA-1000": ("#33a02c", "--"),
    "PDGD-500": ("#984ea3", "--"),
    "FMN-1000": ("#878787", "--"),
    "C&W 9x1000": ("#000000", ":"),
    "C&W 9x200": ("#000000", "-."),
    "SuperDeepFool": ("#01c5c4", "--"),
}


def profile(distances: Floats, smallest: Floats, excess: Floats) -> Floats:
    """Share of the images that some attack found with distance <= (1 + excess) * best."""
    successes = np.isfinite(smallest)
    ratio = np.sort(distances[successes] / smallest[successes])
    return np.searchsorted(ratio, 1 + excess, side="right") / max(len(ratio), 1)


def profiles(distances: dict[str, Floats]) -> dict[str, list[float]]:
    """Shares of each drawn attack within the factors 1 + EXCESS of the best of them."""
    drawn_attacks = {attack: d for attack, d in distances.items() if attack in LINES}
    smallest = np.min(list(drawn_attacks.values()), axis=0)
    return {
        attack: [round(float(share), 4) for share in profile(d, smallest, EXCESS)]
        for attack, d in drawn_attacks.items()
    }


def draw(networks: dict[str, dict[str, list[float]]], kind: str) -> Path:
    """One panel a network; x: factor over the best of all attacks shown, 1.0001 to 1.1, log."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    columns = 5 if len(networks) % 5 == 0 else min(4, len(networks))
    lines = -(-len(networks) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(11.6, 2.2 * lines + 0.6), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    handles = {}
    for axis, (network, rows) in zip(axes.flat, networks.items(), strict=False):
        for attack, shares in rows.items():
            colour, style = LINES[attack]
            (handles[attack],) = axis.plot(
                EXCESS, shares, style, color=colour, linewidth=1.6 if style == "-" else 1.1
            )
        axis.set_title(network, fontsize=8)
        axis.set_xscale("log")
        axis.set_xticks([1e-4, 1e-3, 1e-2, 1e-1], ["1.0001", "1.001", "1.01", "1.1"])
        axis.set_ylim(0, 1)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(networks) :]:
        axis.set_visible(False)
    figure.supxlabel(f"distortion over the smallest of all attacks ({kind})", fontsize=8)
    figure.supylabel("share of the images", fontsize=8)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=9, fontsize=7,
        frameon=False,
    )  # fmt: skip
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"optimality_{kind}.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    with Image.open(path) as picture:  # a palette: half of the bytes
        image = picture.convert("RGB").quantize(192)
    image.save(path, optimize=True)
    return path


def draw_effort(figures: dict[str, dict[str, dict[str, float]]]) -> Path:
    """Mean distortion over the envelope against evaluations; ours joined, the rivals as points."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for (network, rows), colour in zip(figures.items(), plt.get_cmap("tab10").colors, strict=False):
        our_rows = [rows[f"advcore {effort}"] for effort in ("fast", "default", "thorough")]
        axis.plot(
            [row["evaluations"] + row["forwards"] for row in our_rows],
            [row["mean_over_envelope"] for row in our_rows], "o-", color=colour, label=network,
            markersize=4,
        )  # fmt: skip
        rivals = [rows[name] for name in LINES if name in rows and not name.startswith("advcore")]
        axis.plot(
            [row["evaluations"] + row["forwards"] for row in rivals if row["success"] == 1],
            [row["mean_over_envelope"] for row in rivals if row["success"] == 1],
            "x", color=colour, markersize=5,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_ylim(0.99, 1.08)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.grid(alpha=0.3)
    axis.set_xlabel("forward passes an image: o advcore fast, default, thorough; x rivals")
    axis.set_ylabel("distortion / envelope")
    axis.legend(fontsize=7, frameon=False)
    path = IMAGES / "effort.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
