"""Files of models that are damaged or hostile, and modules whose names clash with others."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, refusals

import advcore

torch = pytest.importorskip("torch")

MODULE = """
import dataclasses

@dataclasses.dataclass
class Linear:
    scale: float = 1.0

    def forward(self, x):
        return x.reshape(len(x), -1)[:, :2] * self.scale

    def backward(self, dlogits):
        return dlogits

def build():
    return Linear()
"""


class RunsCode:
    """A pickle of it writes a file where it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A stored program of torch with two weights."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3)).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(network, (torch.zeros(2, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def changed(program: Path, changes: dict[str, bytes]) -> Path:
    """Write a copy of the program with other contents of the members that end so."""
    path = program.with_name("changed.pt2")
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(path, "w") as archive:
        root = source.namelist()[0].partition("/")[0]
        members = {name: source.read(name) for name in source.namelist()}
        members |= {f"{root}/{name}": content for name, content in changes.items()}
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def config(program: Path, name: str) -> dict[str, Any]:
    with zipfile.ZipFile(program) as source:
        (member,) = (each for each in source.namelist() if each.endswith(name))
        content: dict[str, Any] = json.loads(source.read(member))
        return content


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


@pytest.mark.parametrize("place", ["weight", "constant", "sample", "former", "library"])
def test_programs_with_pickles_are_refused_unread(program: Path, place: str) -> None:
    with zipfile.ZipFile(program) as source:
        if not any(name.endswith(WEIGHTS) for name in source.namelist()):
            pytest.skip("this version of torch writes another format")
    marker = program.with_name("marker")
    file = io.BytesIO()
    torch.save(RunsCode(marker), file)
    stored = file.getvalue()
    if place == "weight":
        weights = config(program, WEIGHTS)
        entry = next(iter(weights["config"].values()))
        entry["use_pickle"] = True
        name = f"data/weights/{entry['path_name']}"
        changes = {WEIGHTS: json.dumps(weights).encode(), name: stored}
    elif place == "constant":
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False}
        constants = {"config": {"x": entry}}
        raw = pickle.dumps(RunsCode(marker))
        changes = {CONSTANTS: json.dumps(constants).encode(), "data/constants/opaque_obj_0": raw}
    elif place == "sample":
        changes = {"data/sample_inputs/model.pt": stored}
    elif place == "former":
        changes = {"serialized_state_dict.pt": stored}
    else:
        changes = {"data/aotinductor/model/x.so": b"\x7fELF"}
    path = changed(program, changes)
    with pytest.raises(ValueError, match=r"load_model: .*changed\.pt2: .*(pickled|library)"):
        advcore.load_model(path)
    assert not marker.exists()


def test_programs_without_pickles_are_read(program: Path) -> None:
    x = torch.rand(4, 6)
    expected = advcore.load_model(program)(x)
    assert torch.equal(advcore.load_model(changed(program, {}))(x), expected)


def in_children(read: Callable[[Path], Any], path: Path, copies: list[bytes]) -> list[str]:
    """Return `refusals` of a child process, which a crash would end."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            texts = refusals(read, path, copies)
        except BaseException as error:
            texts = [f"{type(error).__name__}\n{error}"]
        with os.fdopen(sink, "w") as file:
            json.dump(texts, file)
        os._exit(0)
    os.close(sink)
    with os.fdopen(source) as file:
        content = file.read()
    assert os.waitpid(child, 0)[1] == 0
    texts: list[str] = json.loads(content)
    return texts


def check(path: Path, input_shape: tuple[int, ...], count: int) -> None:
    """Damage a file, and check that each copy is read and evaluated or refused in one line."""
    read_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        advcore.load_model(path)(torch.zeros(2, *input_shape))

        def use(path: Path) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = advcore.load_model(path)
            try:
                model(torch.zeros(2, *input_shape))
            except Exception:  # A damaged network may be a network for other images.
                return

        texts = in_children(use, path, list(damaged(path.read_bytes(), count)))
    finally:
        torch.set_num_threads(read_before)
    assert len(texts) > count // 2
    for text in texts:
        assert text.startswith("load_model: ")
        assert "\n" not in text


def test_damaged_programs_are_refused_in_one_line(program: Path) -> None:
    check(program, (6,), 60)


def onnx_chain(path: Path, length: int) -> Path:
    """Write a graph of a product and ``length`` activations."""
    from support.onnx_files import Writer

    writer = Writer("batch", 6).add("MatMul", np.ones((6, 3), np.float32))
    for number in range(length):
        writer.add("Relu" if number % 2 else "Abs")
    return writer.save(path)


def test_damaged_onnx_files_are_refused_in_one_line(tmp_path: Path) -> None:
    check(onnx_chain(tmp_path / "net.onnx", 3), (6,), 100)


def test_the_time_to_load_onnx_files_is_linear(tmp_path: Path) -> None:
    advcore.load_model(onnx_chain(tmp_path / "net.onnx", 10))
    times = []
    for length in (2_000, 8_000):
        path = onnx_chain(tmp_path / "net.onnx", length)
        spent = []
        for _ in range(3):
            begin = time.process_time()
            advcore.load_model(path)
            spent.append(time.process_time() - begin)
        times.append(min(spent))
    assert times[1] < 10 * times[0] + 0.2  # four times as many nodes; before, 16 times the time


@pytest.mark.parametrize("name", ["json.py", "numpy.py", "advcore.py", "__main__.py", "mine.py"])
def test_modules_of_the_same_name_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / name).write_text(MODULE)
    before = dict(sys.modules)
    model = advcore.load_model(f"{tmp_path / name}:build")
    assert model.forward(np.ones((1, 3))).shape == (1, 2)
    assert sys.modules[type(model).__module__].__file__ == str(tmp_path / name)
    assert all(sys.modules.get(key) is module for key, module in before.items())
    for key in sys.modules.keys() - before.keys():
        del sys.modules[key]


def test_modules_beside_the_file_come_after_those_of_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside.py").write_text("width = 2")
    (tmp_path / "colorsys.py").write_text("width = 3")
    (tmp_path / "mine.py").write_text(
        "import beside, colorsys\nassert beside.width == 2\nassert colorsys.rgb_to_hsv\n" + MODULE
    )
    for name in ("colorsys", "beside", "mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    advcore.load_model(f"{tmp_path / 'mine.py'}:build")
    assert sys.modules["beside"].__file__ == str(tmp_path / "beside.py")


def test_a_module_that_raises_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "half.py").write_text("raise RuntimeError('no')")
    with pytest.raises(ValueError, match=r"half\.py raised RuntimeError: no"):
        advcore.load_model(f"{tmp_path / 'half.py'}:build")
    assert "half" not in sys.modules
