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
from advcore.options import Options, option_info

DATA = ("model", "images", "targets", "labels", "starts")
FORMER = ("norm",)
FIELDS = {entry.name: entry for entry in dataclasses.fields(Options)}


def test_the_call_has_the_options_with_their_defaults_and_types() -> None:
    parameters = inspect.signature(advcore.minimize_distortion).parameters
    of_the_call = [name for name in parameters if name not in DATA + FORMER]
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


@pytest.mark.parametrize("penalty", ["l2", "l2_unsquared"])
def test_norm_is_the_former_name_of_penalty(
    random_network: Any, random_images: Any, penalty: str
) -> None:
    network, x = random_network(), random_images(4)
    expected = advcore.minimize_distortion(network, x, penalty=penalty)
    with pytest.warns(FutureWarning, match="norm is called penalty now") as caught:
        result = advcore.minimize_distortion(network, x, norm=penalty)
    assert [warning.filename for warning in caught] == [__file__]
    assert result.penalty == penalty
    np.testing.assert_array_equal(result.c, expected.c)


def test_norm_is_checked(random_network: Any, random_images: Any) -> None:
    network, x = random_network(), random_images(4)
    text = "must be one of l2, l2_unsquared, got 'linf'; distortion is the L2 norm"
    with pytest.raises(ValueError, match=f"^norm {text}"):
        advcore.minimize_distortion(network, x, norm="linf")
    with pytest.raises(ValueError, match=f"^penalty {text}"):
        advcore.minimize_distortion(network, x, penalty="linf")
    with pytest.raises(TypeError, match="norm is the former name of penalty: give one of them"):
        advcore.minimize_distortion(network, x, norm="l2", penalty="l2_unsquared")


def test_the_page_of_options_is_up_to_date() -> None:
    """And its environment variables are those that the sources read."""
    tool = Path(__file__).parents[1] / "tools" / "make_options.py"
    process = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
