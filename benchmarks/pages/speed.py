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
"""What is wanted, what was measured, whether that is enough (None: not measured)."""

NUMPY, TORCH = "SciPy loop, NumPy", "SciPy loop, torch, cold starts"
STOPPING, WARM = "SciPy loop, NumPy, SciPy's stopping rule", "SciPy loop, torch, warm starts"


def files() -> dict[Path, str]:
    """The page and the README with its table."""
    stored = machine.load("bench_speed")
    return {PAGE: page(stored), README: with_block(README.read_text(), stored)}


def page(stored: Figures) -> str:
    """The Markdown of docs/benchmarks.md."""
    parts = [_head(stored), _targets(stored), _competitors(stored), _throughput(stored)]
    parts += [_latency(stored), _threads(stored), _rates(stored)]
    parts.append(gpu.section(gpu.load()))
    return "\n\n".join(part for part in parts if part) + "\n"


def with_block(readme: str, stored: Figures) -> str:
    """The README with its table of speed between the two marks made anew."""
    return between("speed", readme, _short(stored))


def number(value: float) -> str:
    """Three digits, more before the point where there are more."""
    text = f"{value:#.3g}"
    return text if value and abs(float(text)) < 100 else f"{value:,.0f}"


def spread(values: Figures, scale: float = 1.0, unit: str = "") -> str:
    """``median (min to max)``."""
    median, low, high = (number(scale * values[key]) for key in ("median", "min", "max"))
    return f"{median}{unit} ({low} to {high})"


def threads(stored: Figures) -> str:
    """``one thread`` or ``2 threads``."""
    return "one thread" if stored["threads"] == 1 else f"{stored['threads']} threads"


def best_rival(stored: Figures) -> str | None:
    """The fastest rival whose distortion and success are as good as ours, else the nearest."""
    rows, names = stored["competitors"], rivals(stored)
    good = [name for name in names if rows[name]["as_good"]]
    if good:
        return min(good, key=lambda name: float(rows[name]["ms"]["median"]))
    known = [name for name in names if "mean_over_ours" in rows[name]]
    return min(
        known,
        key=lambda name: (-rows[name]["success"], rows[name]["mean_over_ours"]),
        default=None,
    )


def rivals(stored: Figures) -> list[str]:
    """Names of the attacks from adv-lib."""
    return [
        name for name in stored["competitors"] if name != "advcore" and not name.startswith("SciPy")
    ]


def targets(stored: Figures) -> list[Target]:
    """What the project set out for, beside what was measured."""
    scaling = stored["scaling"]
    out = [
        _ratio(stored, NUMPY, 500, "the SciPy loop through NumPy"),
        _ratio(stored, STOPPING, 500, "the same with SciPy's stopping rule and 20 halvings"),
        _ratio(stored, TORCH, 4000, "the SciPy loop through torch, as older libraries ran it"),
        _ratio(stored, WARM, 4000, "the same with warm starts"),
        _rival_target(stored),
        _ratio(stored, "DDN-100", 10, "DDN-100"),
        (
            "at most 0.3 ms an image on one thread",
            f"{spread(scaling['one'], unit=' ms')}",
            scaling["one"]["median"] <= 0.3,
        ),
    ]
    out += _rate_targets(stored["rates"])
    for run in (scaling, stored["scaling_more"]):
        speedup = run.get("speedup")
        out.append(
            (
                f"at least 1.9 times as fast on two threads as on one ({run['images']:,} images)",
                spread(speedup) if run["threads"] == 2 else "-",
                speedup["median"] >= 1.9 if run["threads"] == 2 else None,
            )
        )
    per_second = [size["images_per_second"]["median"] for size in stored["throughput"]]
    fewest, most = (stored["throughput"][i]["images"] for i in (0, -1))
    change = max(abs(rate / per_second[0] - 1) for rate in per_second)
    out.append(
        (
            "images a second within 10% from 1,000 to 100,000 images",
            f"within {change:.1%} from {fewest:,} to {most:,}",
            change <= 0.1 if fewest == 1000 and most >= 100_000 else None,
        )
    )
    for model in ("advcore.Network", "torch module, lowered"):
        one = stored["latency"][model]
        words = f"a single image in less than 2 ms ({model})"
        out.append((words, spread(one, unit=" ms"), one["median"] < 2))
    return out


def _ratio(stored: Figures, name: str | None, wanted: float, words: str) -> Target:
    text = f"at least {wanted:,} times as fast as {words}"
    if name not in stored["competitors"]:
        return text, "-", None
    ratio = stored["competitors"][name]["ratio"]
    return text, spread(ratio), ratio["median"] >= wanted


def _rival_target(stored: Figures) -> Target:
    name = best_rival(stored)
    text, shown, met = _ratio(stored, name, 60, "the fastest rival within 1% of our distortion")
    if name is not None:
        near = stored["competitors"][name]["as_good"]
        shown += f": {name}" if near else f": {name}, the nearest; none is within 1%"
    return text, shown, met


def _rate_targets(rates: list[Figures]) -> list[Target]:
    wanted: tuple[tuple[str, float, Callable[[Figures], float]], ...] = (
        ("propagation alone at 80% of the machine's peak or more", 0.8, lambda r: r["both"]),
        ("the whole solve at 35% or more", 0.35, lambda r: r["engine"]["median"]),
        ("the whole solve at 50% or more (stretch)", 0.5, lambda r: r["engine"]["median"]),
    )
    out: list[Target] = []
    for words, least, share in wanted:
        shares = [share(r) for r in rates]
        text = ", ".join(f"{s:.1%}" for s in shares) + f" ({', '.join(map(_widths, rates))})"
        out.append((words, text, min(shares) >= least) if rates else (words, "-", None))
    return out


def _widths(rate: Figures) -> str:
    return "-".join(map(str, rate["widths"]))


def _verdict(met: bool | None) -> str:
    return "not measured" if met is None else "met" if met else "**missed**"


def _head(stored: Figures) -> str:
    about, minutes = stored["machine"], stored["seconds"] / 60
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    count = stored["competitors"]["advcore"]["images"]
    rival = f", {stored['rivals']}" if stored["rivals"] else ""
    return f"""# Benchmarks

Made by `python benchmarks/make_pages.py` of `benchmarks/results/bench_speed.json`, which
`benchmarks/bench_speed.py` wrote: all figures are from one run of {minutes:.0f} minutes.

    {stored["command"]}

{about["cpu"]}, {about["cores"]} cores, instruction set {about["isa"]}, load {about["load"]} before.
Python {about["python"]}, {versions}{rival}.
Commit {about["commit"]}, {about["date"][:10]}.
On {threads(stored)} but where another number is named.

The network is 784-100-100-10 with sigmoids, trained on MNIST; the images are {count:,} test digits
that it classifies correctly, each with a random target. Every result that counts was checked first:
inside [0, 1], adversarial by an independent float32 forward of the torch module, its distortion
computed anew. Figures are medians, with the smallest and largest in brackets."""


def _targets(stored: Figures) -> str:
    rows = [(wanted, shown, _verdict(met)) for wanted, shown, met in targets(stored)]
    return "## Targets\n\n" + table(("target", "measured", ""), rows)


def _competitors(stored: Figures) -> str:
    head = ("", "images", "ms an image", "times ours", "success", "mean ‖r‖", "over ours",
            "evaluations + forwards")  # fmt: skip
    rows = []
    for name, r in stored["competitors"].items():
        found = "mean_distortion" in r
        rows.append(
            (
                name,
                f"{r['images']:,}",
                spread(r["ms"]) if r["ms"]["min"] < r["ms"]["max"] else number(r["ms"]["median"]),
                "1" if name == "advcore" else spread(r["ratio"]),
                f"{r['success']:.1%}",
                f"{r['mean_distortion']:.4f}" if found else "-",
                f"{r['mean_over_ours']:.4f}" if found else "-",
                f"{r['evaluations']:,.0f} + {r['forwards']:,.0f}",
            )
        )
    ours = stored["competitors"]["advcore"]
    few = "; ".join(
        f"the first {count} {spread(ms, unit=' ms')}"
        for count, ms in ours.get("subsets", {}).items()
    )
    fastest = _settings(stored["competitors"][NUMPY]["settings"])
    return f"""## Beside other attacks

advcore ran several times before and after each of the others, which shows what the machine does
meanwhile. A ratio is that to the median of these runs, its brackets the smallest time of one over
the largest of the other and the reverse. *Over ours*: mean distortion over that of advcore on the
images that both succeed on. An evaluation is a forward and a backward.

{table(head, rows)}

The SciPy loops, L-BFGS-B for each `c` and bisection on `c` (`advcore.reference`), run in as many
processes as there are threads, in float64 through NumPy or float32 through torch. The first has the
settings that are fastest at an equal result ({fastest}), the others SciPy's stopping rule and 20
halvings. advcore on the images of the loops, an image: {few}.

{_rivals(stored)}"""


def _rivals(stored: Figures) -> str:
    if not stored["rivals"]:
        return "adv-lib was not installed: its attacks were left out."
    rows = []
    for name in rivals(stored):
        r = stored["competitors"][name]
        batches = ", ".join(
            f"{size}: {number(1000 * ms)}" for size, ms in r["short_runs_by_batch"].items()
        )
        rows.append((name, _settings(r["settings"]), f"{r['batch']:,}", batches))
    head = ("", "settings", "batch", "short run by batch size, µs an image")
    return f"""The rivals are {stored["rivals"]}'s, at the settings that were best on held-out
images (`sweep_rivals.py`) and the batch size that was fastest in a run of few steps.

{table(head, rows)}"""


def _settings(settings: Figures) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _throughput(stored: Figures) -> str:
    rows = [
        (
            f"{r['images']:,}",
            spread(r["images_per_second"]),
            f"{r['extra_bytes'] / 1e6:,.1f}",
            f"{r['success']:.2%}",
            f"{r['mean_distortion']:.4f}",
            f"{r['evaluations']:.1f}",
        )
        for r in stored["throughput"]
    ]
    head = ("images", "images a second", "further memory, MB", "success", "mean ‖r‖", "evaluations")
    return f"""## Number of images

The digits again and again with other targets, each number in fresh processes. Further memory:
growth of the peak of resident memory during the first call, less the arrays of the result.

{table(head, rows)}"""


def _latency(stored: Figures) -> str:
    rows = [(name, spread(ms), number(ms["p99"])) for name, ms in stored["latency"].items()]
    head = ("model", "ms", "99th percentile")
    return "## One image\n\nA whole call with a single image.\n\n" + table(head, rows)


def _threads(stored: Figures) -> str:
    rows = []
    for scaling in (stored["scaling"], stored["scaling_more"]):
        images = f"{scaling['images']:,}"
        rows.append((images, "1", spread(scaling["one"]), "1"))
        if "all" in scaling:
            count = str(scaling["threads"])
            rows.append((images, count, spread(scaling["all"]), spread(scaling["speedup"])))
    head = ("images", "threads", "ms an image", "speedup")
    return f"""## Threads

Runs in turn. What a call does once, about 5 ms with a torch module, is on one thread.

{table(head, rows)}"""


def _rates(stored: Figures) -> str:
    if not stored["rates"]:
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
        for r in stored["rates"]
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


def _short(stored: Figures) -> str:
    """The table of the README."""
    rows = stored["competitors"]
    names = {
        "advcore": "advcore",
        NUMPY: "the paper's way: SciPy L-BFGS-B and bisection on `c`, NumPy",
        TORCH: "the same through torch, cold starts",
    }
    good = best_rival(stored)
    names |= {name: name for name in ("DDN-100", good) if name is not None and name in rows}
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
    alike = " and ".join(f"{number(ratio)} (the first {images})" for images, ratio in loops)
    note = (
        f"\nBeside advcore on the loops' own images alone: {alike} times as fast." if alike else ""
    )
    return f"""In one run on {threads(stored)}, {count:,} digits on 784-100-100-10 (the loops on the
first of them), every result checked. A ratio is that to advcore's runs just before and after; the
whole run, with the targets of the project that were met and missed:
[docs/benchmarks.md](docs/benchmarks.md).

{table(head, lines)}
{note}"""
