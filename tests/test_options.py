"""The options of a run: one table, from which the call is made."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import api
from advcore.options import Options, option_info, split_former_norm

DATA = ("model", "images", "targets", "labels", "starts")
FIELDS = {entry.name: entry for entry in dataclasses.fields(Options)}


def test_the_call_has_the_options_with_their_defaults_and_types() -> None:
    parameters = inspect.signature(advcore.minimize_distortion).parameters
    of_the_call = [name for name in parameters if name not in DATA]
    assert of_the_call == list(FIELDS)
    for name, entry in FIELDS.items():
        assert parameters[name].default == entry.default
        assert parameters[name].annotation == entry.type
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_call_hands_every_option_on(
    monkeypatch: pytest.MonkeyPatch, random_network: Any
) -> None:
    given: dict[str, Any] = {}

    class Handed(Exception):
        pass

    def record(**options: Any) -> Options:
        given.update(options)
        raise Handed

    monkeypatch.setattr(api, "Options", record)
    marks = {name: object() for name in FIELDS}
    with pytest.raises(Handed):
        advcore.minimize_distortion(random_network(), np.zeros((1, 20)), **marks)  # type: ignore[arg-type]
    assert given == marks


def test_every_option_is_described() -> None:
    documented = str(advcore.minimize_distortion.__doc__)
    for name in FIELDS:
        assert re.search(rf"^    {name} : ", documented, re.MULTILINE), name
        assert option_info(name).help, name


def test_defaults_pass_their_own_checks() -> None:
    options = Options()
    for name, entry in FIELDS.items():
        assert getattr(options, name) == entry.default
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 1  # type: ignore[misc]


def test_numbers_of_numpy_become_those_of_python() -> None:
    options = Options(history=np.int64(4), tolerance=np.float32(0.5), c_init=np.float64(2))  # type: ignore[arg-type]
    kept = (options.history, options.tolerance, options.c_init)
    assert [(type(value), value) for value in kept] == [(int, 4), (float, 0.5), (float, 2.0)]


def test_a_penalty_may_be_given_as_norm(random_network: Any, random_images: Any) -> None:
    network, x = random_network(), random_images(4)
    expected = advcore.minimize_distortion(network, x, penalty="l2_unsquared")
    with pytest.warns(FutureWarning, match="norm l2_unsquared is penalty l2_uns") as caught:
        result = advcore.minimize_distortion(network, x, norm="l2_unsquared")
    assert [warning.filename for warning in caught] == [__file__]
    assert (result.penalty, result.norm) == ("l2_unsquared", "l2")
    np.testing.assert_array_equal(result.c, expected.c)


def test_norms_have_names_and_orders() -> None:
    for name, values in {"l2": (2, "2", 2.0), "linf": (np.inf, "inf"), "l1": (1, "1")}.items():
        assert {Options(norm=value).norm for value in (name, *values)} == {name}
    for wrong in (3, 0, True, -np.inf, np.nan, "L2", None, [2]):
        with pytest.raises((TypeError, ValueError), match=r"^norm must be one of l2, linf, l1"):
            Options(norm=wrong)  # type: ignore[arg-type]
    for option in ({"loss": "cross_entropy"}, {"c_search": "bisection"}, {"c_init": 1.0}):
        with pytest.raises(ValueError, match=r"with norm='linf', got .* norm='l2'"):
            Options(norm="linf", **option)


def test_norm_and_penalty_exclude_each_other(random_network: Any, random_images: Any) -> None:
    with pytest.raises(TypeError, match="is the former name of penalty: give one of them"):
        split_former_norm("l2_unsquared", "other")
    for name in ("norm", "penalty"):
        options: dict[str, Any] = {name: "l7"}
        with pytest.raises(ValueError, match=f"^{name} must be one of l2, .*, got 'l7'"):
            advcore.minimize_distortion(random_network(), random_images(4), **options)


def test_the_page_of_options_is_up_to_date() -> None:
    """And its environment variables are those that the sources read."""
    tool = Path(__file__).parents[1] / "tools" / "make_options.py"
    process = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
