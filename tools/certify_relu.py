"""Certified smallest distortions of small ReLU networks, for tests/solve/test_certified.py.

    python tools/certify_relu.py tests/support/certified_relu.safetensors

The program trains networks on digits averaged over 4x4 pixels. Then it solves targeted problems on
the package's digits by branch and bound. It needs torch, piqp and clarabel, and data.mnist for the
networks trained on all of MNIST. Problems that the file holds already are not solved again, so the
program can be stopped and started again.

The problem is min ||x - x0|| subject to z_t(x) - z_j(x) >= CONFIDENCE for all j != t and
0 <= x <= 1. The logits z are those of the stored float32 weights in exact arithmetic. CONFIDENCE is
the engine's default, which holds for its float32 logits. Their rounding of 1e-6 changes a
distortion by 1e-6.

Each unit is on, off, or relaxed to the triangle over its bounds, so that a node of the search is a
convex quadratic program. Its value is not taken from a solver. The multipliers that the solver
returns (PIQP, or Clarabel where PIQP does not converge) are put into the Lagrangian, whose minimum
over the box is computed in float64. That is a lower bound for any multipliers. So a wrong solution
or a wrong claim of infeasibility makes the search longer, but never the certificate wrong. A node
without a point is closed only by multipliers that prove its bound. Upper bounds are points whose
margin a float64 forward confirms.
"""

from __future__ import annotations

import argparse
import heapq
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from relu_programs import (
    CONFIDENCE,
    OFF,
    ON,
    OPEN,
    Array,
    Phases,
    Problem,
    Program,
    by_clarabel,
    by_piqp,
)

import advcore
from advcore import Network, data
from advcore.models import training
from advcore.network import safetensors as tensorfile

VERSION = "1"
SEED = 0
GAP = 5e-6
"""Relative gap between the bounds of the distortion at which a search ends."""
SMALLEST = 0.02
"""Smallest distortion that is certified. Below it float32 logits round by more than the gap."""
HELD_OUT = 200
"""Number of the package's first digits, which are attacked. The other 800 train a network."""


def pooled(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average digits (N, 784) over 4x4 pixels to (N, 49)."""
    blocks = images.astype(np.float64).reshape(-1, 7, 4, 7, 4)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(-1, 49), np.float32)


@dataclass
class Task:
    """A network to train, and the problems to try on it.

    problems : number of problems.
    full : whether it is trained on all of MNIST with less decay, which gives larger weights and
        more local minima.
    """

    sizes: tuple[int, ...]
    problems: int
    full: bool = False

    @property
    def name(self) -> str:
        """The name of the network in the file."""
        return "-".join(map(str, self.sizes)) + (" mnist" if self.full else "")

    def train(self) -> Network:
        """Train the network and print its error."""
        torch.manual_seed(SEED)
        modules: list[torch.nn.Module] = []
        for i in range(len(self.sizes) - 1):
            modules += [torch.nn.Linear(self.sizes[i], self.sizes[i + 1]), torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1])
        digits, labels = data.embedded_digits()
        images = pooled(digits)
        if self.full:
            all_digits, all_labels = data.mnist("train")
            training.train(
                model,
                pooled(all_digits),
                all_labels,
                epochs=15,
                learning_rate=5e-3,
                weight_decay=1e-4,
                seed=SEED,
            )
        else:
            training.train(
                model,
                images[HELD_OUT:],
                labels[HELD_OUT:],
                epochs=80,
                batch_size=64,
                weight_decay=[5e-5 * width for width in self.sizes[1:]],
                seed=SEED,
            )
        error = training.error_rate(model, images[:HELD_OUT], labels[:HELD_OUT])
        print(f"{self.name}: error {error:.1%}", flush=True)
        return Network.from_torch(model, (self.sizes[0],))


TASKS = (
    Task((49, 16, 16, 10), 75),
    Task((49, 32, 32, 10), 60),
    Task((49, 16, 16, 10), 70, full=True),
    Task((49, 32, 32, 10), 60, full=True),
)


@dataclass
class Node:
    """One node of the search.

    phases : phases of the units.
    bound : proven lower bound of ||r||^2 / 2.
    x : point of the relaxation.
    scores : score of each unit for branching, -1 for units that are not relaxed.
    """

    phases: Phases
    bound: float
    x: Array
    scores: Array


class Search:
    """Best-first branch and bound, with the bounds ``upper`` and ``lower`` of ||r||^2 / 2."""

    def __init__(self, problem: Problem, start: Array) -> None:
        self.problem = problem
        self.x = start
        self.upper = float(((start - problem.x0) ** 2).sum() / 2)
        self.lower = 0.0
        self.nodes = self.second_solves = 0
        self.regions: set[bytes] = set()

    @property
    def enough(self) -> float:
        """The bound above which a node has no point that is better than `x` by more than GAP."""
        return self.upper * (1 - GAP) ** 2

    def relax(self, phases: Phases, parent: float) -> tuple[Node | None, Program | None]:
        """Return a node with its proven bound, or None if no point in it is better than `x`."""
        program = self.problem.program(phases, float(np.sqrt(2 * self.upper)))
        if program is None:
            return None, None
        best_bound, point, weight = (
            parent,
            np.full(len(program.low), np.nan),
            np.zeros(len(program.g)),
        )
        for solve in (by_piqp, by_clarabel):
            v, multipliers = solve(self.problem.x0, program)
            if not (np.isfinite(v).all() and np.isfinite(multipliers).all()):
                continue
            multipliers = np.maximum(multipliers, 0)
            bound = self.problem.bound(program, multipliers)
            value = ((v[: self.problem.n] - self.problem.x0) ** 2).sum() / 2
            solved = bound >= value - 0.05 * GAP * self.upper
            if not solved:  # these may be a ray, which proves more the longer it is
                for scale in 10.0 ** np.arange(1, 7):
                    bound = max(bound, self.problem.bound(program, scale * multipliers))
            point, weight, best_bound = v, multipliers, max(best_bound, bound)
            if solved or best_bound >= self.enough:
                break
            self.second_solves += 1
        if best_bound >= self.enough:
            return None, program
        n, count = self.problem.n, len(program.units)
        scores = np.full(sum(len(p) for p in phases), -1.0)
        if np.isfinite(point).all() and count:
            upper = program.upper
            # The score is the distance of a unit from its ReLU, times its triangle's multiplier.
            slack = point[n:] - np.maximum(self.inputs(program, point), 0)
            scores[program.units] = np.maximum(slack, 0) * (weight[upper] + 1e-3 * weight.max())
        elif count:
            scores[program.units] = 0
        return Node(phases, best_bound, point[:n], scores), program

    def inputs(self, program: Program, v: Array) -> Array:
        """Return the inputs of the relaxed units' ReLUs, from their triangles' lower sides."""
        residuals = []
        for rows in np.split(program.upper, [int((program.units < len(self.problem.b[0])).sum())]):
            lower = rows - len(rows)
            residuals.append((program.G @ v - program.g)[lower])
        residual = np.concatenate(residuals)  # Z v - h + zc
        return np.asarray(residual + v[self.problem.n :])

    def improve(self, x: Array, phases: Phases) -> None:
        """Look for a better point with these phases, and with those at `x` for open units."""
        own_phases = self.problem.phases_at(np.clip(x, 0, 1))
        phases = (
            np.where(phases[0] == OPEN, own_phases[0], phases[0]),
            np.where(phases[1] == OPEN, own_phases[1], phases[1]),
        )
        key = phases[0].tobytes() + phases[1].tobytes()
        if key in self.regions:
            return
        self.regions.add(key)
        program = self.problem.program(phases, float(np.sqrt(2 * self.upper)))
        if program is None:
            return
        x0 = self.problem.x0
        for reserve in (1e-9, 1e-8, 1e-7):  # margin in reserve for the solver's tolerance
            program.g[-len(self.problem.d) :] -= reserve
            v, _ = by_piqp(x0, program)
            point = np.clip(v[: self.problem.n], 0, 1)
            if np.isfinite(point).all() and self.problem.margin(point) >= 0:
                value = float(((point - x0) ** 2).sum() / 2)
                if value < self.upper:
                    self.upper, self.x = value, point
                return

    def run(self, max_nodes: int, seconds: float) -> bool:
        """Run the search, and return whether the gap was closed."""
        end = time.perf_counter() + seconds
        sizes = [len(b) for b in self.problem.b[:2]]
        empty = (np.full(sizes[0], OPEN, np.int8), np.full(sizes[1], OPEN, np.int8))
        self.improve(self.x, empty)
        root, _ = self.relax(empty, 0.0)
        heap: list[tuple[float, int, Node]] = []
        closed = self.upper  # the smallest bound of a closed node
        if root is not None:
            heap.append((root.bound, 0, root))
        serial = 1
        while heap and heap[0][0] < self.enough:
            if self.nodes >= max_nodes or time.perf_counter() > end:
                break
            node = heapq.heappop(heap)[2]
            self.nodes += 1
            unit = int(node.scores.argmax())
            leaf = node.scores[unit] < 0
            if np.isfinite(node.x).all():
                self.improve(node.x, node.phases if leaf else empty)
            if leaf:  # the bound is its minimum, or below it
                closed = min(closed, node.bound)
                continue
            for phase in (ON, OFF):
                phases = (node.phases[0].copy(), node.phases[1].copy())
                if unit < sizes[0]:
                    phases[0][unit] = phase
                else:
                    phases[1][unit - sizes[0]] = phase
                child, _ = self.relax(phases, node.bound)
                if child is not None:
                    heapq.heappush(heap, (child.bound, serial, child))
                    serial += 1
        least = min([self.enough, closed] + [entry[0] for entry in heap])
        self.lower = max(least, 0.0)
        return self.lower >= self.enough * (1 - 1e-12)


def outward(value: float, direction: float) -> np.float32:
    """Round to float32 in the given direction."""
    rounded = np.float32(value)
    inward = rounded > value if direction < 0 else rounded < value
    return np.float32(np.nextafter(rounded, np.float32(direction))) if inward else rounded


def certify(task: Task, network: Network, row: int, image: Array, target: int, limits: Any) -> Any:
    """Return (lower, upper) of one problem, or None where it was not solved."""
    begin = time.perf_counter()
    images = image.astype(np.float32)[None]
    attack = advcore.minimize_distortion(network, images, [target], effort="thorough")
    problem = Problem(network, image, target)
    start = attack.adversarial[0].astype(np.float64)
    if not attack.success[0] or attack.distortion[0] < SMALLEST:
        print(f"{task.name} {row}: distortion {attack.distortion[0]:.6f}, left out", flush=True)
        return None
    search = Search(problem, start)
    closed = search.run(limits.nodes, limits.seconds)
    upper, lower = np.sqrt(2 * search.upper), np.sqrt(2 * search.lower)
    print(
        f"{task.name} {row}: attack {attack.distortion[0]:.6f} upper {upper:.6f} lower "
        f"{lower:.6f} {'' if closed else 'OPEN '}nodes {search.nodes} second solver "
        f"{search.second_solves} {time.perf_counter() - begin:.1f} s",
        flush=True,
    )
    # The attack's float32 forward may have accepted a point that the exact one does not.
    return (lower, upper) if closed and problem.margin(search.x) >= 0 else None


def main() -> None:
    """Certify all tasks, and write the file after every problem."""
    parser = argparse.ArgumentParser(description="Certified distortions of small ReLU networks.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--nodes", type=int, default=20_000, help="limit of each problem")
    parser.add_argument("--seconds", type=float, default=120, help="limit of each problem")
    limits = parser.parse_args()
    torch.set_num_threads(1)
    digits, labels = data.embedded_digits()
    images = pooled(digits)
    targets = data.random_targets(labels, classes=10, seed=SEED)
    tensors, notes = tensorfile.read_tensors(limits.path) if limits.path.exists() else ({}, {})
    notes |= {"program": f"tools/certify_relu.py, version {VERSION}, seed {SEED}"}
    notes |= {"confidence": str(CONFIDENCE), "gap": str(GAP)}
    for task in TASKS:
        name = task.name
        if f"{name}.weight0" in tensors:
            kinds = ("relu", "relu", "identity")
            network = Network(
                [
                    advcore.Layer(tensors[f"{name}.weight{i}"], tensors[f"{name}.bias{i}"], kind)
                    for i, kind in enumerate(kinds)
                ]
            )
        else:
            network = task.train()
        for i, layer in enumerate(network.dense_layers):
            tensors[f"{name}.weight{i}"], tensors[f"{name}.bias{i}"] = layer.weight, layer.bias
        rows = tensors.get(f"{name}.row", np.empty(0, np.float32)).astype(int)
        for row in range(task.problems):
            target = int(targets[row])
            if row in rows or network.forward(images[row : row + 1]).argmax() == target:
                continue
            bounds = certify(task, network, row, images[row].astype(np.float64), target, limits)
            if bounds is None:
                continue
            entry = {
                "row": np.float32(row),
                "target": np.float32(target),
                "image": images[row],
                "lower": outward(float(bounds[0]), -np.inf),
                "upper": outward(float(bounds[1]), np.inf),
            }
            for key, value in entry.items():
                previous = tensors.get(f"{name}.{key}", np.empty((0, *np.shape(value)), np.float32))
                tensors[f"{name}.{key}"] = np.concatenate([previous, np.asarray(value)[None]])
            limits.path.parent.mkdir(parents=True, exist_ok=True)
            tensorfile.write_tensors(limits.path, tensors, notes)


if __name__ == "__main__":
    main()
