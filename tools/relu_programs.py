"""Relaxations of a small ReLU network as quadratic programs, for tools/certify_relu.py.

`Problem` is the search for the smallest change of one image. Each unit of its network is on, off,
or relaxed to the triangle over its bounds, so that a choice of phases is a convex quadratic
program. Two solvers return a point and multipliers of a program, neither of which is trusted.
`Problem.bound` computes a lower bound that holds for any multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import clarabel
import numpy as np
import piqp
from numpy.typing import NDArray
from scipy import sparse

from advcore import Network

Array = NDArray[np.float64]
Phases = tuple[NDArray[np.int8], NDArray[np.int8]]
"""The phases ON, OFF or OPEN of the units of both layers."""

CONFIDENCE = 1e-4
"""The margin that an adversarial image needs, in logits. It is the engine's default."""
ON, OFF, OPEN = 1, -1, 0
GRID = np.array([0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0])
"""Multipliers of the ball that `Problem.largest` tries, as shares of the one without a box."""


@dataclass
class Program:
    """The program min ||x - x0||^2 / 2 subject to G v <= g, with v = (x, h) in [low, high].

    units : the units that have a variable h, numbered over both layers.
    upper : rows of G that hold the upper sides of their triangles.
    """

    G: Array
    g: Array
    low: Array
    high: Array
    units: NDArray[np.intp]
    upper: NDArray[np.intp]


class Problem:
    """The problem of one image and target, with bounds of the units, relaxations and margin."""

    def __init__(self, network: Network, x0: Array, target: int) -> None:
        self.W = [layer.weight.astype(np.float64) for layer in network.dense_layers]
        self.b = [layer.bias.astype(np.float64) for layer in network.dense_layers]
        others = np.delete(np.arange(len(self.b[2])), target)
        self.D = self.W[2][target] - self.W[2][others]
        self.d = self.b[2][target] - self.b[2][others] - CONFIDENCE
        self.x0, self.n = x0, len(x0)
        self.radius, self.first_bounds = -1.0, (x0, x0)  # first layer's bounds at that radius

    def margin(self, x: Array) -> float:
        """Return the exact margin minus CONFIDENCE."""
        h = np.maximum(self.W[0] @ x + self.b[0], 0)
        return float((self.D @ np.maximum(self.W[1] @ h + self.b[1], 0) + self.d).min())

    def phases_at(self, x: Array) -> Phases:
        """Return the phases of the units at `x`."""
        z1 = self.W[0] @ x + self.b[0]
        z2 = self.W[1] @ np.maximum(z1, 0) + self.b[1]
        return np.where(z1 > 0, ON, OFF).astype(np.int8), np.where(z2 > 0, ON, OFF).astype(np.int8)

    def largest(self, A: Array, c: Array, radius: float) -> Array:
        """Return upper bounds of ``A @ x + c`` over the box and the ball of `radius` around x0.

        For every mu >= 0, max a'x <= mu R^2 / 2 + max over the box of a'x - mu ||x - x0||^2 / 2.
        """
        low, high = np.maximum(-self.x0, -radius), np.minimum(1 - self.x0, radius)
        mu = GRID[:, None] * np.linalg.norm(A, axis=1) / radius
        with np.errstate(divide="ignore", invalid="ignore"):
            r = np.where(mu[..., None] > 0, A / mu[..., None], np.where(A > 0, high, low))
        r = np.clip(np.nan_to_num(r), low, high)
        value = (A * r).sum(axis=2) + mu / 2 * (radius**2 - (r * r).sum(axis=2))
        bound: Array = value.min(axis=0) + A @ self.x0 + c
        return bound + 1e-12 * (1 + np.abs(bound))

    def unit_bounds(self, phases: Phases, radius: float) -> tuple[Array, Array, Array, Array]:
        """Return the bounds l1, u1, l2, u2 of the inputs of both layers' ReLUs.

        They hold where the units have these phases and ||r|| <= radius.
        """
        W1, W2 = self.W[0], self.W[1]
        if radius != self.radius:
            self.radius = radius
            low, high = -self.largest(-W1, -self.b[0], radius), self.largest(W1, self.b[0], radius)
            self.first_bounds = low, high
        l1, u1 = self.first_bounds
        on, off = phases[0] == ON, phases[0] == OFF
        l1, u1 = np.where(on, np.maximum(l1, 0), l1), np.where(off, np.minimum(u1, 0), u1)
        always, never = l1 >= 0, u1 <= 0
        plus, minus = np.maximum(W2, 0), np.minimum(W2, 0)
        lh, uh = np.maximum(l1, 0), np.maximum(u1, 0)
        l2 = plus @ lh + minus @ uh + self.b[1]
        u2 = plus @ uh + minus @ lh + self.b[1]
        # On [l1, u1], flat z <= relu(z) <= slope z + lift; these give bounds over box and ball.
        relaxed = ~always & ~never
        slope = np.where(always, 1.0, 0.0)
        slope[relaxed] = u1[relaxed] / (u1[relaxed] - l1[relaxed])
        lift = np.where(relaxed, -slope * l1, 0.0)
        flat = np.where(relaxed, (u1 > -l1).astype(float), slope)
        upper_matrix, lower_matrix = plus * slope + minus * flat, plus * flat + minus * slope
        top = upper_matrix @ self.b[0] + plus @ lift + self.b[1]
        bottom = lower_matrix @ self.b[0] + minus @ lift + self.b[1]
        u2 = np.minimum(u2, self.largest(upper_matrix @ W1, top, radius))
        l2 = np.maximum(l2, -self.largest(-lower_matrix @ W1, -bottom, radius))
        return l1, u1, l2, u2

    def program(self, phases: Phases, radius: float) -> Program | None:
        """Return the relaxation, or None where the bounds contradict the phases."""
        l1, u1, l2, u2 = self.unit_bounds(phases, radius)
        fixed = []
        for layer_phases, low, high in zip(phases, (l1, l2), (u1, u2), strict=True):
            if ((layer_phases == ON) & (high < 0)).any() or (
                (layer_phases == OFF) & (low > 0)
            ).any():
                return None
            stable = np.where(low >= 0, ON, np.where(high <= 0, OFF, OPEN))
            fixed.append(np.where(layer_phases == OPEN, stable, layer_phases))
        open1, open2 = np.flatnonzero(fixed[0] == OPEN), np.flatnonzero(fixed[1] == OPEN)
        n, size = self.n, self.n + len(open1) + len(open2)
        rows, limits, upper = [], [], np.empty(0, int)

        # The inputs Z v + zc and the outputs E v + ec of a layer's ReLUs are affine in v.
        Z, zc = np.zeros((len(l1), size)), self.b[0]
        Z[:, :n] = self.W[0]
        offset, count = n, 0
        for layer, (opened, low, high) in enumerate(((open1, l1, u1), (open2, l2, u2))):
            on = fixed[layer] == ON
            E, ec = np.where(on[:, None], Z, 0.0), np.where(on, zc, 0.0)
            E[opened, offset + np.arange(len(opened))] = 1.0
            a = high[opened] / (high[opened] - low[opened])
            outputs, aZ = E[opened], a[:, None] * Z[opened]
            forced = np.flatnonzero(phases[layer] != OPEN)
            sign = -phases[layer][forced].astype(float)
            rows += [Z[opened] - outputs, outputs - aZ, sign[:, None] * Z[forced]]
            limits += [-zc[opened], a * (zc[opened] - low[opened]), -sign * zc[forced]]
            upper = np.append(upper, count + len(opened) + np.arange(len(opened)))
            count += 2 * len(opened) + len(forced)
            offset += len(opened)
            if layer == 0:
                Z, zc = self.W[1] @ E, self.W[1] @ ec + self.b[1]
        rows.append(-self.D @ E)
        limits.append(self.D @ ec + self.d)
        low = np.concatenate([np.maximum(0, self.x0 - radius), np.zeros(size - n)])
        high = np.concatenate([np.minimum(1, self.x0 + radius), u1[open1], u2[open2]])
        units = np.append(open1, len(l1) + open2)
        return Program(np.concatenate(rows), np.concatenate(limits), low, high, units, upper)

    def bound(self, program: Program, multipliers: Array) -> float:
        """Return the minimum of the Lagrangian over the box.

        For multipliers >= 0 it is a lower bound of the program's minimum.
        """
        q = program.G.T @ multipliers
        x = np.clip(self.x0 - q[: self.n], program.low[: self.n], program.high[: self.n])
        rest = np.minimum(q[self.n :] * program.high[self.n :], 0).sum()
        value = ((x - self.x0) ** 2).sum() / 2 + q[: self.n] @ x + rest - multipliers @ program.g
        # 1e-14 times the size of the terms is more than their rounding.
        size = np.abs(multipliers) @ (np.abs(program.g) + np.abs(program.G).sum(axis=1))
        return float(value - 1e-14 * size)


def by_piqp(x0: Array, program: Program) -> tuple[Array, Array]:
    """Return point and multipliers of a program, neither of which is trusted."""
    size, n = len(program.low), len(x0)
    solver = piqp.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-9
    solver.settings.max_iter = 100
    P = np.asfortranarray(np.diag(np.append(np.ones(n), np.zeros(size - n))))
    c = np.append(-x0, np.zeros(size - n))
    G = np.asfortranarray(program.G)
    free = np.full(len(program.g), -np.inf)
    solver.setup(P, c, None, None, G, free, program.g, program.low, program.high)
    solver.solve()
    return np.array(solver.result.x), np.array(solver.result.z_u)


def by_clarabel(x0: Array, program: Program) -> tuple[Array, Array]:
    """Return the same as `by_piqp`.

    If a program is infeasible, its multipliers are a ray that proves it.
    """
    size, n, count = len(program.low), len(x0), len(program.g)
    P = sparse.diags(np.append(np.ones(n), np.zeros(size - n)), format="csc")
    G = sparse.csc_matrix(np.concatenate([program.G, np.eye(size), -np.eye(size)]))
    g = np.concatenate([program.g, program.high, -program.low])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    c = np.append(-x0, np.zeros(size - n))
    cones = [clarabel.NonnegativeConeT(len(g))]
    solution = clarabel.DefaultSolver(P, c, G, g, cones, settings).solve()
    return np.array(solution.x), np.array(solution.z)[:count]
