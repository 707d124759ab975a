"""Rounds for the tests of the kernels: random slots, their results by a plan, and references.

`interpreter` sends functions of this file to a process in which the kernels run in Triton's
interpreter. On a GPU the same functions run where they are called.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from support.networks import make_network

from advcore import Layer, Network

CONFIDENCE = 1e-4
UNTOUCHED = 7.0
"""Value that dx holds before a round."""


@dataclass(frozen=True)
class Case:
    """A round of `batch` rows of random slots in any order, on a grid for `slots` rows."""

    widths: tuple[int, ...]
    activation: str = "tanh"
    batch: int = 5
    slots: int = 8
    seed: int = 0
    fused: bool = True
    precision: str = "tf32x3"
    tile: tuple[int, int, int] = (16, 32, 16)
    bad: float | None = None  # value of a pixel of the first listed slot
    masked: float | None = None  # logit of the last class
    plain: bool = False  # whether all rows want a gradient, of the exact network, with T = 0.7


def records(problems: Any) -> Any:
    """Bytes (slots, size) as records of `slots.PROBLEM`.

    They travel as bytes: copies of records lose what is between the fields.
    """
    from advcore.kernels.slots import PROBLEM

    return problems.reshape(-1).view(PROBLEM)


def make_round(case: Case) -> dict[str, Any]:
    """Arrays of a round by the names of `plan.ADDRESSES`. The problems are bytes of `records`."""
    from advcore.kernels.slots import FROM_MARGIN, MAX_SCHEDULES, MAX_STAGES, PROBLEM

    random = np.random.default_rng(case.seed)
    n, classes, slots = case.widths[0], case.widths[-1], case.slots
    stride = -(-n // 16) * 16 + 16
    x = np.full((slots, stride), np.nan, np.float32)
    x[:, :n] = random.random((slots, n))
    rows = random.permutation(slots)[: case.batch]
    listed = np.full(slots, -5, np.int32)
    listed[: case.batch] = rows
    if case.bad is not None:
        x[rows[0], 0] = case.bad
    p = np.zeros(slots, PROBLEM)
    p["class_index"] = random.integers(classes - (case.masked is not None), size=slots)
    p["rival_class"] = -1
    p["T"] = 0.7
    p["want_gradient"] = True
    p["finite"] = True
    p["prediction"] = p["runner_up"] = -3
    if not case.plain:
        p["want_gradient"] = random.random(slots) < 0.7
        p["targeted"] = random.random(slots) < 0.5
        p["record_scales"] = random.random(slots) < 0.3
        p["k"] = np.where(p["record_scales"], 0, random.choice([0, 0.4, 1], size=slots))
        p["T"] = random.choice([-1, 0, 0.7], size=slots)
        p["clean_margin"] = random.choice([0, 1], size=slots)
        p["schedule"] = random.integers(MAX_SCHEDULES, size=slots)
        p["stage"] = random.integers(MAX_STAGES, size=slots)
        for slot in np.flatnonzero(~p["targeted"]):
            others = random.permutation(np.delete(np.arange(classes), p["class_index"][slot]))
            count = random.integers(0, min(MAX_SCHEDULES, classes - 1))
            p["exclusions"][slot] = count
            p["excluded_classes"][slot, :count] = others[:count]
            if random.random() < 0.2:
                p["rival_class"][slot], p["T"][slot] = others[-1], 0
        p["temperature"] = np.where(p["T"] < 0, FROM_MARGIN.value, p["T"] > 0)
    return {
        "problems": p.view(np.uint8).reshape(slots, -1),
        "x": x,
        "dx": np.full((slots, stride), UNTOUCHED, np.float32),
        "rows": listed,
        "count": np.array([case.batch], np.int32),
        "temperatures": random.uniform(0.1, 0.5, (MAX_SCHEDULES, MAX_STAGES)).astype(np.float32),
        "scales": random.uniform(0.2, 1, (slots, len(case.widths) - 1)).astype(np.float32),
    }


def network_of(case: Case) -> Any:
    network = make_network(case.widths, case.activation, seed=case.seed)
    if case.masked is None:
        return network
    last = network.layers[-1]
    weight, bias = last.weight.copy(), last.bias.copy()
    weight[-1], bias[-1] = 0, case.masked
    return Network([*network.layers[:-1], Layer(weight, bias)])


def plan_of(case: Case, arch: int = 90) -> Any:
    from advcore.kernels.configs import Config
    from advcore.kernels.plan import Plan

    config = Config(case.fused, *case.tile, warps=4, stages=2)
    return Plan(network_of(case), case.precision, arch, config)


def run_round(case: Case, data: dict[str, Any], device: str = "cpu", plan: Any = None) -> Any:
    """The problems, dx and scales after the round, and the logits (batch, K)."""
    import torch

    plan = plan or plan_of(case)
    flat = {name: np.ascontiguousarray(array).reshape(-1) for name, array in data.items()}
    # Points and gradients lie anywhere behind `vectors`, as the solver swaps them.
    slots, stride = data["x"].shape
    place = np.random.default_rng(case.seed).permutation(2 * slots)
    both = np.empty((2 * slots, stride), np.float32)
    both[place] = np.concatenate([flat.pop("x"), flat.pop("dx")]).reshape(2 * slots, stride)
    vectors = torch.tensor(both.reshape(-1), device=device)
    problems = data["problems"].copy()
    addresses = vectors.data_ptr() + 4 * stride * place
    records(problems)["trial"] = addresses[:slots]
    records(problems)["trial_gradient"] = addresses[slots:]
    flat["problems"] = problems.reshape(-1)
    tensors = {name: torch.tensor(array, device=device) for name, array in flat.items()}
    stored = tensors.pop("scales")
    for name, size in plan.buffers(case.slots).items():
        tensors[name] = torch.full((size,), float("nan"), device=device)
    tensors["scales"][: stored.numel()] = stored
    tensors["weights"] = plan.weights(device)
    tensors["vectors"] = vectors
    plan.run(tensors, slots=slots, confidence=CONFIDENCE)
    host = {name: tensors[name].cpu().numpy() for name in ("problems", "scales", "h")}
    records(host["problems"])["trial"] = records(host["problems"])["trial_gradient"] = 0
    x, host["dx"] = np.split(vectors.cpu().numpy().reshape(2 * slots, stride)[place], 2)
    assert np.array_equal(x, data["x"], equal_nan=True)
    g = plan.geometry
    h = host["h"].reshape(case.slots, -1)[: case.batch]
    return {
        **{name: host[name].reshape(data[name].shape) for name in ("problems", "dx", "scales")},
        "logits": h[:, g.columns[-2] : g.columns[-2] + g.outs[-1]],
    }


def run_case(case: Case) -> Any:
    """`run_round` of the case's own arrays."""
    return run_round(case, make_round(case))


def run_float64(case: Case, data: dict[str, Any]) -> Any:
    """The reference in float64: problems, gradients, scales and logits of the listed rows."""
    import torch
    from advcore.kernels.fused import propagate_reference

    rows = data["rows"][: case.batch]
    problems, scales = records(data["problems"])[rows], data["scales"][rows]
    x = data["x"][rows, : case.widths[0]]
    logits, gradients = propagate_reference(
        network_of(case), x, problems, scales, data["temperatures"], CONFIDENCE, dtype=torch.float64
    )
    return {"problems": problems, "dx": gradients, "scales": scales, "logits": logits}


def assert_round(case: Case, data: dict[str, Any], result: Any, tolerance: float) -> float:
    """Compare a round with float64.

    The tolerance is relative to the largest logit, gradient and scale. Where two classes are nearer
    than the tolerance, either may be the largest. Returns the largest error of a logit, relative to
    the largest logit.
    """
    expected = run_float64(case, data)
    rows = data["rows"][: case.batch]
    problems, reference = records(result["problems"])[rows], expected["problems"]
    finite = reference["finite"]
    np.testing.assert_array_equal(problems["finite"], finite)
    end = None if case.masked is None else -1  # leaves out the masked class and the last layer
    scale = np.abs(expected["logits"][finite, :end]).max(initial=1e-3)
    np.testing.assert_allclose(
        result["logits"][finite], expected["logits"][finite], rtol=0, atol=tolerance * scale
    )
    for name in ("prediction", "runner_up"):
        each = np.arange(case.batch)
        ours, theirs = (expected["logits"][each, p[name]] for p in (problems, reference))
        near = (ours == theirs) | (np.abs(theirs - ours) <= 4 * tolerance * scale)
        assert near[finite].all(), name
    for name in ("margin", "log_odds", "required_margin", "rounding", "T"):
        bound = tolerance * (scale if name != "rounding" else 1e-5 * scale)
        np.testing.assert_allclose(
            problems[name][finite], reference[name][finite], rtol=4 * tolerance, atol=4 * bound,
            err_msg=name,
        )  # fmt: skip
    wants_gradient = finite & reference["want_gradient"]
    n = case.widths[0]
    compared = wants_gradient & (
        (problems["runner_up"] == reference["runner_up"]) | (reference["T"] > 0)
    )
    assert compared.sum() >= 0.9 * wants_gradient.sum()
    each = zip(result["dx"][rows], expected["dx"], reference["T"], strict=True)
    for row, gradient, T in itertools.compress(each, compared):
        # The dlogits of a temperature far below the logits multiply their errors.
        steep = max(1, 0.02 * scale / T) if T > 0 else 1
        atol = 4 * tolerance * steep * np.abs(gradient).max() + 1e-30
        np.testing.assert_allclose(row[:n], gradient, rtol=0, atol=atol)
    recorded = finite & reference["record_scales"]
    scales = expected["scales"][recorded, :end]
    np.testing.assert_allclose(
        result["scales"][rows][recorded, :end], scales, rtol=4 * tolerance,
        atol=4 * tolerance * scales.max(initial=0),
    )  # fmt: skip
    # All else stays: the other slots, the padding, the other gradients and scales.
    others = np.setdiff1d(np.arange(case.slots), rows)
    assert np.array_equal(result["problems"][others], data["problems"][others])
    untouched = result["dx"].copy()
    untouched[rows[wants_gradient], :n] = UNTOUCHED
    assert (untouched == UNTOUCHED).all()
    kept = np.setdiff1d(np.arange(case.slots), rows[reference["record_scales"]])
    assert np.array_equal(result["scales"][kept], data["scales"][kept])
    bad = rows[~finite]
    only_finite = data["problems"].copy()
    records(only_finite)["finite"][bad] = False
    assert np.array_equal(result["problems"][bad], only_finite[bad])
    errors = np.abs(result["logits"][finite] - expected["logits"][finite])
    return float(errors.max(initial=0) / scale)


def activations(kind: str, slope: float, z: Any, d: Any, device: str = "cpu") -> Any:
    """h and dh by the kernel, of z (rows, columns) and half-widths d (rows)."""
    import torch
    from advcore.kernels.activation import activation

    from advcore.network import ACTIVATIONS

    z, d = torch.tensor(z, device=device), torch.tensor(d, device=device)
    h, dh = torch.empty_like(z), torch.empty_like(z)
    activation[(-(-z.shape[0] // 16), -(-z.shape[1] // 64))](
        z, d, h, dh, *z.shape, KIND=ACTIVATIONS.index(kind), SLOPE=slope, BM=16, BN=64
    )
    return h.cpu().numpy(), dh.cpu().numpy()


def same_place(leaf: Any) -> Any:
    """A copy with the strides of a tensor, part of a graph; overlapping numbers get their own."""
    import torch

    if 0 in leaf.stride():
        return leaf.clone()
    size = sum((n - 1) * step for n, step in zip(leaf.shape, leaf.stride(), strict=True)) + 1
    return torch.zeros(size, dtype=leaf.dtype).as_strided(leaf.shape, leaf.stride()).copy_(leaf)


def smoothed_relu(
    h: Any, d: Any, slope: float, gradient: Any, inplace: bool, fused: bool
) -> tuple[Any, Any, bool]:
    """The smoothed ReLU of a copy of h with its gradient, and whether the kernels took it."""
    from advcore.kernels import smoothed_relu as kernels

    from advcore.oracles import smoothed_relu as oracle

    taken = []

    class Watched:
        forward, backward = kernels.forward, kernels.backward

        @staticmethod
        def takes(*tensors: Any) -> bool:
            taken.append(kernels.takes(*tensors))
            return taken[-1]

    original = oracle._kernels
    oracle._kernels = lambda tensor: Watched if fused else None
    try:
        leaf = h.detach().requires_grad_()
        source = same_place(leaf) if inplace else leaf
        out = oracle.smoothed_relu(source, d, slope, inplace)
        assert (out is source) == inplace
        out.backward(gradient)
        return out.detach(), leaf.grad, len(taken) == 2 and all(taken)
    finally:
        oracle._kernels = original


def memory(address: int, count: int, kind: Any) -> Any:
    """An array over memory that another object owns."""
    size = count * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind)


def params_for(network: Any, targeted: bool) -> Any:
    """Options of a run at their defaults."""
    from advcore.options import Options
    from advcore.solve.params import Facts, engine_params

    facts = Facts(network.inputs, network.classes, network.kind, targeted, required_margin=1e-3)
    return engine_params(Options(), facts)


def solve_in_rounds(case: Case, job: tuple[Any, ...], targeted: bool) -> Any:
    """Results of a `_core.Session` whose rounds are those of a plan, in its own memory."""
    import torch
    from advcore.kernels.slots import PROBLEM

    from advcore import _core

    params, plan = params_for(network_of(case), targeted), plan_of(case)
    slots = case.slots
    session = _core.Session(_core.Job(params, *job), slots)
    addresses = session.slot_rows()
    tensors = {
        "problems": torch.from_numpy(memory(addresses["problems"], slots, PROBLEM).view(np.uint8)),
        "vectors": torch.from_numpy(memory(addresses["vectors"], 1, np.float32)),
        "rows": torch.zeros(slots, dtype=torch.int32),
        "count": torch.zeros(1, dtype=torch.int32),
        "temperatures": torch.from_numpy(params.temperatures.copy()).reshape(-1),
        "weights": plan.weights(),
    }
    for name, size in plan.buffers(slots).items():
        tensors[name] = torch.zeros(size)
    rounds = 0
    while True:
        _, _, listed, _, _ = session.refill()
        if not len(listed):
            return session.results | {"rounds": rounds}
        tensors["rows"][: len(listed)] = torch.from_numpy(listed)
        tensors["count"][0] = len(listed)
        plan.run(tensors, slots=slots, confidence=params.confidence)
        session.advance(None)
        rounds += 1


def _interpret() -> None:
    import torch

    torch.set_num_threads(1)
    np.seterr(all="ignore")


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """A function ``call(function, *arguments)`` of a process whose kernels are interpreted."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at its import, in the child.
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=_interpret) as pool:
            pool.submit(int).result()  # the process starts with the first task
            os.environ.pop("TRITON_INTERPRET")
            yield lambda function, *arguments: pool.submit(function, *arguments).result()
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before
