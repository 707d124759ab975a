"""The scripts of ``examples`` run, and print what they are about."""

from __future__ import annotations

import runpy
import warnings
from typing import Any

import pytest
from support.libraries import adapter_of
from support.native_build import ROOT

EXAMPLES = {
    "advlib_attack": ("advcore", "success 100%, median l2 "),
    "art_attack": ("art", "success 100%, median linf "),
    "attackbench_attack": ("attackbench", "success 100%, at most "),
    "foolbox_attack": ("foolbox", "robust accuracy at l2 0.25: "),
    "secml_attack": ("secmlt", "success 100%"),
    "torchattacks_attack": ("torchattacks", "success 100%, median l2 "),
}

pytestmark = pytest.mark.skipif(not (ROOT / "examples").is_dir(), reason="needs the source folder")


def test_every_script_is_here() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, capsys: Any) -> None:
    library, text = EXAMPLES[name]
    adapter_of(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    assert text in capsys.readouterr().out
