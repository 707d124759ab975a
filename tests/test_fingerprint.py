"""Hashes of models: equal for equal ones in any process, different for every change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from advcore import data, jobs
from advcore.fingerprint import (
    _deciding_files,
    code_version,
    device_of,
    hash_of,
    text_of,
)
from advcore.jobs import manifest
from advcore.options import Options

MODEL = """
import numpy as np
SCALE = 2.0
def helper(x):
    return SCALE * x
class Model:
    kind = "linear"
    def __init__(self, seed=0):
        self.weight = np.random.default_rng(seed).random((3, 4))
    def forward(self, x):
        return helper(x) @ self.weight.T
    def backward(self, d):
        return SCALE * d @ self.weight
"""


def model(text: str, *arguments: Any) -> Any:
    names: dict[str, Any] = {"__name__": "my_model"}
    exec(text, names)
    return names["Model"](*arguments)


def test_equal_models_have_equal_hashes_and_others_do_not() -> None:
    same = {hash_of(model(MODEL)), hash_of(model("\n\n# a comment\n" + MODEL))}
    assert len(same) == 1
    others = [
        model(MODEL, 1),
        model(MODEL.replace("SCALE * x", "SCALE + x")),  # a function that forward calls
        model(MODEL.replace("2.0", "3.0")),  # a number that it uses
        model(MODEL.replace("helper(x) @", "-helper(x) @")),
    ]
    found = {hash_of(other) for other in others}
    assert len(found) == len(others)
    assert not found & same


def test_torch_modules_by_weights_structure_and_code() -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def build(seed: int = 0, **change: Any) -> Any:
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 2, 3, **change), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)]
        return nn.Sequential(*layers).eval()

    first = hash_of(build())
    assert hash_of(build()) == first
    moved = build()
    moved[1].running_mean += 1
    hooked = build()
    hooked[0].register_forward_hook(lambda module, x, y: y * 2)
    cut = build()
    cut[2] = nn.Identity()
    others = [build(1), build(padding_mode="reflect"), moved, hooked, cut, lambda x: build()(x)]
    found = {hash_of(other) for other in others}
    assert len(found) == len(others)
    assert first not in found
    inner = build()
    assert hash_of(lambda x: inner(x)) == hash_of(lambda x: inner(x))
    assert hash_of(lambda x: inner(x)) != hash_of(lambda x: inner(2 * x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["frozen", "traced", "exported", "quantised", "bfloat16"])
def test_weights_count_wherever_a_module_has_them(kind: str) -> None:
    torch = pytest.importorskip("torch")

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU()).eval()
        make = {
            "frozen": lambda: torch.jit.freeze(torch.jit.script(net)),
            "traced": lambda: torch.jit.trace(net, torch.zeros(2, 40)),
            "exported": lambda: torch.export.export(net, (torch.zeros(2, 40),)).module(),
            "quantised": lambda: torch.ao.quantization.quantize_dynamic(net),
            "bfloat16": lambda: net.to(torch.bfloat16),
        }
        return make[kind]()

    assert hash_of(build(0)) == hash_of(build(0))
    assert hash_of(build(0)) != hash_of(build(1))


def test_the_hash_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(MODEL)
    program = (
        "from advcore import data\nfrom advcore.fingerprint import hash_of\n"
        "from my_model import Model\nprint(hash_of(data.embedded_network()), hash_of(Model()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [hash_of(data.embedded_network()), hash_of(model(MODEL))]


TORCH_MODEL = """
import torch
torch.manual_seed(VALUE)
NET, WEIGHT = torch.nn.Linear(4, 3), torch.randn(4, 3)
torch.manual_seed(0)
"""


@pytest.mark.parametrize(
    "text",
    [
        TORCH_MODEL + "def model(x): return NET(x)",
        TORCH_MODEL + "def model(x): return x @ WEIGHT",
        TORCH_MODEL + "model = lambda x: [row @ WEIGHT for row in x]",
        TORCH_MODEL + "class Model:\n net = NET\nmodel = Model()",
        "SCALE = VALUE\ndef model(x):\n def inner(): return SCALE * x\n return inner()",
        "def model(x, *, scale=VALUE): return scale * x",
        "class Model:\n scale = VALUE\nmodel = Model()",
        "class Model:\n scales = (1, [VALUE])\nmodel = Model()",
        "class Model:\n __slots__ = 'a', 'b'\nmodel = Model()\nsetattr(model, 'b', VALUE)",
        "import torch\nmodel = torch.nn.ReLU()\nsetattr(model, '_scale', VALUE)",
    ],
)
def test_values_count_wherever_the_code_has_them(text: str) -> None:
    """A value of a class, of the module, of a slot or a keyword, or named in an inner function."""
    if "torch" in text:
        pytest.importorskip("torch")

    def build(value: int) -> str:
        names: dict[str, Any] = {"__name__": "my_model"}
        exec(text.replace("VALUE", str(value)), names)
        return hash_of(names["model"])

    assert build(1) == build(1)
    assert build(1) != build(2)


def test_a_compiled_module_has_the_same_hash_after_its_first_call() -> None:
    torch = pytest.importorskip("torch")
    compiled = torch.compile(torch.nn.Linear(4, 3), backend="eager")
    before = hash_of(compiled)
    compiled(torch.zeros(2, 4))
    assert hash_of(compiled) == before
    compiled._orig_mod.bias.data += 1
    assert hash_of(compiled) != before


def test_weights_beside_an_onnx_file_count(tmp_path: Path, random_images: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    helper, path = onnx.helper, tmp_path / "m.onnx"

    def save(seed: int) -> dict[str, str]:
        (tmp_path / "weights").unlink(missing_ok=True)
        weights = np.random.default_rng(seed).random((20, 5), dtype=np.float32)
        x, y = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", size])
            for name, size in (("x", 20), ("y", 5))
        )
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        tensor = onnx.numpy_helper.from_array(weights, "w")
        graph = helper.make_graph([node], "graph", [x], [y], [tensor])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        place = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
        onnx.save(model, str(path), **place)
        source = jobs.MemorySource(random_images(2))
        return manifest.describe(None, str(path), source, Options(), {})["model"]

    first, content = save(0), path.read_bytes()
    assert save(0) == first
    assert save(1) != first
    assert path.read_bytes() == content


def test_the_device_of_a_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU of {device}")
    network, module = data.embedded_network(), torch.nn.Linear(4, 3)
    assert device_of(network, None) == device_of(module, None) == "cpu"
    assert device_of(network, "cuda:1") == "cuda (GPU of cuda:1)"
    assert device_of(torch.nn.Linear(4, 3, device="meta"), None) == "meta"
    assert device_of(lambda x: module(x), None) == "the model's own"


def test_all_code_that_decides_results_counts() -> None:
    files = [str(path) for path in _deciding_files()]
    for name in ("_core.", "/kernels/fused.py", "/solve/params.py", "/jobs/inputs.py", "/api.py"):
        assert any(name in file for file in files), name


def test_objects_that_hold_themselves_end() -> None:
    knot: list[Any] = [1]
    knot.append(knot)
    assert hash_of(knot) != hash_of([1, [1]])


def test_texts_of_options_name_arrays_by_hash() -> None:
    assert text_of((0.0, 1.0)) == "(0.0, 1.0)"
    one, other = text_of((np.zeros(3), 1)), text_of((np.ones(3), 1))
    assert one != other
    assert len(one) < 40


def test_code_version_names_what_bits_depend_on() -> None:
    assert set(code_version(False)) == {"advcore", "build", "instruction set", "numpy"}
    pytest.importorskip("torch")
    assert {"torch", "torch threads"} <= set(code_version(True))
