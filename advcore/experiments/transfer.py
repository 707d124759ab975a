"""How often the adversarial examples of one network deceive another: the paper's tables 2 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attacks import AdversarialSet, error_percent
from .digits import gaussian_noise
from .run import Run, Trained
from .tables import Table

Published = Mapping[tuple[str, str], float]


def cross_errors(
    table: Table,
    networks: Mapping[str, Sequence[Trained]],
    sets: Mapping[str, Sequence[AdversarialSet]],
    published: Published,
    *,
    prefix: str = "",
    scale_to: float | None = None,
    clip: bool = False,
) -> None:
    """A row for each network whose adversarial examples are used, a column for each that sees them.

    `networks` and `sets` hold one entry a seed. Cells are percent of the adversarial examples found
    whose class, as the column's network sees it, is not their label.

    scale_to : root mean square that every distortion is brought to, the direction kept.
    """
    for source, found in sets.items():
        row = prefix + source
        for target, seen_by in networks.items():
            errors = [
                error_percent(network, _inputs(made, scale_to, clip), made.labels[made.success])
                for network, made in zip(seen_by, found, strict=True)
            ]
            table.add(row, target, errors, published.get((row, target)))


def noise_errors(
    table: Table,
    networks: Mapping[str, Sequence[Trained]],
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    stddev: float,
    published: Published,
    *,
    clip: bool = False,
) -> None:
    """The control: a row of the errors on the same images with Gaussian noise (0: as they are)."""
    row = f"noise {stddev:g}" if stddev else "no noise"
    row += ", clipped" if clip else ""
    noisy = gaussian_noise(images, stddev, seed=1, clip=clip)
    for name, seen_by in networks.items():
        errors = [error_percent(network, noisy, labels) for network in seen_by]
        table.add(row, name, errors, published.get((row, name)))


def published_rows(
    rows: Mapping[str, Sequence[float]], columns: Sequence[str]
) -> dict[tuple[str, str], float]:
    """The paper's matrix as {(row, column): percent}."""
    return {
        (row, column): value
        for row, values in rows.items()
        for column, value in zip(columns, values, strict=True)
    }


def mean_off_diagonal(table: Table, rows: Sequence[str], columns: Sequence[str]) -> float:
    """Mean cross error rate between different networks."""
    cells = [table.cell(row, column) for row in rows for column in columns if row != column]
    return float(np.mean([cell.mean for cell in cells if cell is not None]))


def _inputs(made: AdversarialSet, scale_to: float | None, clip: bool) -> NDArray[Any]:
    images = made.adversarial if scale_to is None else made.scaled(scale_to, clip=clip)
    return images[made.success]


def trained_rows(
    run: Run, recipes: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[str, list[Trained]]:
    """Networks by row of a table, one a seed, all trained side by side."""
    return run.trained_rows(
        {
            name: [run.recipe(model, seed, **changes) for seed in run.seeds]
            for name, (model, changes) in recipes.items()
        }
    )
