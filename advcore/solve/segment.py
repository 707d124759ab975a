"""The last look: is a point on the line from a result to its clean image adversarial?

A search that follows gradients may step over an island of another class, where activations jump or
logits oscillate. Forwards along the line find it. Networks whose margin changes evenly along the
line cost the three forwards of `COARSE`; `docs/measurements.md` has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .backends import Results
from .job import Job
from .verify import Judge, Rows, distances, taken

Floats = NDArray[np.float32]
COARSE = np.array([0.4, 0.75, 0.95], np.float32)
"""Points of every result, as shares of ``||r||``."""
MEDIUM = (np.arange(5, 96, 5) / 100).astype(np.float32)
"""Points of a result whose margin is uneven at the points before."""
FINE = (np.arange(1, 96) / 100).astype(np.float32)
"""Points of a result whose margin jumps, or that has an adversarial point on its line. Above 0.95
is what a search leaves that was told to stop early."""
UNEVEN = 0.6
"""Unevenness at `COARSE` from which `MEDIUM` is evaluated. Results with a nearer point had 0.75 and
more or had it at `COARSE`; on ReLU, GELU and sigmoid networks 0 to 12% of the results are above."""
JUMPY = 1.0
"""Unevenness at `MEDIUM` from which `FINE` is evaluated. Results of continuous networks had at most
0.68, those of a network that passes the largest units alone mostly above 2."""
BISECTIONS = 12
"""Halvings of the step of `FINE` in which the nearest adversarial point was found."""
REPEATS = 20
"""Most looks along the shortened line."""
LOGITS = 4_000_000
"""Logits of one look at most; it bounds the memory."""


@dataclass(frozen=True)
class Line:
    """The points of results (B,) on the lines to their clean images, and what counts as a find."""

    judge: Judge
    job: Job
    needed: NDArray[np.float64]  # (N,)

    def margins(self, adversarial: Floats, rows: Rows, t: Floats) -> Floats:
        """Margins (B, P) at the shares ``t`` (P,) by the network that was searched."""
        search = self.judge.search
        assert search is not None
        self.judge.queries.count(rows, len(t))
        size = max(1, min(self.judge.verifier.rows, LOGITS // (len(t) * search.classes)))
        parts = [np.empty((0, len(t)), np.float32)]
        for part in np.split(rows, range(size, len(rows), size)):
            logits = search.forward_along(taken(self.job.images, part), taken(adversarial, part), t)
            flat = logits.reshape(-1, logits.shape[-1])
            margin, _ = self.judge.margins_of_logits(flat, np.repeat(part, len(t)))
            parts.append(margin.reshape(len(part), len(t)))
        return np.concatenate(parts)

    def hits(self, margin: Floats, rows: Rows) -> NDArray[np.bool_]:
        """Which of margins (B, P) are those of an adversarial image."""
        found: NDArray[np.bool_] = margin >= self.needed[rows, None].astype(np.float32)
        return found & (margin > 0)

    def at(self, ends: Floats, rows: Rows, t: NDArray[np.float64]) -> Floats:
        """The images (B, n) at the shares ``t`` (B,) of the way to ``ends`` (B, n)."""
        clean = self.job.images[rows]
        low, high = self.job.bounds_of(rows)
        share = t.astype(np.float32)[:, None]
        return np.clip(clean + share * (ends - clean), low, high)


def shorten(
    judge: Judge, job: Job, results: Results, rows: Rows, needed: NDArray[np.float64]
) -> None:
    """Put the first adversarial point on its line in the place of each result; changes ``results``.

    ``rows`` are successes and ``needed`` (N,) their margins. A row that is changed gets the status
    ``stalled``; no bit of the others changes.
    """
    if judge.search is None:
        return
    line = Line(judge, job, needed)
    adversarial, queries = results["adversarial"], judge.queries
    rows = rows[distances(taken(adversarial, rows), taken(job.images, rows)) > 0]
    for t, limit in ((COARSE, UNEVEN), (MEDIUM, JUMPY)):
        rows = rows[queries.affordable(rows, len(t))]
        if not len(rows):
            return
        margin = line.margins(adversarial, rows, t)
        suspect = line.hits(margin, rows).any(axis=1)
        rows = rows[suspect | (unevenness(margin, results["margin"][rows], t) > limit)]
    for _ in range(REPEATS):
        rows = _shorten_once(line, results, rows)
        if not len(rows):
            return


def unevenness(margin: Floats, last: Floats, t: Floats) -> NDArray[np.float64]:
    """Largest change of the slope along the line, as a share of the steepest way to its end, (B,).

    ``margin`` (B, P) are those at ``t`` (P,), ``last`` (B,) those of the results, at 1.
    """
    t = np.append(t, np.float32(1))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        values = np.column_stack([margin, last]).astype(np.float64)
        slope = np.diff(values, axis=1) / np.diff(t)
        steepest = (np.abs(values[:, :-1]) / (1 - t[:-1])).max(axis=1)
        uneven: NDArray[np.float64] = np.abs(np.diff(slope, axis=1)).max(axis=1) / np.maximum(
            steepest, 1e-30
        )
    uneven[np.isnan(uneven)] = np.inf
    return uneven


def _shorten_once(line: Line, results: Results, rows: Rows) -> Rows:
    """The rows (of ``rows``) for which a nearer point was found and taken."""
    judge, adversarial, images = line.judge, results["adversarial"], line.job.images
    rows = rows[judge.queries.affordable(rows, len(FINE) + BISECTIONS + 1)]
    if not len(rows):
        return rows
    hits = line.hits(line.margins(adversarial, rows, FINE), rows)
    rows, first = rows[hits.any(axis=1)], hits.argmax(axis=1)[hits.any(axis=1)]
    ends = adversarial[rows]
    high = FINE[first].astype(np.float64)
    low = np.where(first > 0, FINE[np.maximum(first, 1) - 1].astype(np.float64), 0.0)
    taken = np.zeros(len(rows), bool)
    for bisection in range(BISECTIONS + 1):
        t = high if bisection == 0 else (low + high) / 2
        live = np.arange(len(rows)) if bisection == 0 else np.flatnonzero(taken)
        if not len(live):
            break
        x = line.at(ends[live], rows[live], t[live])
        margin, prediction = judge.margins(x, rows[live])
        good = judge.accepts(margin, prediction, rows[live], line.needed[rows[live]])
        good &= (x != images[rows[live]]).any(axis=1)  # the search has judged the clean image
        chosen, changed = live[good], rows[live[good]]
        adversarial[changed] = x[good]
        results["margin"][changed], results["prediction"][changed] = margin[good], prediction[good]
        converged = changed[results["status"][changed] == _core.Status.converged]
        results["status"][converged] = _core.Status.stalled
        taken[chosen], high[chosen] = True, t[chosen]
        low[live[~good]] = t[live[~good]]
    return rows[taken]
