"""The contents of an installation and the cost of importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys

import advcore

OPTIONAL = ("torch", "scipy", "matplotlib", "typer", "rich", "pooch", "triton", "pandas")


def python(code: str) -> str:
    """Standard output of a fresh interpreter, outside the source folder."""
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=sys.prefix,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return process.stdout


def test_import_is_light() -> None:
    loaded = json.loads(python("import sys, json, advcore; print(json.dumps(sorted(sys.modules)))"))
    assert "numpy" in loaded
    assert not set(OPTIONAL) & set(loaded)


def test_version_has_one_source() -> None:
    assert advcore.__version__ == importlib.metadata.version("advcore")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", advcore.__version__)


def test_kernels_are_installed_as_a_subpackage() -> None:
    import advcore.kernels

    assert advcore.kernels.__name__ == "advcore.kernels"
    assert advcore.kernels.__doc__


def test_files_that_must_be_installed() -> None:
    package = importlib.resources.files("advcore")
    for name in ("py.typed", "_core.pyi", "_data/NOTICE", "_data/mnist_test_1000.npz"):
        assert (package / name).is_file(), name
    assert "CC BY-SA 3.0" in (package / "_data" / "NOTICE").read_text()


def test_numpy_is_the_only_requirement() -> None:
    requirements = importlib.metadata.requires("advcore") or []
    core = [line for line in requirements if "extra ==" not in line]
    assert len(core) == 1
    assert core[0].startswith("numpy")


def test_public_names_exist() -> None:
    for name in advcore.__all__:
        assert getattr(advcore, name) is not None, name


def test_command_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert [script.value for script in scripts if script.name == "advcore"] == ["advcore.cli:main"]
