"""Properties of every run: independence, bounds, verification, threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import Backend
from support.same_results import same
from support.small_models import names

import advcore
from advcore import data

ACTIVATIONS = ["sigmoid", "relu"]


def examples(backend: Backend) -> settings:
    """Examples of Hypothesis: fewer where evaluations are slow."""
    return settings(
        max_examples=25 if backend.fast else 5,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class RowWise:
    """A two-layer tanh network in NumPy whose arithmetic does not depend on the batch.

    Not a number where the first value is exactly 1, or for hidden sums above ``limit``.
    """

    def __init__(self, network: Any, limit: float = np.inf) -> None:
        self.first, self.last = (
            (layer.weight.astype(np.float64), layer.bias.astype(np.float64))
            for layer in network.layers
        )
        self.limit = limit
        self.seen: list[tuple[Any, Any]] = []
        self.pulled = 0

    def forward(self, x: Any) -> Any:
        flat = x.reshape(len(x), -1).astype(np.float64)
        self.h = np.tanh(np.stack([(self.first[0] * row).sum(1) for row in flat]) + self.first[1])
        z = np.stack([(self.last[0] * row).sum(1) for row in self.h]) + self.last[1]
        z[(flat[:, 0] == 1) | (self.h.sum(1) > self.limit)] = np.nan
        self.seen.append((x.copy(), z))
        return z

    def backward(self, dlogits: Any) -> Any:
        self.pulled += len(dlogits)
        dh = np.stack([(self.last[0].T * row).sum(1) for row in dlogits]) * (1 - self.h**2)
        return np.stack([(self.first[0].T * row).sum(1) for row in dh])


# --- independence


@pytest.mark.backends("exact")
@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_result_of_an_image_is_its_own(
    backend: Backend, activation: str, targeted: bool, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation=activation), random_images(60)
    targets = (network.forward(x).argmax(1) + 1) % 5 if targeted else None
    whole = backend.attack(network, x, targets, threads=1)
    assert whole.success.all()

    @examples(backend)
    @given(
        rows=st.lists(st.integers(0, 59), min_size=1, max_size=80),
        batch_size=st.one_of(st.none(), st.integers(1, 100)),
        threads=st.integers(1, 4),
    )
    def check(rows: list[int], batch_size: int | None, threads: int) -> None:
        part = backend.attack(
            network,
            x[rows],
            None if targets is None else targets[rows],
            batch_size=batch_size,
            threads=threads,
        )
        same(part, whole, rows_b=rows)

    check()


@pytest.mark.backends("exact")
@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("c_search", ["fused", "bisection"])
def test_independence_under_every_search(
    backend: Backend, loss: str, c_search: str, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(40)
    options: Any = {"loss": loss, "c_search": c_search, "effort": "thorough", "levels": 256}
    x = (np.rint(255 * x) / 255).astype(np.float32)
    whole = backend.attack(network, x, threads=1, **options)
    order = np.random.default_rng(0).permutation(40)
    mixed = backend.attack(network, x[order], threads=3, batch_size=4, **options)
    same(mixed, whole, rows_b=order)


def test_numpy_result_of_an_image_is_its_own(random_network: Any, random_images: Any) -> None:
    model, x = RowWise(random_network(activation="tanh")), random_images(24)
    targets = (model.forward(x).argmax(1) + 1) % 5
    whole = advcore.minimize_distortion(model, x, targets)
    assert whole.engine["path"] == "numpy"
    assert whole.success.all()
    for rows in (slice(None, None, -1), slice(5, 6), slice(3, 17)):
        for batch_size in (None, 1, 7):
            part = advcore.minimize_distortion(model, x[rows], targets[rows], batch_size=batch_size)
            same(part, whole, rows_b=rows)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_neighbours_that_give_nan_leave_no_trace(
    batch_size: int | None, random_network: Any, random_images: Any
) -> None:
    """Images that are NaN from the start, and images whose search runs into NaN."""
    x = random_images(24)
    plain = RowWise(random_network(activation="tanh"))
    hidden = plain.forward(x) is not None and plain.h.sum(1)
    model = RowWise(random_network(activation="tanh"), limit=float(np.quantile(hidden, 0.9)))
    lo, hi = np.zeros(20), np.ones(20)
    lo[0] = hi[0] = 0
    x[:, 0] = 0
    good = np.isfinite(model.forward(x)).all(axis=1)
    assert 12 <= good.sum() < 24
    alone = advcore.minimize_distortion(model, x[good], batch_size=batch_size, bounds=(lo, hi))
    mixed = advcore.minimize_distortion(model, x, batch_size=batch_size, bounds=(lo, hi))
    same(mixed, alone, rows_a=good)
    assert {name for name, ok in zip(names(mixed), good, strict=True) if not ok} == {"non_finite"}
    assert not mixed.success[~good].any()
    np.testing.assert_array_equal(mixed.adversarial[~good], x[~good])
    assert np.isinf(mixed.distortion[~good]).all()
    assert mixed.success[good].sum() >= 10
    assert np.isfinite(mixed.adversarial).all()


def test_lowered_torch_module_is_independent_too(random_network: Any, random_images: Any) -> None:
    pytest.importorskip("torch")
    module, x = random_network().to_torch(), random_images(150)
    whole = advcore.minimize_distortion(module, x)
    assert whole.engine["path"] == "native"
    order = np.random.default_rng(0).permutation(150)
    mixed = advcore.minimize_distortion(module, x[order], threads=2)
    np.testing.assert_array_equal(mixed.adversarial, whole.adversarial[order])
    np.testing.assert_array_equal(mixed.evaluations, whole.evaluations[order])
    part = advcore.minimize_distortion(module, x[140:])
    np.testing.assert_array_equal(part.adversarial, whole.adversarial[140:])


@pytest.mark.backends("exact")
def test_same_call_same_result(backend: Backend, random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="relu"), random_images(50)
    same(backend.attack(network, x), backend.attack(network, x))


def test_inputs_are_not_written_to(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(), random_images(10)
    targets = (network.forward(x).argmax(1) + 1) % 5
    lo, hi = np.zeros(20), np.ones(20)
    copies = [v.copy() for v in (x, targets, lo, hi)]
    backend.attack(network, x, targets, bounds=(lo, hi), starts=(x, targets))
    for value, copy in zip((x, targets, lo, hi), copies, strict=True):
        np.testing.assert_array_equal(value, copy)


# --- bounds, best point, verification


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_result_is_inside_the_bounds_bit_for_bit(
    backend: Backend, activation: str, random_network: Any, random_images: Any
) -> None:
    network = random_network(activation=activation)

    @examples(backend)
    @given(seed=st.integers(0, 2**32), own=st.booleans())
    def check(seed: int, own: bool) -> None:
        rng = np.random.default_rng(seed)
        x = random_images(8, seed=seed % 1000).astype(np.float64)
        shape = (8, 20) if own else (20,)
        lo = np.minimum(x.min(axis=None if own else 0), 1) * rng.random(shape)
        hi = x.max(axis=None if own else 0) + 0.3 * rng.random(shape)  # float64, not float32's
        lo, hi = (np.where(rng.random(shape) < 0.1, e, v) for e, v in ((-np.inf, lo), (np.inf, hi)))
        result = backend.attack(network, x, bounds=(lo, hi))
        inside = result.adversarial.astype(np.float64)
        assert (inside >= lo).all()
        assert (inside <= hi).all()
        assert result.success.sum() >= 6

    check()


def test_the_smallest_point_ever_evaluated_is_returned(
    random_network: Any, random_images: Any
) -> None:
    network = random_network(activation="tanh")
    for loss in ("margin", "cross_entropy"):
        for x in random_images(6)[:, None]:
            model = RowWise(network)
            label = int(model.forward(x).argmax())
            result = advcore.minimize_distortion(model, x, labels=[label], loss=loss)
            points = np.concatenate([seen for seen, _ in model.seen])
            logits = np.concatenate([z for _, z in model.seen]).astype(np.float32)
            margin = np.delete(logits, label, axis=1).max(axis=1) - logits[:, label]
            required = np.maximum(1e-4, 16 * 2.0**-23 * np.abs(logits).max(axis=1))
            norms = np.linalg.norm(points.astype(np.float64) - x, axis=1)
            smallest = norms[margin >= required * (1 + 1e-6)].min()
            assert result.distortion[0] <= smallest * (1 + 1e-6)
            assert result.evaluations[0] == model.pulled - 1  # one is the check of the backward


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_max_evaluations(
    backend: Backend, limit: int, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(30)
    result = backend.attack(network, x, max_evaluations=limit)
    assert (result.evaluations <= limit).all()
    assert "budget" in names(result)
    z = network.forward(result.adversarial[result.success])
    label = network.forward(x).argmax(1)[result.success]
    assert (z.argmax(1) != label).all()
    np.testing.assert_array_equal(result.adversarial[~result.success], x[~result.success])
    assert np.isinf(result.distortion[~result.success]).all()


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "leaky_relu", "gelu"])
def test_torch_confirms_every_success(
    backend: Backend, activation: str, effort: str, random_network: Any, random_images: Any
) -> None:
    torch = pytest.importorskip("torch")
    network, x = random_network(activation=activation), random_images(100)
    targets = (network.forward(x).argmax(1) + 1) % 5
    result = backend.attack(network, x, targets, effort=effort)
    assert result.success.all()
    with torch.no_grad():
        z = network.to_torch()(torch.from_numpy(result.adversarial)).numpy()
    np.testing.assert_array_equal(z.argmax(1), targets)
    np.testing.assert_array_equal(result.prediction, targets)
    others = z.copy()
    others[np.arange(100), targets] = -np.inf
    margin = z[np.arange(100), targets] - others.max(1)
    np.testing.assert_allclose(result.margin, margin, atol=2e-5)
    assert (result.margin >= 1e-4).all()


@pytest.mark.parametrize("targeted", [True, False])
def test_embedded_digits_are_confirmed_by_torch(targeted: bool) -> None:
    torch = pytest.importorskip("torch")
    network = data.embedded_network()
    digits, labels = (v[:200] for v in data.embedded_digits())
    targets = (labels + 1 + np.arange(200) % 9) % 10
    module = network.to_torch()
    kind = {"targets": targets} if targeted else {"labels": labels}
    result = advcore.minimize_distortion(module, torch.from_numpy(digits), **kind)  # type: ignore[arg-type]
    assert result.engine["path"] == "native"
    assert result.success.all()
    with torch.no_grad():
        predicted = module(result.adversarial).argmax(1).numpy()
    assert (predicted == targets if targeted else predicted != labels).all()
    np.testing.assert_array_equal(result.prediction, predicted)
    fooled = np.array(names(result)) == "already_adversarial"
    assert (result.distortion[fooled] == 0).all()
    assert (result.distortion[~fooled] > 0).all()
    assert result.evaluations.mean() <= (40 if targeted else 60)


@pytest.mark.parametrize("confidence", [0.0, 1e-4])
@pytest.mark.parametrize("lowered", [True, False])
def test_rounding_makes_no_success(confidence: float, lowered: bool, random_network: Any) -> None:
    """Long sums that cancel: the logits' rounding is far above 16 eps of their size."""
    torch = pytest.importorskip("torch")
    network = random_network(sizes=(3072, 10), gain=55.0)
    x = np.random.default_rng(0).random((400, 3072), dtype=np.float32)
    module = network.to_torch()
    model = module if lowered else network
    targets = (network.forward(x).argmax(1) + 1) % 10
    result = advcore.minimize_distortion(model, x, targets, confidence=confidence)
    assert result.success.all()
    found = torch.from_numpy(result.adversarial)
    with torch.no_grad():
        np.testing.assert_array_equal(module(found).argmax(1), targets)
        for row in range(50):
            assert int(module(found[row : row + 1]).argmax()) == targets[row]
        np.testing.assert_array_equal(module.double()(found.double()).argmax(1), targets)


# --- lowered modules, instruction sets, threads


@pytest.mark.parametrize("activation", ["softplus", "gelu", "sigmoid", "tanh"])
def test_a_lowered_module_agrees_with_its_network(
    activation: str, random_network: Any, random_images: Any
) -> None:
    pytest.importorskip("torch")
    network, x = random_network(activation=activation, gain=1.5), random_images(60)
    targets = (network.forward(x).argmax(1) + 1) % 5
    native = advcore.minimize_distortion(network, x, targets)
    lowered = advcore.minimize_distortion(network.to_torch(), x, targets)
    assert (native.engine["path"], lowered.engine["path"]) == ("native", "native")
    assert lowered.success.all()
    np.testing.assert_allclose(lowered.distortion, native.distortion, rtol=1e-3, atol=1e-5)


def test_unknown_instruction_set_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from advcore import _core; _core.isa()"],
        cwd=tmp_path,
        env={**os.environ, "ADVCORE_ISA": "avx9"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode != 0
    assert "ADVCORE_ISA must be base, v3 or v4, not avx9" in done.stderr


def test_threads_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, random_network: Any, random_images: Any
) -> None:
    monkeypatch.setenv("ADVCORE_NUM_THREADS", "3")
    network, x = random_network(), random_images(10)
    assert advcore.minimize_distortion(network, x).engine["threads"] == 3
    assert advcore.minimize_distortion(network, x, threads=2).engine["threads"] == 2
    for value in ("0", "two", "-1", "1025", "999999999999"):
        monkeypatch.setenv("ADVCORE_NUM_THREADS", value)
        with pytest.raises(ValueError, match=f"ADVCORE_NUM_THREADS must be .* got '{value}'"):
            advcore.minimize_distortion(network, x)


def test_wide_bounds_are_as_none(backend: Backend, random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="relu"), random_images(30)
    free = backend.attack(network, x, bounds=(-np.inf, np.inf))
    assert free.success.all()
    for width in (1e3, 1e6, 1e30):
        wide = backend.attack(network, x, bounds=(-width, width))
        assert wide.success.all()
        np.testing.assert_allclose(wide.distortion, free.distortion, rtol=1e-4)


@pytest.mark.backends("exact")
def test_bounds_of_an_image_are_its_own(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(12)
    lo, hi = np.clip(x - 0.3, 0, 1), np.clip(x + 0.3, 0, 1)
    lo[-1], hi[-1] = -1e6, 1e6
    whole = backend.attack(network, x, bounds=(lo, hi))
    for row in range(12):
        part = slice(row, row + 1)
        alone = backend.attack(network, x[part], bounds=(lo[part], hi[part]))
        same(alone, whole, rows_b=[row])
