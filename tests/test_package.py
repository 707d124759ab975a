"""The contents of an installation and the cost of importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.networks import make_network

import advcore

IMPORT_OF_THE_SOURCES = """
import sys
from pathlib import Path
sys.path.append(str(Path(sys.argv[1]).parent))  # NumPy's folder, without the finders of .pth files
import advcore
"""
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


def test_the_source_folder_says_what_is_missing(tmp_path: Path) -> None:
    package = Path(advcore.__file__).parent
    shutil.copytree(package, tmp_path / "advcore", ignore=shutil.ignore_patterns("*.so", "_data"))
    process = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT_OF_THE_SOURCES, np.__path__[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    last_line = process.stderr.strip().splitlines()[-1]
    assert last_line.startswith("ImportError: ")
    assert f"{tmp_path / 'advcore'} is the source folder of advcore" in last_line
    assert "pip install -e ." in last_line
    (tmp_path / "advcore" / "_core.py").write_text("import no_such_module")
    process = subprocess.run(
        process.args, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert process.stderr.strip().endswith("No module named 'no_such_module'")


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


def test_documented_modules_keep_their_former_names() -> None:
    pytest.importorskip("torch")
    import advcore.training  # The statement works too.

    from advcore import locally_connected, models, preprocessing, pretrained, training

    assert locally_connected.quocnet is models.locally_connected.quocnet
    assert training is models.training
    assert advcore.training is training
    assert advcore.preprocessing.normalised_note is preprocessing.normalised_note
    assert issubclass(pretrained.Unavailable, OSError)
    with pytest.raises(AttributeError, match="has no attribute 'run'"):
        _ = advcore.run
    assert not hasattr(sys.modules["advcore.layers"], "__file__")


def former_pickle(stored: bytes, **names: str) -> bytes:
    """A pickle of protocol 0 with the modules' former names in the place of the present ones."""
    for former, present in names.items():
        name = f"cadvcore.{present}\n".encode()
        assert name in stored
        stored = stored.replace(name, f"cadvcore.{former}\n".encode())
    return stored


def test_objects_stored_by_version_0_1_are_read() -> None:
    network = make_network((6, 5, 3))
    stored = former_pickle(pickle.dumps(network, 0), layers="network.layers")
    stored = stored.replace(b"cadvcore.network.network\n", b"cadvcore.network\n")
    loaded = pickle.loads(stored)
    assert isinstance(loaded, advcore.Network)
    x = np.random.default_rng(0).random((4, 6), dtype=np.float32)
    np.testing.assert_array_equal(loaded.forward(x), network.forward(x))


def test_modules_stored_by_version_0_1_are_read() -> None:
    torch = pytest.importorskip("torch")
    from advcore import models
    from advcore.models import locally_connected, modules

    averaged = models.averaged(torch.nn.Linear(5, 3))
    filters = locally_connected.LocallyConnected((1, 6, 6), 2, 3)
    channels = modules.ReverseChannels()
    for module, names in (
        (averaged, {"averaged": "models.averaging"}),
        (filters, {"locally_connected": "models.locally_connected"}),
        (channels, {"pretrained": "models.modules"}),
    ):
        loaded = pickle.loads(former_pickle(pickle.dumps(module, 0), **names))
        assert type(loaded) is type(module)


def test_public_names_exist() -> None:
    for name in advcore.__all__:
        assert getattr(advcore, name) is not None, name


def test_command_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert [script.value for script in scripts if script.name == "advcore"] == ["advcore.cli:main"]


def test_modules_need_no_import_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys, advcore; assert 'advcore.jobs' not in sys.modules; "
        "print(len(advcore.data.embedded_digits()[0]), advcore.report.curve_figure.__name__, "
        "advcore.diagnose.__name__, advcore.jobs.run.__name__)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1000 curve_figure diagnose run\n", "")
