"""A small instance of the run by attackbenchlib: cells that are kept, and its metric."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.libraries import adapter_of

from advcore import data

(bench,) = adapter_of("attackbench", "bench_attackbench")
torch = pytest.importorskip("torch")
machine = importlib.import_module("harness.machine")
networks = importlib.import_module("harness.networks")
rivals = importlib.import_module("harness.rivals")


@pytest.fixture
def case(monkeypatch: Any, tmp_path: Path) -> Any:
    monkeypatch.setattr(networks, "CACHE", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    model = data.embedded_network().to_torch().eval().requires_grad_(False)
    images, labels = data.embedded_digits()
    found = networks.Case("embedded", model, images[:4], labels[:4], targeted=False)
    monkeypatch.setattr(networks, "case", lambda *given, **options: found)
    return found


@pytest.mark.filterwarnings("ignore:The distutils package")
@pytest.mark.skipif(not rivals.is_installed(), reason="needs adv-lib")
@pytest.mark.parametrize("norm", bench.NORMS)
def test_a_run_is_kept_and_has_its_metric(
    case: Any, norm: str, monkeypatch: Any, tmp_path: Path
) -> None:
    rival = "DDN" if norm == "l2" else "FMN"
    given = ["--networks", "embedded", "--norms", norm, "--budgets", "80,120"]
    given += ["--attacks", f"advcore fast,{rival}"]
    bench.main(given)
    stored = json.loads((tmp_path / "bench_attackbench.json").read_text())
    values = stored["norms"][norm]
    assert {name.partition(" ")[0] for name in values} >= {"advcore"}
    ours, theirs = values["advcore fast at 120"], values[next(n for n in values if rival in n)]
    assert 0.5 < ours["global_optimality"] <= 1
    assert ours["queries"] <= 120
    assert theirs["queries"] <= 120
    assert ours["failed_batches"] == theirs["failed_batches"] == 0
    assert max(each["global_optimality"] for each in values.values()) > 0.9
    monkeypatch.setattr(bench.library(), "run_attack", lambda *a, **k: pytest.fail("ran again"))
    bench.main(given)
    assert json.loads((tmp_path / "bench_attackbench.json").read_text())["norms"] == stored["norms"]
    with pytest.raises(SystemExit, match="the same call goes on"):
        bench.main([*given, "--minutes", "0"])


def test_the_table_is_in_the_order_of_the_largest_budget() -> None:
    row = {"local_optimality": {}, "failed_batches": 0}
    values = {
        "a at 100": {"global_optimality": 0.9, "queries": 100.0, **row},
        "b at 100": {"global_optimality": 0.5, "queries": 99.0, **row},
        "b at 300": {"global_optimality": 0.95, "queries": 250.4, **row},
    }
    assert bench.table(values, [100, 300]).splitlines()[2:] == [
        "| b | 0.5000 (99) | 0.9500 (250) |",
        "| a | 0.9000 (100) |  |",
    ]
