"""What the benchmarks compute from distances, on arrays small enough to check by hand."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

pytest.importorskip("torch")
bench = importlib.import_module("bench_optimality")
envelope = importlib.import_module("envelope")
networks = importlib.import_module("networks")
profiles = importlib.import_module("profiles")
sweep_rivals = importlib.import_module("sweep_rivals")


def test_figures_against_the_envelope():
    best = np.array([1.0, 2.0, 4.0, np.inf])
    row = bench.Row(np.array([1.0, 2.002, np.inf, 3.0]), 7.0, 2.0, {"p99_evaluations": 9.0})
    f = bench.figures(row, best)
    assert f["success"] == 0.75
    assert f["mean"] == pytest.approx(6.002 / 3)
    assert f["median"] == 2.002
    assert f["mean_over_envelope"] == pytest.approx(3.002 / 3)
    assert f["mean_ratio"] == pytest.approx(1.0005)
    assert f["largest_ratio"] == pytest.approx(1.001)
    assert f["within_0.1%"] == pytest.approx(2 / 3)
    assert f["more_than_1%_above"] == pytest.approx(1 / 3)  # the one that it missed
    assert f["found_by_no_rival"] == 0.25
    assert (f["evaluations"], f["forwards"], f["p99_evaluations"]) == (7.0, 2.0, 9.0)
    assert "1.0005" in bench.table({"x": f})


def test_figures_of_an_attack_that_found_nothing():
    f = bench.figures(bench.Row(np.full(2, np.inf), 1.0, 0.0, {}), np.array([1.0, np.inf]))
    assert f["success"] == 0
    assert f["more_than_1%_above"] == 1
    assert "mean" not in f
    assert "-" in bench.table({"x": f})


def test_sweep_prefers_success_then_the_mean_with_misses_at_the_worst_distance():
    d = [np.array([1.0, np.inf, 1.0]), np.array([2.0, 9.0, 2.0]), np.array([2.0, 3.0, 2.0])]
    rows = sweep_rivals.ranked([{"a": 0}, {"a": 1}, {"a": 2}], d)
    assert [row["settings"]["a"] for row in rows] == [2, 1, 0]
    assert rows[2]["mean"] == pytest.approx(11 / 3)


def test_profile_is_the_share_within_a_factor():
    best = np.array([1.0, 1.0, 1.0, np.inf])
    share = profiles.profile(np.array([1.0, 1.05, np.inf, np.inf]), best, np.array([0.01, 0.1]))
    assert share == pytest.approx([1 / 3, 2 / 3])


def test_distances_are_infinite_where_the_forward_does_not_confirm():
    import torch

    model = torch.nn.Linear(2, 2, bias=False).requires_grad_(False)
    model.weight.copy_(torch.eye(2))
    clean = np.array([[0.5, 0.25], [0.5, 0.25]], np.float32)
    found = np.array([[0.5, 0.75], [0.5, 0.25]], np.float32)
    wanted = networks.Case("x", model, clean, np.array([1, 1]), targeted=True)
    assert envelope.distances(wanted, found).tolist() == [0.5, np.inf]
    labels = networks.Case("x", model, clean, np.array([0, 0]), targeted=False)
    assert envelope.distances(labels, found).tolist() == [0.5, np.inf]
