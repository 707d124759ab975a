"""The exact minimum of the distortion for affine classifiers, for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy.optimize")
from scipy import optimize


class Undecided(AssertionError):
    """Too near to a problem without an answer for float64."""


def nearest(a: Any, b: Any, low: Any, high: Any) -> Any:
    """Smallest r with ``a @ r + b >= 0`` and ``low <= r <= high``, float64; None: there is none.

    Through the dual of a growing set of constraints, in which the box costs nothing:
    r = clip(a' dual, low, high). The duality gap is checked, so an answer is the minimum; None
    comes with multipliers of the constraints that no r in the box can meet (Farkas). Undecided:
    neither was reached.
    """
    scale = np.linalg.norm(a, axis=1)
    a, b = a / scale[:, None], b / scale
    rows, dual, r = np.empty(0, int), np.empty(0), np.clip(np.zeros(a.shape[1]), low, high)
    for _ in range(200):
        slack = a @ r + b
        slack[rows] = np.inf
        worst = np.argsort(slack)[:5]
        worst = worst[slack[worst] < -1e-10]
        if not len(worst):
            return r
        rows, dual = np.append(rows, worst), np.append(dual, np.zeros(len(worst)))
        solution = _solve(a[rows], b[rows], low, high, dual)
        if solution is None:
            return None
        r, dual = solution
        rows, dual = rows[dual > 0], dual[dual > 0]
    raise Undecided("no convergence")


def _solve(a: Any, b: Any, low: Any, high: Any, dual: Any) -> Any:
    """(r, dual) of the problem with all of a few constraints, of rows of length one; or None.

    Newton's method on phi(dual) = max over r in the box of dual'(a r + b) - r'r / 2, convex with
    continuous gradient a r + b, subject to dual >= 0; each step is a small quadratic program.
    """

    def at(dual: Any) -> tuple[Any, Any, Any]:
        y = a.T @ dual
        r = np.clip(y, low, high)
        return r, a @ r + b, y @ r + dual @ b - r @ r / 2

    r, slack, value = at(dual)
    for _ in range(300):
        if np.minimum(slack, dual).max(initial=0) < 1e-11 and slack.min() > -1e-11:
            # The box's multipliers are in y = a' dual, so value is minus the dual's objective.
            assert abs(r @ r / 2 + value) <= 1e-9 * (r @ r) + 1e-13
            return r, dual
        y = a.T @ dual
        reach = np.where(y > 0, high, np.where(y < 0, low, 0.0))  # the most of y'r in the box
        if y @ reach + dual @ b < -1e-10 * dual.sum():
            return None
        free = (y >= low) & (y <= high) & (low < high)
        hessian = a[:, free] @ a[:, free].T + 1e-11 * np.eye(len(a))
        root = np.linalg.cholesky(hessian).T
        # The minimum over next >= 0 of the quadratic model is a problem of least squares.
        goal = root @ dual - np.linalg.solve(root.T, slack)
        step = optimize.nnls(root, goal, maxiter=100 * len(a))[0] - dual
        length = 1.0
        while length > 1e-12:
            trial = at(np.maximum(dual + length * step, 0))
            if trial[2] <= value + 1e-4 * length * (slack @ step) + 1e-15 * (1 + abs(value)):
                break
            length *= 0.5
        dual = np.maximum(dual + length * step, 0)
        r, slack, value = trial
    raise Undecided("no convergence")
