"""A small instance of the curves: cells that are kept, and the table of ours over the rivals."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advcore import data

torch = pytest.importorskip("torch")
bench = importlib.import_module("bench_anytime")
envelope = importlib.import_module("harness.envelope")
networks = importlib.import_module("harness.networks")
rivals = importlib.import_module("harness.rivals")
vit = importlib.import_module("harness.vit")
anytime = importlib.import_module("pages.anytime")


@pytest.fixture
def case(monkeypatch: Any, tmp_path: Path) -> Any:
    monkeypatch.setattr(networks, "CACHE", tmp_path)
    model = data.embedded_network().to_torch().eval().requires_grad_(False)
    images, labels = data.embedded_digits()
    return networks.Case("embedded", model, images[:4], labels[:4], targeted=False)


def test_our_runs_are_kept_and_stay_within_their_budgets(case: Any, monkeypatch: Any) -> None:
    clock = bench.Clock(None)
    rows = bench.our_cells(case, (10, 50), clock)
    assert rows["advcore-10"]["most_queries"] <= 20
    assert rows["advcore-50"]["most_queries"] <= 100
    monkeypatch.setattr(bench, "_run_ours", None)  # a second call reads them
    again = bench.our_cells(case, (10, 50), clock)
    for name, row in rows.items():
        np.testing.assert_array_equal(again[name]["distances"], row["distances"])
    with pytest.raises(SystemExit, match="the same call goes on"):
        bench.our_cells(case, (25,), bench.Clock(0))


@pytest.mark.filterwarnings("ignore:The distutils package")
@pytest.mark.skipif(not rivals.is_installed(), reason="needs adv-lib")
def test_rivals_run_at_a_number_of_steps(case: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(networks, "case", lambda *given, **options: case)
    monkeypatch.setattr(rivals, "chosen_settings", lambda *given, **options: {})
    bench.rival_cells(case, (3,), bench.Clock(None))
    rows = bench.rival_rows(case)
    assert rows["DDN-3"]["queries"] == rows["FMN-3"]["queries"] == 6
    assert rows["FAB-3"]["queries"] > 3 * 9  # a backward for each class
    assert rows["ALMA-3"]["settings"]["steps"] == 3
    monkeypatch.setattr(envelope, "rival_run", lambda *given: pytest.fail("a cell ran again"))


def test_table_and_curves() -> None:
    rows = {
        "advcore default": {"distances": np.array([1.0, 2.0]), "queries": 60.0},
        "advcore-25": {"distances": np.array([1.0, 2.0]), "queries": 40.0},
        "DDN-25": {"distances": np.array([2.0, 4.0]), "queries": 50.0},
        "FMN-25": {"distances": np.array([np.inf, 2.0]), "queries": 50.0},
        "ALMA-50": {"distances": np.array([0.5, 1.0]), "queries": 100.0},
    }
    values = bench.figures(rows)
    assert values["cap"] == 1.0  # the largest distance of the envelope
    assert values["runs"]["FMN-25"]["mean"] == 1.0
    assert values["runs"]["FMN-25"]["success"] == 0.5
    assert values["over_best_rival"]["25"]["rival"] in ("DDN-25", "FMN-25")
    assert anytime.points(values["runs"], "advcore") == [(40.0, 1.0)]
    assert anytime.points(values["runs"], "ALMA") == [(100.0, 0.75)]
    assert "50 queries" in anytime.table({"net": values})


def test_the_transformer_is_the_same_from_its_seed() -> None:
    images, labels = data.embedded_digits()
    models = [vit.untrained(), vit.untrained()]
    before = models[0](torch.from_numpy(images[:8]).view(-1, 1, 28, 28))
    for model in models:
        vit.train(model, images[:256], labels[:256], epochs=1)
    x = torch.from_numpy(images[:8]).view(-1, 1, 28, 28)
    one, other = (model(x) for model in models)
    assert torch.equal(one, other)
    assert not torch.equal(one, before)
