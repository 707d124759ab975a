"""Queries, the forwards and backwards of the model for one image, and the budget of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .backends import Results

LAST_QUERIES = 2
"""Queries of an image that are kept back from the search: the forward that verifies its result, and
one of its clean image where that fails."""
NOISE_QUERIES = 20
"""Queries kept back for the rounding at a result, where bounds are own or wide; as many count."""
LEAST_SEARCH = 7
"""Queries that a budget must leave for the search."""


@dataclass
class Queries:
    """What images were evaluated for outside the search, and the budget of each image.

    Attributes
    ----------
    forwards : (N,) int32
        Forwards of each image outside the search.
    budget : int, optional
        Most queries of an image. None: there is no limit.
    searched : (N,) int32
        Queries of the search, which `end_search` sets.
    """

    forwards: NDArray[np.int32]
    budget: int | None = None

    def __post_init__(self) -> None:
        self.searched = np.zeros_like(self.forwards)

    @staticmethod
    def unlimited(count: int) -> Queries:
        """The queries of ``count`` images without a budget."""
        return Queries(np.zeros(count, np.int32))

    def end_search(self, results: Results) -> None:
        """Take the queries of the search from its results."""
        self.searched = 2 * results["evaluations"] + results["forwards"]

    def count(self, rows: NDArray[np.intp], forwards: int = 1) -> None:
        """Count ``forwards`` for each entry of ``rows`` (B,), in which images may repeat."""
        np.add.at(self.forwards, rows, forwards)

    def affordable(
        self, rows: NDArray[np.intp], forwards: int | NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Whether the budget allows ``forwards`` more, for each of the rows (B,)."""
        if self.budget is None:
            return np.ones(len(rows), bool)
        left: NDArray[np.int32] = self.budget - self.searched[rows] - self.forwards[rows]
        return left >= forwards

    def total(self, results: Results) -> NDArray[np.int32]:
        """All queries of each image, (N,)."""
        everything = 2 * results["evaluations"] + results["forwards"] + self.forwards
        return everything.astype(np.int32)
