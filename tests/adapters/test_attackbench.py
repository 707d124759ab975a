"""The attack for attackbenchlib, by its own runner: its distances and its counters."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

library, adapter = adapter_of("attackbench", "attackbench", "advcore.adapters.attackbench")
torch = pytest.importorskip("torch")
NORMS = ("l2", "linf", "l1")
PART = -(-adapter.TRIAL_QUERIES // 8)


@pytest.fixture
def run(digits: Any) -> Any:
    """``run(norm, budget)``: results of the runner, and the queries of each image."""

    def call(norm: str, budget: int | None, attack: Any = adapter.advcore_attack) -> Any:
        data = torch.utils.data.TensorDataset(digits.x, digits.labels)
        found = library.run_attack(
            digits.model,
            torch.utils.data.DataLoader(data, batch_size=8),
            attack,
            norm,
            device=torch.device("cpu"),
            query_budget=budget,
            debug=True,
        )
        return found, np.add(found["num_forwards"], found["num_backwards"])

    return call


def as_it_is(digits: Any, **options: Any) -> Any:
    """Our result where each evaluation is one of the model as it is."""
    model = functools.partial(lambda net, x: net(x), digits.model)
    return advcore.minimize_distortion(
        model, digits.x, labels=digits.labels, smoothing=False, **options
    )


@pytest.mark.parametrize("norm", NORMS)
def test_the_counters_see_each_query_and_the_distances_are_ours(
    digits: Any, run: Any, norm: str
) -> None:
    found, queries = run(norm, None)
    ours = as_it_is(digits, norm=norm, max_queries=2**30 - PART)
    np.testing.assert_array_equal(queries, ours.queries + PART)
    assert all(found["adv_success"])
    assert not any(found["box_failures"])
    np.testing.assert_allclose(found["final_distances"][norm], ours.distortion, rtol=1e-4)
    np.testing.assert_allclose(found["distances"][norm], ours.distortion, rtol=0.01)
    assert found["metadata"]["attack_name"] == found["metadata"]["attack_lib"] == "advcore"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("budget", [50, 100, 300])
def test_no_image_exceeds_the_budget(digits: Any, run: Any, norm: str, budget: int) -> None:
    found, queries = run(norm, budget)
    assert (queries <= budget).all()
    ours = as_it_is(digits, norm=norm, max_queries=budget - PART)
    np.testing.assert_allclose(found["final_distances"][norm], ours.distortion, rtol=1e-4)
    assert (np.asarray(found["distances"][norm]) <= found["final_distances"][norm]).all()


def test_the_trials_are_no_more_than_what_is_charged(digits: Any) -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = 0

        def forward(self, x: Any) -> Any:
            self.queries += len(x) * (2 if x.requires_grad else 1)
            return digits.model(x)

    for norm in NORMS:
        model = Counting()
        result = advcore.minimize_distortion(
            functools.partial(lambda net, x: net(x), model),
            *(digits.x, None),
            labels=digits.labels,
            norm=norm,
            smoothing=False,
            max_queries=500,
        )
        assert 0 < model.queries - result.queries.sum() <= adapter.TRIAL_QUERIES


def test_options_and_targets(digits: Any, run: Any) -> None:
    attack = functools.partial(adapter.advcore_attack, effort="fast")
    found, queries = run("l2", 2000, attack)
    assert all(found["adv_success"])
    assert queries.sum() < run("l2", 2000)[1].sum()
    reached = adapter.advcore_attack(
        digits.model, digits.x, digits.labels, digits.targets, targeted=True
    )
    assert (digits.model(reached).argmax(dim=1) == digits.targets).all()


def test_what_is_told_of_bad_input(digits: Any, run: Any) -> None:
    with pytest.raises(ValueError, match="targets must be given"):
        adapter.advcore_attack(digits.model, digits.x, digits.labels, targeted=True)
    with pytest.raises(ValueError, match="max_queries must be"):
        run("l2", PART + 5)
    with pytest.raises(ValueError, match="norm must be"):
        run("l0", 1000)
