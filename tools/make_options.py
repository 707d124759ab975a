"""Write docs/options.md, the page of all options, from `advcore.options` itself.

``--check`` compares the file in the repository with what this would write, and the environment
variables below with those that the sources read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from advcore.options import Options, Progress, option_info
from advcore.solve.starts import NEAREST

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "options.md"
PROGRAMS = ("advcore", "kernels", "csrc", "benchmarks")
DATA = (
    (
        "model",
        "a network, torch module, differentiable callable, or object with `forward` and `backward`",
        "maps images to logits; [models.md](models.md)",
    ),
    ("images", "array or tensor `(N, ...)` inside the bounds", "the clean images"),
    (
        "targets",
        "`None`, integer, or integers `(N,)`",
        "class that each image shall be taken for; `None`: any class but `labels`",
    ),
    (
        "labels",
        "`None`, integer, or integers `(N,)`",
        "true classes of an untargeted run; `None`: the model's own prediction. Where `targets` "
        "are given, they are checked and otherwise ignored",
    ),
    (
        "starts",
        "`None`, array `(N, ...)` or `(N, S, ...)`, or (images, classes) of a pool",
        "adversarial images from which further searches start. `(N, S, ...)`: S for each image. A "
        "pool is a pair of images `(M, ...)` and their classes `(M,)`, of which each image gets "
        f"the {NEAREST} nearest of its target, untargeted of another class. No result is farther "
        "than a start that the model confirms",
    ),
)
ENVIRONMENT = {
    "ADVCORE_NUM_THREADS": "default of `threads`: an integer from 1 to 1,024. Unset: all CPUs",
    "ADVCORE_DATA": "folder with data sets and weights, which are then not downloaded: `mnist`, "
    "`imagenet` with samples and class names, and `models`. Some tests and benchmarks need it",
    "ADVCORE_ISA": "widest instruction set that the engine may use on the CPU: `base`, `v3` "
    "(AVX2) or `v4` (AVX-512). Unset: the widest that the processor has",
    "ADVCORE_GPU": "what the solver does with a model on a GPU. `auto` (default): it runs there "
    "if it passes a test, once a kind of GPU, and on the CPU where it fails; each retreat warns "
    "once. `torch`: the model runs through torch and the solver on the CPU. `off`: networks run in "
    "the engine on the CPU, and the model on the GPU verifies; other models as with `torch`. "
    "`force`: on the GPU without test or retreat. `advcore info --gpu` shows the outcome, which is "
    "kept in `~/.cache/advcore/gpu.json`",
    "ADVCORE_PRECISION": "precision of the products of a native network on a GPU: `tf32x3` or "
    "`ieee`. Unset: `tf32x3`. Results are verified in float32 in any case",
    "ADVCORE_RESULTS": "folder where the benchmarks write their figures. Unset: "
    "`benchmarks/results`",
    "XDG_CACHE_HOME": "folder of caches, where `advcore/gpu.json` is. Unset: `~/.cache`",
    "OMP_WAIT_POLICY": "OpenMP's own. `make` sets `passive`, so that idle threads of torch leave "
    "the CPUs to the engine",
}
PROGRESS = {
    "finished": "images that are finished",
    "total": "all images",
    "succeeded": "finished images that have an adversarial one",
    "evaluations": "pairs of a forward and a backward so far, of all images",
    "seconds": "time since the run began",
}
READ = r"(?:getenv\(|environ(?:\.get\(|\[))\s*\"(\w+)\""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown_default(name: str, default: object) -> str:
    """The default of an option, with what it stands for where it names no value."""
    text = repr(default).replace("'", '"')
    if name in {"confidence", "tolerance"}:
        text = f"{default:.0e}".replace("e-0", "e-")
    without = option_info(name).without
    for variable in ENVIRONMENT:
        without = without.replace(variable, f"`{variable}`")
    return f"`{text}`: {without}" if without else f"`{text}`"


def generate() -> str:
    """Text of the page."""
    options = []
    for entry in fields(Options):
        info = option_info(entry.name)
        meaning = info.meaning or info.help
        default = shown_default(entry.name, entry.default)
        options.append((f"`{entry.name}`", info.check.accepts, default, meaning))
    data = [(f"`{name}`", values, meaning) for name, values, meaning in DATA]
    variables = [(f"`{name}`", meaning) for name, meaning in ENVIRONMENT.items()]
    progress = [(f"`{entry.name}`", PROGRESS[entry.name]) for entry in fields(Progress)]
    return f"""# Options

<!-- Made by tools/make_options.py from advcore/options.py; change that and run `make options`. -->

`advcore.minimize_distortion(model, images, targets=None, *, labels=None, starts=None, ...)`

{table(("argument", "values", "meaning"), data)}

All options are keywords. Every error names the option, what was expected and what came.

{table(("option", "values", "default", "meaning"), options)}

`advcore attack` has the same options, with dashes in the place of underscores, except `progress`
(it always shows a bar) and `callback`. `advcore attack --help` lists them.

## Progress

`callback` is given an `advcore.Progress` with these fields:

{table(("field", "meaning"), progress)}

## Environment variables

{table(("variable", "meaning"), variables)}
"""


def variables_read() -> set[str]:
    """Environment variables that the sources read."""
    sources = [path for folder in PROGRAMS for path in (ROOT / folder).rglob("*")]
    endings = {".py", ".h", ".cpp", ".cu", ".cuh"}
    texts = [path.read_text() for path in sources if path.suffix in endings]
    return {name for text in texts for name in re.findall(READ, text)}


def main() -> None:
    """Write the page, or with --check fail if it is not up to date."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(generate())
        return
    if PAGE.read_text() != generate():
        sys.exit(f"{PAGE.name} is not up to date: run `make options`")
    own = {name for name in ENVIRONMENT if name != "OMP_WAIT_POLICY"}  # the Makefile's
    if different := own ^ variables_read():
        sys.exit(f"ENVIRONMENT in {Path(__file__).name}: {', '.join(sorted(different))}")


if __name__ == "__main__":
    main()
