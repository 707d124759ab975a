"""docs/benchmarks.md and the table of speed in README.md, made from the figures of bench_speed.py.

The last section of the page is that of `gpu`, which has figures of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import machine

from . import gpu
from .markdown import README, between, table

FIGURES = ("bench_speed",)
PAGE = gpu.PAGE
Figures = dict[str, Any]
Target = tuple[str, str, bool | None]
"""The words of a target, the measured value, whether it is met (None: not measured)."""

NUMPY, TORCH = "SciPy loop, NumPy", "SciPy loop, torch, cold starts"
STOPPING, WARM = "SciPy loop, NumPy, SciPy's stopping rule", "SciPy loop, torch, warm starts"


def files() -> dict[Path, str]:
    """The page and the README with its table."""
    figures = machine.load("bench_speed")
    return {PAGE: page(figures), README: with_block(README.read_text(), figures)}


def page(figures: Figures) -> str:
    """The Markdown of docs/benchmarks.md."""
    parts = [_head(figures), _targets(figures), _competitors(figures), _throughput(figures)]
    parts += [_latency(figures), _threads(figures), _rates(figures)]
    parts.append(gpu.section(gpu.load()))
    return "\n\n".join(part for part in parts if part) + "\n"


def with_block(readme: str, figures: Figures) -> str:
    """The README with its table of speed between the two marks made anew."""
    return between("speed", readme, _readme_table(figures))


def number(value: float) -> str:
    """Three digits, more before the point where there are more."""
    text = f"{value:#.3g}"
    return text if value and abs(float(text)) < 100 else f"{value:,.0f}"


def spread(values: Figures, scale: float = 1.0, unit: str = "") -> str:
    """``median (min to max)``."""
    median, low, high = (number(scale * values[key]) for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})"


def threads(figures: Figures) -> str:
    """``one thread`` or ``2 threads``."""
    return "one thread" if figures["threads"] == 1 else f"{figures['threads']} threads"


def best_rival(figures: Figures) -> str | None:
    """The fastest rival whose distortion and success are as good as ours, else the nearest."""
    rows, names = figures["competitors"], rivals(figures)
    equal_rivals = [name for name in names if rows[name]["as_good"]]
    if equal_rivals:
        return min(equal_rivals, key=lambda name: float(rows[name]["ms"]["median"]))
    measured_rivals = [name for name in names if "mean_over_ours" in rows[name]]
    return min(
        measured_rivals,
        key=lambda name: (-rows[name]["success"], rows[name]["mean_over_ours"]),
        default=None,
    )


def rivals(figures: Figures) -> list[str]:
    """Names of the attacks from adv-lib."""
    names: list[str] = [name for name in figures["competitors"] if name != "advcore"]
    return [name for name in names if not name.startswith("SciPy")]


def targets(figures: Figures) -> list[Target]:
    """The targets of the project beside the measured values."""
    scaling = figures["scaling"]
    out = [
        _ratio(figures, NUMPY, 500, "the SciPy loop through NumPy"),
        _ratio(figures, STOPPING, 500, "the same with SciPy's stopping rule and 20 halvings"),
        _ratio(figures, TORCH, 4000, "the SciPy loop through torch, as older libraries ran it"),
        _ratio(figures, WARM, 4000, "the same with warm starts"),
        _rival_target(figures),
        _ratio(figures, "DDN-100", 10, "DDN-100"),
        (
            "at most 0.3 ms an image on one thread",
            f"{spread(scaling['one'], unit=' ms')}",
            scaling["one"]["median"] <= 0.3,
        ),
    ]
    out += _rate_targets(figures["rates"])
    for run in (scaling, figures["scaling_more"]):
        speedup = run.get("speedup")
        out.append(
            (
                f"at least 1.9 times as fast on two threads as on one ({run['images']:,} images)",
                spread(speedup) if run["threads"] == 2 else "-",
                speedup["median"] >= 1.9 if run["threads"] == 2 else None,
            )
        )
    per_second = [size["images_per_second"]["median"] for size in figures["throughput"]]
    smallest_count, largest_count = (figures["throughput"][i]["images"] for i in (0, -1))
    change = max(abs(rate / per_second[0] - 1) for rate in per_second)
    out.append(
        (
            "images a second within 10% from 1,000 to 100,000 images",
            f"within {change:.1%} from {smallest_count:,} to {largest_count:,}",
            change <= 0.1 if smallest_count == 1000 and largest_count >= 100_000 else None,
        )
    )
    for model in ("advcore.Network", "torch module, lowered"):
        latency = figures["latency"][model]
        words = f"a single image in less than 2 ms ({model})"
        out.append((words, spread(latency, unit=" ms"), latency["median"] < 2))
    return out


def _ratio(figures: Figures, name: str | None, least: float, words: str) -> Target:
    text = f"at least {least:,} times as fast as {words}"
    if name not in figures["competitors"]:
        return text, "-", None
    ratio = figures["competitors"][name]["ratio"]
    return text, spread(ratio), ratio["median"] >= least


def _rival_target(figures: Figures) -> Target:
    name = best_rival(figures)
    text, cell, met = _ratio(figures, name, 60, "the fastest rival within 1% of our distortion")
    if name is not None:
        is_equal = figures["competitors"][name]["as_good"]
        cell += f": {name}" if is_equal else f": {name}, the nearest; none is within 1%"
    return text, cell, met


def _rate_targets(rates: list[Figures]) -> list[Target]:
    goals: tuple[tuple[str, float, Callable[[Figures], float]], ...] = (
        ("propagation alone at 80% of the machine's peak or more", 0.8, lambda r: r["both"]),
        ("the whole solve at 35% or more", 0.35, lambda r: r["engine"]["median"]),
        ("the whole solve at 50% or more (stretch)", 0.5, lambda r: r["engine"]["median"]),
    )
    out: list[Target] = []
    for words, least, share in goals:
        shares = [share(r) for r in rates]
        text = ", ".join(f"{s:.1%}" for s in shares) + f" ({', '.join(map(_widths, rates))})"
        out.append((words, text, min(shares) >= least) if rates else (words, "-", None))
    return out


def _widths(rate: Figures) -> str:
    return "-".join(map(str, rate["widths"]))


def _verdict(met: bool | None) -> str:
    return "not measured" if met is None else "met" if met else "**missed**"


def _head(figures: Figures) -> str:
    about, minutes = figures["machine"], figures["seconds"] / 60
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    count = figures["competitors"]["advcore"]["images"]
    rival = f", {figures['rivals']}" if figures["rivals"] else ""
    return f"""# Benchmarks

Made by `python benchmarks/make_pages.py` of `benchmarks/results/bench_speed.json`, which
`benchmarks/bench_speed.py` wrote: all figures are from one run of {minutes:.0f} minutes.

    {figures["command"]}

{about["cpu"]}, {about["cores"]} cores, instruction set {about["isa"]}, load {about["load"]} before.
Python {about["python"]}, {versions}{rival}.
Commit {about["commit"]}, {about["date"][:10]}.
On {threads(figures)} but where another number is named.

The network is 784-100-100-10 with sigmoids, trained on MNIST; the images are {count:,} test digits
that it classifies correctly, each with a random target. Every result that counts was checked first:
inside [0, 1], adversarial by an independent float32 forward of the torch module, its distortion
computed anew. Figures are medians, with the smallest and largest in brackets."""


def _targets(figures: Figures) -> str:
    rows = [(goal, cell, _verdict(met)) for goal, cell, met in targets(figures)]
    return "## Targets\n\n" + table(("target", "measured", ""), rows)


def _competitors(figures: Figures) -> str:
    head = ("", "images", "ms an image", "times ours", "success", "mean ‖r‖", "over ours",
            "evaluations + forwards")  # fmt: skip
    rows = []
    for name, r in figures["competitors"].items():
        is_found = "mean_distortion" in r
        rows.append(
            (
                name,
                f"{r['images']:,}",
                spread(r["ms"]) if r["ms"]["min"] < r["ms"]["max"] else number(r["ms"]["median"]),
                "1" if name == "advcore" else spread(r["ratio"]),
                f"{r['success']:.1%}",
                f"{r['mean_distortion']:.4f}" if is_found else "-",
                f"{r['mean_over_ours']:.4f}" if is_found else "-",
                f"{r['evaluations']:,.0f} + {r['forwards']:,.0f}",
            )
        )
    our_row = figures["competitors"]["advcore"]
    subsets = "; ".join(
        f"the first {count} {spread(ms, unit=' ms')}"
        for count, ms in our_row.get("subsets", {}).items()
    )
    fastest = _settings(figures["competitors"][NUMPY]["settings"])
    return f"""## Beside other attacks

advcore ran several times before and after each of the others, which shows what the machine does
meanwhile. A ratio is that to the median of these runs, its brackets the smallest time of one over
the largest of the other and the reverse. *Over ours*: mean distortion over that of advcore on the
images that both succeed on. An evaluation is a forward and a backward.

{table(head, rows)}

The SciPy loops, L-BFGS-B for each `c` and bisection on `c` (`advcore.reference`), run in as many
processes as there are threads, in float64 through NumPy or float32 through torch. The first has the
settings that are fastest at an equal result ({fastest}), the others SciPy's stopping rule and 20
halvings. advcore on the images of the loops, an image: {subsets}.

{_rivals(figures)}"""


def _rivals(figures: Figures) -> str:
    if not figures["rivals"]:
        return "adv-lib was not installed: its attacks were left out."
    rows = []
    for name in rivals(figures):
        r = figures["competitors"][name]
        batches = ", ".join(
            f"{size}: {number(1000 * ms)}" for size, ms in r["short_runs_by_batch"].items()
        )
        rows.append((name, _settings(r["settings"]), f"{r['batch']:,}", batches))
    head = ("", "settings", "batch", "short run by batch size, µs an image")
    return f"""The rivals are {figures["rivals"]}'s, at the settings that were best on held-out
images (`sweep_rivals.py`) and the batch size that was fastest in a run of few steps.

{table(head, rows)}"""


def _settings(settings: Figures) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _throughput(figures: Figures) -> str:
    rows = [
        (
            f"{r['images']:,}",
            spread(r["images_per_second"]),
            f"{r['extra_bytes'] / 1e6:,.1f}",
            f"{r['success']:.2%}",
            f"{r['mean_distortion']:.4f}",
            f"{r['evaluations']:.1f}",
        )
        for r in figures["throughput"]
    ]
    head = ("images", "images a second", "further memory, MB", "success", "mean ‖r‖", "evaluations")
    return f"""## Number of images

The digits again and again with other targets, each number in fresh processes. Further memory:
growth of the peak of resident memory during the first call, less the arrays of the result.

{table(head, rows)}"""


def _latency(figures: Figures) -> str:
    rows = [(name, spread(ms), number(ms["p99"])) for name, ms in figures["latency"].items()]
    head = ("model", "ms", "99th percentile")
    return "## One image\n\nA whole call with a single image.\n\n" + table(head, rows)


def _threads(figures: Figures) -> str:
    rows = []
    for scaling in (figures["scaling"], figures["scaling_more"]):
        images = f"{scaling['images']:,}"
        rows.append((images, "1", spread(scaling["one"]), "1"))
        if "all" in scaling:
            count = str(scaling["threads"])
            rows.append((images, count, spread(scaling["all"]), spread(scaling["speedup"])))
    head = ("images", "threads", "ms an image", "speedup")
    return f"""## Threads

Runs in turn. What a call does once, about 5 ms with a torch module, is on one thread.

{table(head, rows)}"""


def _rates(figures: Figures) -> str:
    if not figures["rates"]:
        return "## Share of the peak\n\nNot measured: no CMake."
    rows = [
        (
            _widths(r),
            f"{r['peak']:.0f} ({r['peak_best']:.0f})",
            *(f"{r[key]:.0%}" for key in ("forward", "backward", "both")),
            spread(r["engine"], 100, "%"),
            spread(r["call"], 100, "%"),
            number(1e-6 * r["solve_flops"]),
        )
        for r in figures["rates"]
    ]
    head = ("network", "peak, Gflop/s (best)", "forward", "backward", "both", "solve", "call",
            "Mflop an image")  # fmt: skip
    return f"""## Share of the peak

One thread, CPU time. The peak is that of independent multiply-adds in registers
(`benchmarks/native/propagation.cpp`), measured before and after the solves. Forward, backward and
both: the propagation alone, on the rows of a tile. Solve and call: 2 x weights flops for each row
and direction that the solve propagated, and nothing else, over the time of the compiled solve and
of the whole `minimize_distortion`.

{table(head, rows)}"""


def _readme_table(figures: Figures) -> str:
    """The table of the README."""
    rows = figures["competitors"]
    names = {
        "advcore": "advcore",
        NUMPY: "the paper's way: SciPy L-BFGS-B and bisection on `c`, NumPy",
        TORCH: "the same through torch, cold starts",
    }
    equal_rival = best_rival(figures)
    names |= {name: name for name in ("DDN-100", equal_rival) if name is not None and name in rows}
    lines = [
        (
            words,
            number(rows[name]["ms"]["median"]),
            "1" if name == "advcore" else number(rows[name]["ratio"]["median"]),
            f"{rows[name]['evaluations']:,.0f}",
            f"{rows[name]['mean_over_ours']:.3f}" if "mean_over_ours" in rows[name] else "-",
        )
        for name, words in names.items()
    ]
    head = ("", "ms an image", "times ours", "evaluations", "mean distortion over ours")
    count = rows["advcore"]["images"]
    subsets = rows["advcore"].get("subsets", {})
    loops = [
        (row["images"], row["ms"]["median"] / subsets[str(row["images"])]["median"])
        for row in (rows[name] for name in (NUMPY, TORCH) if name in rows)
        if str(row["images"]) in subsets
    ]
    loops_note, note = "", ""
    if loops:
        sizes = " and ".join(f"{images}" for images, _ in loops)
        ratios = " and ".join(f"{number(ratio)} (the first {images})" for images, ratio in loops)
        loops_note = f"The two SciPy loops ran on the first {sizes} of these digits.\n"
        note = f"\nOn the images of the loops alone, advcore is {ratios} times as fast as they are."
    cores = threads(figures)
    return f"""In one run on {cores}, {count:,} digits on 784-100-100-10, every result checked.
{loops_note}A ratio is that to advcore's runs just before and after. The whole run, with the targets
of the project that were met and missed: [docs/benchmarks.md](docs/benchmarks.md).

{table(head, lines)}
{note}"""
