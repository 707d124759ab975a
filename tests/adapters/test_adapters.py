"""What holds for every adapter: imports, missing libraries and options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from advcore.adapters._call import attack_with

LIBRARIES = {
    "foolbox": "foolbox",
    "art": "art",
    "torchattacks": "torchattacks",
    "secml": "secmlt",
}


def in_a_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )


def test_the_package_imports_no_library(tmp_path: Path) -> None:
    code = (
        "import sys, advcore.adapters, advcore.adapters.advlib, advcore.adapters.attackbench\n"
        "names = {'foolbox', 'art', 'torchattacks', 'secmlt', 'adv_lib', 'attackbench', 'torch'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    run = in_a_process(code, tmp_path)
    assert run.stdout.strip() == "[]"


WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {library!r}:
            raise ModuleNotFoundError(name, name={library!r})

sys.meta_path.insert(0, Missing())
try:
    importlib.import_module("advcore.adapters.{name}")
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_with_its_extra(name: str, tmp_path: Path) -> None:
    library = LIBRARIES[name]
    code = WITHOUT.format(name=name, library=library)
    run = in_a_process(code, tmp_path)
    expected = f'advcore.adapters.{name} needs {library}: pip install "advcore[{name}]"'
    assert run.stdout.strip() == expected


def test_options_are_checked_before_there_are_images() -> None:
    attack_with(effort="fast", max_queries=100)
    with pytest.raises(TypeError, match="efort is no option of minimize_distortion"):
        attack_with(efort="fast")
    with pytest.raises(TypeError, match="bounds is no option of this attack: the library gives it"):
        attack_with(("bounds",), bounds=(0, 1))
    with pytest.raises(ValueError, match="effort must be"):
        attack_with(effort="none")
