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
    """Add a row for each network that was attacked, with the errors of all networks in columns.

    A cell is the percentage of the adversarial examples that the column's network does not classify
    as their label. Failed attacks are left out.

    networks, sets : the networks and their adversarial sets by row, one entry a seed.
    published : the paper's percentages by row and column.
    prefix : text before the name in the row.
    scale_to : root mean square to which every distortion is scaled.
    clip : whether scaled examples are cut to [0, 1].
    """
    for source, source_sets in sets.items():
        row = prefix + source
        for target, seen_by in networks.items():
            errors = [
                error_percent(
                    network, _inputs(examples, scale_to, clip), examples.labels[examples.success]
                )
                for network, examples in zip(seen_by, source_sets, strict=True)
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
    """Add a row of the errors on the images with Gaussian noise, or without if `stddev` is 0."""
    row = f"noise {stddev:g}" if stddev else "no noise"
    row += ", clipped" if clip else ""
    noisy = gaussian_noise(images, stddev, seed=1, clip=clip)
    for name, seen_by in networks.items():
        errors = [error_percent(network, noisy, labels) for network in seen_by]
        table.add(row, name, errors, published.get((row, name)))


def published_rows(
    rows: Mapping[str, Sequence[float]], columns: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Convert the paper's matrix to {(row, column): percent}."""
    return {
        (row, column): value
        for row, values in rows.items()
        for column, value in zip(columns, values, strict=True)
    }


def mean_off_diagonal(table: Table, rows: Sequence[str], columns: Sequence[str]) -> float:
    """Return the mean cross error rate between different networks."""
    cells = [table.cell(row, column) for row in rows for column in columns if row != column]
    return float(np.mean([cell.mean for cell in cells if cell is not None]))


def _inputs(examples: AdversarialSet, scale_to: float | None, clip: bool) -> NDArray[Any]:
    images = examples.adversarial if scale_to is None else examples.scaled(scale_to, clip=clip)
    return images[examples.success]


def trained_rows(
    run: Run, recipes: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[str, list[Trained]]:
    """Train the networks of each row of a table, one a seed, all together."""
    return run.trained_rows(
        {
            name: [run.recipe(model, seed, **changes) for seed in run.seeds]
            for name, (model, changes) in recipes.items()
        }
    )
