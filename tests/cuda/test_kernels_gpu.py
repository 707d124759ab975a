"""The kernels as machine code on a GPU, against float64; skipped where there is none."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.kernel_cases import (
    Case,
    activations,
    assert_round,
    make_round,
    plan_of,
    run_round,
)

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from advcore.kernels.activation import KERNEL_ACTIVATIONS, activation_reference  # noqa: E402
from advcore.kernels.plan import architecture  # noqa: E402
from advcore.kernels.precision import PRECISIONS  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
]

# Of logits, relative to the largest; gradients have four times as much. exp and the division of the
# hardware are good to 2 units of the last place, tensor cores cut their sums off.
TOLERANCE = {"ieee": 1e-5, "tf32x3": 1e-4}
HOPPER = (64, 128, 32)


def arch() -> int:
    return architecture("cuda")


def run(case: Case, data: dict[str, Any]) -> Any:
    return run_round(case, data, "cuda", plan_of(case, arch()))


def launcher_compiles() -> bool:
    """Triton's own launcher is a C file; the plans do without it."""
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return header.is_file() and any(map(shutil.which, ("cc", "gcc", "clang")))


@pytest.mark.skipif(not launcher_compiles(), reason="Triton's launcher needs a C compiler")
@pytest.mark.parametrize("kind", KERNEL_ACTIVATIONS)
def test_activation(kind: str) -> None:
    z = np.linspace(-12, 12, 4801, dtype=np.float32)
    z = np.concatenate([z, [0, 1e-6, -1e-6, 80, -80, np.nan]]).astype(np.float32)
    d = np.array([0, 0.3, 2, 0, 50], np.float32)
    h, dh = activations(kind, 0.1, np.tile(z, (len(d), 1)), d, "cuda")
    expected = activation_reference(
        torch.tensor(z).double().expand(len(d), -1), torch.tensor(d), kind, 0.1
    )
    for result, exact in zip((h, dh), expected, strict=True):
        np.testing.assert_allclose(result[:, :-1], exact[:, :-1], rtol=2e-5, atol=2e-6)
    assert np.isnan(h[:, -1]).all()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_a_round_of_every_state(kind: str, precision: str, fused: bool) -> None:
    tile = (32, 64, 16) if precision == "ieee" else HOPPER
    case = Case(
        (17, 20, 12, 5), kind, batch=333, slots=400, fused=fused, precision=precision, tile=tile
    )
    data = make_round(case)
    assert_round(case, data, run(case, data), TOLERANCE[precision])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("widths", "kind"),
    [
        ((784, 100, 100, 10), "sigmoid"), ((784, 300, 130, 10), "gelu"), ((3072, 40, 7), "tanh"),
        ((33, 5, 3, 2), "softplus"), ((100, 20, 1000), "gelu_tanh"),
    ],
)  # fmt: skip
def test_precisions(
    widths: tuple[int, ...],
    kind: str,
    precision: str,
    fused: bool,
    record_property: Callable[[str, object], None],
) -> None:
    tile = (32, 64, 16) if precision == "ieee" else HOPPER
    case = Case(
        widths, kind, batch=100, slots=130, fused=fused, precision=precision, tile=tile, plain=True
    )
    data = make_round(case)
    result = run(case, data)
    record_property("logit_error", assert_round(case, data, result, TOLERANCE[precision]))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tile", [(16, 32, 16), (32, 128, 32), (128, 128, 32)])
def test_tiles(tile: tuple[int, int, int], fused: bool) -> None:
    case = Case((48, 130, 40, 20), "relu", batch=200, slots=300, fused=fused, tile=tile)
    data = make_round(case)
    assert_round(case, data, run(case, data), TOLERANCE["tf32x3"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masked", [-1e6, -1e9, -3e38])
def test_masked_classes(masked: float, fused: bool) -> None:
    case = Case((17, 20, 5), "tanh", batch=333, slots=400, masked=masked, fused=fused, tile=HOPPER)
    data = make_round(case)
    assert_round(case, data, run(case, data), TOLERANCE["tf32x3"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(bad: float, fused: bool) -> None:
    case = Case((17, 20, 5), "relu", batch=90, slots=120, bad=bad, fused=fused, tile=HOPPER)
    data = make_round(case)
    assert_round(case, data, run(case, data), TOLERANCE["tf32x3"])


def test_an_empty_round() -> None:
    case = Case((17, 20, 5), batch=0, tile=HOPPER)
    data = make_round(case)
    result = run(case, data)
    assert np.array_equal(result["problems"], data["problems"])
    assert np.array_equal(result["dx"], data["dx"])


@pytest.mark.parametrize(("fused", "classes"), [(True, 1000), (False, 30000)])
def test_many_classes(fused: bool, classes: int) -> None:
    case = Case((20, classes), "relu", batch=20, slots=33, fused=fused, tile=HOPPER, plain=True)
    data = make_round(case)
    assert_round(case, data, run(case, data), TOLERANCE["tf32x3"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_does_not_depend_on_the_others(precision: str, fused: bool) -> None:
    tile = (32, 64, 16) if precision == "ieee" else HOPPER
    case = Case(
        (784, 100, 100, 10), "relu", batch=300, slots=300, fused=fused, precision=precision,
        tile=tile, seed=2,
    )  # fmt: skip
    data = make_round(case)
    expected = run(case, data)
    kept = data["rows"][:20]
    for seed in (3, 4):
        random = np.random.default_rng(seed)
        other = make_round(replace(case, seed=seed))
        mixed = {name: array.copy() for name, array in data.items()}
        mixed["rows"] = random.permutation(data["rows"])
        for name in ("x", "problems", "scales"):
            mixed[name][data["rows"][20:]] = other[name][data["rows"][20:]]
        result = run(case, mixed)
        for name in ("problems", "dx", "scales"):
            assert np.array_equal(result[name][kept], expected[name][kept]), name
