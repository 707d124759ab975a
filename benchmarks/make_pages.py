"""Writes the generated pages and tables from the stored figures of the benchmarks.

    python benchmarks/make_pages.py [PAGE]...

Without a name it makes all pages whose figures are in ``benchmarks/results``. Each page belongs to
a module of ``pages/``, which names its files: `FIGURES` are the results that it reads, `files()`
gives the text of every file that it changes.

speed          docs/benchmarks.md and the table of speed in README.md, from bench_speed.py
optimality     tables in README.md and docs/optimality.md, from bench_optimality.py
gpu            the section on GPUs in docs/benchmarks.md, from bench_gpu.py
convolutions   tables in docs/models.md, from bench_convolutions.py
jobs           tables in docs/jobs.md, from bench_jobs.py and job_kills.py
ablation       the table in docs/decisions.md, from ablate.py
forms          the table in docs/models.md, from bench_forms.py
architectures  tables in docs/architectures.md, from survey_architectures.py
attackbench    tables in docs/adapters.md, from bench_attackbench.py
single         a table in docs/decisions.md, from bench_single.py
launches       the table in docs/performance.md, from count_launches.py
"""

from __future__ import annotations

import argparse

from harness import machine
from pages import (
    ablation,
    architectures,
    attackbench,
    convolutions,
    forms,
    gpu,
    jobs,
    launches,
    optimality,
    single,
    speed,
)

PAGES = {
    "speed": speed,
    "optimality": optimality,
    "gpu": gpu,
    "convolutions": convolutions,
    "ablation": ablation,
    "launches": launches,
    "jobs": jobs,
    "forms": forms,
    "architectures": architectures,
    "attackbench": attackbench,
    "single": single,
}


def missing_figures(name: str) -> list[str]:
    """Names of the results that the page needs and that are not stored."""
    return [
        figures for figures in PAGES[name].FIGURES if not machine.figures_file(figures).is_file()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Writes the pages that are asked for and prints the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="page", help=", ".join(PAGES))
    names = parser.parse_args(arguments).pages
    for name in names:
        if name not in PAGES:
            parser.error(f"unknown page {name!r}; known: {', '.join(PAGES)}")
        if missing := missing_figures(name):
            parser.error(f"{name}: {', '.join(missing)} is not in {machine.RESULTS}")
    for name in names or [name for name in PAGES if not missing_figures(name)]:
        for path, text in PAGES[name].files().items():
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    main()
