"""The kernels in Triton's interpreter against float64, and their references against the engine.

The interpreter multiplies in float32 whatever the precision: how far TF32 rounds is tried on
hardware only, in test_kernels_gpu.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.kernel_cases import (
    CONFIDENCE,
    Case,
    activations,
    assert_round,
    interpreter,
    make_round,
    memory,
    network_of,
    params_for,
    records,
    run_case,
    run_round,
    solve_in_rounds,
)

from advcore import _core
from advcore.network import KINKED, SATURATING

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import advcore.kernels  # noqa: E402
from advcore.kernels.activation import KERNEL_ACTIVATIONS, activation_reference  # noqa: E402
from advcore.kernels.fused import propagate_reference  # noqa: E402
from advcore.kernels.margin_loss import margin_loss_reference  # noqa: E402
from advcore.kernels.precision import PRECISIONS, product, split  # noqa: E402
from advcore.kernels.slots import PROBLEM  # noqa: E402

Call = Callable[..., Any]
TOLERANCE = 2e-6
"""Rounding of sums in float32, relative to the largest."""


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    with interpreter() as function:
        yield function


def test_every_kernel_has_its_reference() -> None:
    for name in advcore.kernels.KERNELS:
        kernel, reference = advcore.kernels.kernel(name)
        assert kernel.__name__ == name
        assert callable(reference)
    with pytest.raises(ValueError, match="kernel must be one of"):
        advcore.kernels.kernel("dense")


@pytest.mark.parametrize("kind", KERNEL_ACTIVATIONS)
def test_activation(call: Call, kind: str) -> None:
    z = np.linspace(-12, 12, 481, dtype=np.float32)
    z = np.concatenate([z, [0, 1e-6, -1e-6, 80, -80, np.nan]]).astype(np.float32)
    d = np.array([0, 0.3, 2, 0, 50], np.float32)
    h, dh = call(activations, kind, 0.1, np.tile(z, (len(d), 1)), d)
    expected = activation_reference(
        torch.tensor(z).double().expand(len(d), -1), torch.tensor(d), kind, 0.1
    )
    for result, exact in zip((h, dh), expected, strict=True):
        np.testing.assert_allclose(result[:, :-1], exact[:, :-1], rtol=4e-6, atol=1e-6)
    assert np.isnan(h[:, -1]).all()


@pytest.mark.parametrize("kind", [*KINKED, *SATURATING])
def test_derivatives_of_the_smoothed_forms(kind: str) -> None:
    z = torch.linspace(-3, 3, 97, dtype=torch.float64, requires_grad=True)
    h, dh = activation_reference(z[None], torch.tensor([0.7]), kind, 0.1)
    h.sum().backward()
    assert torch.allclose(z.grad, dh[0], atol=1e-9)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KERNEL_ACTIVATIONS)
def test_a_round_of_each_activation(call: Call, kind: str, fused: bool) -> None:
    case = Case((17, 20, 12, 5), kind, batch=33, slots=40, fused=fused)
    assert_round(case, make_round(case), call(run_case, case), TOLERANCE)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("widths", "batch"),
    [
        ((1, 2), 5), ((5, 3), 1), ((5, 1, 3, 2), 5), ((17, 130, 7), 5), ((48, 3, 100, 4), 33),
        ((48, 20, 20, 20, 20, 3), 5), ((16, 20, 70), 5), ((5, 12, 300), 5), ((784, 20, 10), 5),
    ],
)  # fmt: skip
def test_a_round_of_any_shape(call: Call, widths: tuple[int, ...], batch: int, fused: bool) -> None:
    for seed, kind in enumerate(("relu", "sigmoid")):
        case = Case(widths, kind, batch=batch, slots=batch + 3, seed=seed, fused=fused)
        assert_round(case, make_round(case), call(run_case, case), TOLERANCE)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masked", [-1e6, -1e9, -3e38])
def test_masked_classes(call: Call, masked: float, fused: bool) -> None:
    case = Case((17, 20, 5), "tanh", batch=33, slots=40, masked=masked, fused=fused)
    data = make_round(case)
    assert_round(case, data, call(run_case, case), TOLERANCE)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(call: Call, bad: float, fused: bool) -> None:
    case = Case((17, 20, 5), "relu", batch=9, slots=12, bad=bad, fused=fused)
    data = make_round(case)
    result = call(run_case, case)
    finite = records(result["problems"])["finite"][data["rows"][: case.batch]]
    assert not finite[0]
    assert finite[1:].all()
    assert_round(case, data, result, TOLERANCE)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(call: Call, precision: str) -> None:
    case = Case((48, 40, 5), "tanh", precision=precision, tile=(16, 64, 32))
    data = make_round(case)
    assert_round(case, data, call(run_case, case), TOLERANCE)


@pytest.mark.parametrize("tile", [(32, 16, 16), (64, 128, 64), (16, 64, 32)])
def test_tiles(call: Call, tile: tuple[int, int, int]) -> None:
    for fused in (True, False):
        case = Case((48, 130, 40, 20), "relu", batch=20, slots=70, fused=fused, tile=tile)
        assert_round(case, make_round(case), call(run_case, case), TOLERANCE)


@pytest.mark.parametrize("fused", [True, False])
def test_an_empty_round(call: Call, fused: bool) -> None:
    case = Case((17, 20, 5), batch=0, fused=fused)
    result, data = call(run_case, case), make_round(case)
    assert np.array_equal(result["problems"], data["problems"])
    assert np.array_equal(result["dx"], data["dx"])


def shuffled(case: Case, data: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same slots listed in another order, among them images of others in all but 3."""
    random = np.random.default_rng(seed)
    rows = data["rows"][: case.batch]
    out = {name: array.copy() for name, array in data.items()}
    out["rows"][: case.batch] = random.permutation(rows)
    other = make_round(replace(case, seed=seed))
    for name in ("x", "problems", "scales"):
        out[name][rows[3:]] = other[name][rows[3:]]
    return out


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["relu", "sigmoid"])
def test_a_row_does_not_depend_on_the_others(call: Call, kind: str, fused: bool) -> None:
    """In the interpreter a BLAS multiplies, whose rounding may depend on the place of a row.

    On a GPU the test asks for equality (test_kernels_gpu.py).
    """
    case = Case((48, 70, 20, 5), kind, batch=30, slots=33, fused=fused, seed=2)
    data = make_round(case)
    kept = data["rows"][:3]
    expected = call(run_round, case, data)
    for seed in (3, 4):
        result = call(run_round, case, shuffled(case, data, seed))
        ours, theirs = (records(each["problems"])[kept] for each in (result, expected))
        for name in ("finite", "prediction", "runner_up"):
            assert np.array_equal(ours[name], theirs[name]), name
        scale = np.abs(expected["logits"]).max()
        for name in ("margin", "log_odds", "T"):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=TOLERANCE * scale)
        for name in ("dx", "scales"):
            for a, b in zip(result[name][kept], expected[name][kept], strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=4 * TOLERANCE * np.abs(b).max())


def test_split_products() -> None:
    random = np.random.default_rng(0)
    a, b = (torch.tensor(random.standard_normal((64, 64)), dtype=torch.float32) for _ in "ab")
    high, low = split(a)
    assert torch.equal(high + low, a)
    assert ((high.view(torch.int32) & 0x1FFF) == 0).all()
    assert (low.abs() <= a.abs() * 2.0**-11).all()
    exact = a.double() @ b.double()
    for precision in PRECISIONS:
        error = (product(a, b, precision) - exact).abs().max() / exact.abs().max()
        assert error < 1e-6, precision


@pytest.mark.parametrize("kind", KERNEL_ACTIVATIONS)
def test_reference_against_the_engine(kind: str) -> None:
    case = Case((17, 20, 12, 5), kind, batch=33, slots=33)
    data, network = make_round(case), network_of(case)
    problems = records(data["problems"])
    x, k = np.ascontiguousarray(data["x"][:, :17]), problems["k"].copy()
    scales = data["scales"].copy()
    logits, gradients = propagate_reference(
        network, x, problems.copy(), scales, data["temperatures"], CONFIDENCE
    )
    np.testing.assert_allclose(
        network.core.forward(x, k, data["scales"]), logits, rtol=0, atol=3e-6 * np.abs(logits).max()
    )
    dlogits = np.array([
        margin_loss_reference(z, problem, data["temperatures"], CONFIDENCE)
        for z, problem in zip(logits, problems.copy(), strict=True)
    ])  # fmt: skip
    back = network.core.backward(dlogits.astype(np.float32))
    np.testing.assert_allclose(back, gradients, rtol=0, atol=1e-5 * np.abs(gradients).max())
    if network.core.smoothable:
        recorded = np.zeros_like(data["scales"])
        exact = np.zeros_like(k)
        network.core.forward(x, exact, recorded, record_scales=True)
        rows = problems["record_scales"]
        assert rows.any()
        np.testing.assert_allclose(scales[rows], recorded[rows], rtol=1e-5)


def problem(case: Case, targeted: bool, count: int) -> tuple[Any, ...]:
    """Network and (images, labels, lo, hi, starts) of a run."""
    network, n = network_of(case), case.widths[0]
    images = np.random.default_rng(1).random((count, n), dtype=np.float32)
    labels = network.forward(images).argmax(axis=1)
    labels = (labels + targeted) % network.classes
    zeros, ones = np.zeros(n, np.float32), np.ones(n, np.float32)
    return network, (images, labels.astype(np.int32), zeros, ones, None)


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("kind", ["relu", "sigmoid"])
def test_margin_loss_reference_against_every_loss_of_a_run(kind: str, targeted: bool) -> None:
    case = Case((20, 12, 5), kind)
    network, job = problem(case, targeted, 12)
    params = params_for(network, targeted)
    session = _core.Session(_core.Job(params, *job), 6)
    records = memory(session.slot_rows()["problems"], 6, PROBLEM)
    scales = np.zeros((6, 2), np.float32)
    compared = 0
    while True:
        x, k, slots, record, paired = session.refill()
        if not len(x):
            break
        row_scales = scales[slots]
        logits = network.core.forward(x, k, row_scales)
        if record.any():
            network.core.forward(
                x[record], None, recorded := row_scales[record], record_scales=True
            )
            scales[slots[record]] = recorded
        expected = records[slots]
        dlogits = np.array([
            margin_loss_reference(z, problem, params.temperatures, np.float32(params.confidence))
            for z, problem in zip(logits, expected, strict=True)
        ])  # fmt: skip
        engine_dlogits, result = session.margin_loss(logits), records[slots]
        np.testing.assert_allclose(engine_dlogits, dlogits[:paired], rtol=1e-4, atol=1e-5)
        for name in PROBLEM.names:
            np.testing.assert_allclose(
                result[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name
            )
        network.core.forward(x[:paired], k[:paired], scales[slots[:paired]])
        session.advance(network.core.backward(engine_dlogits))
        compared += len(x)
    assert compared > 200
    assert session.results["success"].all()


@pytest.mark.parametrize(
    ("kind", "targeted", "fused"),
    [("relu", True, True), ("relu", False, False), ("sigmoid", False, True), ("tanh", True, False)],
)
def test_a_whole_run(call: Call, kind: str, targeted: bool, fused: bool) -> None:
    case = Case((20, 12, 5), kind, slots=8, fused=fused)
    network, job = problem(case, targeted, 8)
    result = call(solve_in_rounds, case, job, targeted)
    params = params_for(network, targeted)
    expected, _ = _core.solve(network.core, _core.Job(params, *job), 1, 8, lambda counts: True)
    np.testing.assert_array_equal(result["success"], expected["success"])
    assert result["success"].sum() >= 6
    both = result["success"] & (expected["distortion"] > 0)
    gap = np.abs(result["distortion"][both] / expected["distortion"][both] - 1)
    assert (gap < 1e-3).mean() >= 0.75, gap
    assert abs(result["distortion"].mean() / expected["distortion"].mean() - 1) < 0.01
