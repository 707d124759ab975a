"""Small parts of experiments that several tests use."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import torch
from matplotlib.figure import Figure as Drawing
from torch import Tensor

from advcore.experiments.parts.networks import Recipe
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Figure, Outcome, Table

SMALL = Recipe("fc10", (1e-4,), "embedded", 0, 1, 100, 0.1, "sgd")


def new_run(folder: Path, **options: Any) -> Run:
    return Run(folder, scale="tiny", dataset="embedded", **{"seeds": 1, **options})


def small_table() -> Table:
    table = Table("errors", "Errors", "In percent.", "model", {"": ".1f", "|r|": ".3f"})
    table.add("A", "test", [1.0, 2.0, 4.0], 1.64)
    table.add("A", "|r|", [0.0625], 0.06)
    table.add("B", "test", 3)
    return table


def small_outcome(name: str = "table1", *, figure: bool = True) -> Outcome:
    figures = []
    if figure:
        drawing = Drawing(figsize=(2, 1))
        drawing.subplots().plot([0, 1], [1, 0])
        figures = [Figure("line", "A line", drawing, "It *falls*.")]
    return Outcome(
        name,
        f"Title of {name}",
        "Is `a < b`?",
        tables=[small_table()],
        figures=figures,
        remarks=[
            "- First **remark**.",
            "See [there](https://example.org) <script>alert(1)</script>",
        ],
        headline=("errors", "A", "test"),
        settings={"images": 3, "radii": [1, 2], "options": {"loss": "margin"}},
    )


def counted(values: list[Any]) -> Callable[[], dict[str, Any]]:
    """A step that notes its calls in `values` and gives their number."""

    def make() -> dict[str, Any]:
        values.append(None)
        return {"number": len(values), "half": np.float32([0.5]), "name": "text"}

    return make


def value(table: Table, row: str, column: str) -> float:
    """The mean in a cell that must be there."""
    cell = table.cell(row, column)
    assert cell is not None
    return cell.mean


def matrix_of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine map's matrix without its offset, column by column."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    offset = function(torch.zeros(1, *shape, dtype=torch.float64))
    matrix: NDArray[np.float64] = (function(units) - offset).flatten(1).T.numpy()
    return matrix
