"""Machine code of the kernels without a GPU, their configurations, and what a plan packs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import itertools
import os
import re
import struct
import subprocess
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_build import ROOT
from support.networks import make_network

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from advcore.kernels import launch as launching  # noqa: E402
from advcore.kernels import smoothed_relu as relu  # noqa: E402
from advcore.kernels.configs import (  # noqa: E402
    MANY_SLOTS,
    TABLE,
    Config,
    config_for,
    shared_memory,
)
from advcore.kernels.geometry import Geometry, padded  # noqa: E402
from advcore.kernels.plan import ADDRESSES, Plan, plan_for  # noqa: E402
from advcore.kernels.precision import PRECISIONS, split  # noqa: E402
from advcore.kernels.slots import PROBLEM  # noqa: E402
from advcore.kernels.steps import PARAMETERS  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
STACK = 1024  # bytes that a thread may spill: a few hundred are addresses used once a tile


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Triton's cache of this file's own: what is tested is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and so on of a kernel: cuobjdump."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    process = subprocess.run(
        [CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True
    )
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", process.stdout)}


def assert_fits(plan: Plan, folder: Path) -> None:
    assert len(plan.compiled) == len(plan.steps)
    for step, code in zip(plan.steps, plan.compiled, strict=True):
        assert code.name == step.kernel.__name__
        assert code.shared <= shared_memory(plan.arch)
        assert resources(code.cubin, folder)["STACK"] <= STACK
        tensor_cores = "wgmma" in code.ptx or "mma.sync" in code.ptx or "tcgen05.mma" in code.ptx
        assert tensor_cores == (plan.precision != "ieee" and code.name != "margin_loss")
        assert ".nc" not in re.findall(r"ld\.global\S*", code.ptx)  # h is written in between
        formats = [struct.calcsize(kind) for kind in code.formats]
        parameters = re.findall(r"^\s*\.param \.(\w+)", code.ptx, re.MULTILINE)
        assert formats == [int(kind[1:]) // 8 for kind in parameters]
        assert len(formats) >= len(PARAMETERS)


@pytest.mark.parametrize(
    ("widths", "activation", "precision"),
    [
        ((784, 100, 100, 10), "sigmoid", "tf32x3"),
        ((784, 100, 100, 10), "relu", "ieee"),
        ((784, 512, 512, 10), "tanh", "tf32x3"),
        ((784, 1000, 1000, 10), "relu", "tf32x3"),
    ],
)
def test_default_configuration_on_hopper(
    widths: tuple[int, ...], activation: str, precision: str, tmp_path: Path
) -> None:
    plan = Plan(make_network(widths, activation), precision, "cuda:90")
    assert plan.config.fused == (max(widths[1:]) <= 512)
    assert_fits(plan, tmp_path)


@pytest.mark.parametrize("arch", [80, 100])
def test_default_configuration_elsewhere(arch: int, tmp_path: Path) -> None:
    assert_fits(Plan(make_network((784, 100, 10), "relu"), "tf32x3", arch), tmp_path)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", relu.TYPES)
def test_smoothed_relu(dtype: Any, aligned: bool, tmp_path: Path) -> None:
    constants = {"SLOPE": 0.01, "WIDE": dtype == torch.float64, "BLOCK": relu.LARGEST_BLOCK}
    tiny = {"TINY": torch.finfo(dtype).tiny}
    for kernel, more, tensors in (
        (relu.smoothed_relu_forward, tiny, 4), (relu.smoothed_relu_backward, {}, 3)
    ):  # fmt: skip
        code = relu.compiled(
            kernel, relu.TYPES[dtype], (aligned,) * (tensors + 1), constants | more, 90
        )
        assert code.name == kernel.__name__
        numbers = ("i",) * (4 if tensors == 4 else 1)
        assert [kind[1:] for kind in code.formats][: tensors + len(numbers)] == [
            *"Q" * tensors, *numbers,
        ]  # fmt: skip
        used = resources(code.cubin, tmp_path)
        assert used["STACK"] == 0
        assert used["REG"] <= 128  # of 65,536, for 512 threads of a multiprocessor
        assert not code.shared
        assert ".f32.ftz" not in code.ptx.replace("cvt", "")
        wide = re.findall(r"(?:ld|st)\.global\.v[24]\.b(?:32|64)", code.ptx)
        assert bool(wide) == aligned


def test_smoothed_relu_is_launched_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU on tensors that say that they are there."""

    class There(torch.Tensor):  # type: ignore[misc]
        is_cuda = True
        device = types.SimpleNamespace(index=0)

    cuda = Driver()
    monkeypatch.setattr(launching, "_cuda", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: types.SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tensors = [torch.zeros(3, 2000, 1, 1), torch.zeros(3, 2000), torch.zeros(3, 2000, 1, 1)]
    h, d, out = (tensor.as_subclass(There) for tensor in tensors)
    cuda.expected = [bytes(8)] * 4 + [bytes(4)] * 4 + [bytes(8)] * 2
    relu.forward(h, d[:, :, None, None], 0.0, out)
    assert cuda.calls["cuModuleGetFunction"][2] == b"smoothed_relu_forward"
    _, *sizes = cuda.calls["cuLaunchKernel"][:8]
    assert sizes == [3 * 2, 1, 1, 128, 1, 1, 0]
    pointers = [struct.pack("<Q", tensor.data_ptr()) for tensor in tensors]
    assert list(cuda.packed[:3]) == pointers
    assert [struct.unpack("<i", packed)[0] for packed in cuda.packed[4:8]] == [
        2000, 1, 2000, 2000,
    ]  # fmt: skip
    assert cuda.calls["cuCtxSetCurrent"]
    relu._loaded.cache_clear()


def test_many_classes(tmp_path: Path) -> None:
    plan = Plan(make_network((20, 65536), "relu"), "ieee", 90, Config(False, 64, 128, 32, 4, 2))
    code = plan.steps[1].compiled(90)
    assert code.name == "margin_loss"
    assert code.shared <= shared_memory(90)


def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from advcore.kernels.plan import Plan\n"
        "from support.networks import make_network\n"
        "Plan(make_network((48, 20, 10)), 'ieee', 90).compiled"
    )
    kept = []
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
            check=True,
        )
        kept.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.cubin")})
    assert kept[0]
    assert kept[1] == kept[0]


def test_packed_arguments() -> None:
    plan = Plan(make_network((30, 20, 10)), "ieee", 90, Config(False, 16, 32, 16, 4, 2))
    addresses = {name: 4096 * (i + 1) for i, name in enumerate(ADDRESSES)}
    launches = plan.launches(addresses, slots=100, confidence=0.5)
    names = ["linear_forward"] * 2 + ["margin_loss"] + ["linear_backward"] * 2
    assert [launch.name for launch in launches] == names
    assert launches[0].grid == (7, 1, 1)
    for launch in launches:
        assert launch.threads == 128
        assert launch.cubin[:4] == b"\x7fELF"
        values = dict(zip(PARAMETERS, launch.arguments, strict=False))
        for name, packed in values.items():
            if name == "confidence":
                assert packed == struct.pack("<f", 0.5)
            else:
                same = addresses["problems"] if name in ("ints", "floats", "longs") else None
                assert packed == struct.pack("<Q", same or addresses[name])
        assert not any(map(any, launch.arguments[len(PARAMETERS) :]))
    with pytest.raises(ValueError, match="vectors must be a multiple of 16"):
        plan.launches({**addresses, "vectors": 4}, slots=1, confidence=0)
    with pytest.raises(ValueError, match="addresses must be"):
        plan.launches({"x": 16}, slots=1, confidence=0)


class Driver:
    """Stands in for libcuda: what is asked of it."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.error = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls[name] = arguments
            if name == "cuModuleGetFunction":
                arguments[0]._obj.value = 77
            if name == "cuLaunchKernel":
                sizes = [len(packed) for packed in self.expected]
                places = zip(arguments[9], sizes, strict=True)
                self.packed = tuple(ctypes.string_at(at, size) for at, size in places)
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_STAND_IN"
                return 0
            return self.error

        return call


def test_launches_through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Driver()
    monkeypatch.setattr(launching, "_cuda", lambda: cuda)
    stream = types.SimpleNamespace(cuda_stream=55)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    plan = Plan(make_network((784, 100, 10)), config=Config(True, 64, 128, 32, 4, 2))
    addresses = {name: 4096 * (i + 1) for i, name in enumerate(ADDRESSES)}
    (launch,) = plan.launches(addresses, slots=1000, confidence=0.5)
    loaded = launching.LoadedKernel(plan.compiled[0])
    assert cuda.calls["cuModuleLoadData"][1] == launch.cubin
    assert cuda.calls["cuModuleGetFunction"][2] == b"propagate"
    assert launch.shared > launching.DEFAULT_SHARED
    assert cuda.calls["cuFuncSetAttribute"][1:] == (8, launch.shared)
    cuda.expected = launch.arguments
    loaded.launch(launch)
    function, *sizes = cuda.calls["cuLaunchKernel"][:8]
    assert function.value == 77
    assert sizes == [16, 1, 1, 128, 1, 1, launch.shared]
    assert cuda.calls["cuLaunchKernel"][8].value == 55
    assert cuda.packed == launch.arguments
    cuda.error = 700
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel propagate: CUDA_ERROR_STAND_IN \(700"):
        loaded.launch(launch)


def test_a_plan_lets_its_network_go() -> None:
    """Plans are kept by their networks, weakly: one that held its network would stay for ever."""
    network = make_network((30, 100, 3))
    plans = weakref.WeakKeyDictionary({network: Plan(network)})
    (plan,) = plans.values()
    del network
    gc.collect()
    assert not plans
    assert plan.weights().numel() == plan.geometry.matrices[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packed_weights(precision: str) -> None:
    network = make_network((30, 100, 20, 3))
    plan = Plan(network, precision)
    g, packed = plan.geometry, plan.weights()
    assert packed.dtype == torch.float32
    assert packed.numel() == g.matrices[-1]
    for i, layer in enumerate(network.layers):
        shape, size = (g.padded_outs[i], g.padded_ins[i]), g.matrix_floats[i]
        weight = torch.zeros(shape)
        weight[: layer.outputs, : layer.inputs] = torch.tensor(layer.weight)
        parts = split(weight) if precision == "tf32x3" else (weight,)
        for j, part in enumerate(parts):
            forward = packed[g.matrices[i] + j * size :][:size].reshape(shape)
            backward = packed[g.transposes[i] + j * size :][:size].reshape(shape[::-1])
            assert torch.equal(forward, part)
            assert torch.equal(backward, part.T)
        bias = packed[g.biases[i] :][: shape[0]]
        assert np.array_equal(bias[: layer.outputs], layer.bias)
        assert not bias[layer.outputs :].any()


def test_geometry() -> None:
    assert [padded(n) for n in (1, 16, 17, 64, 65, 100, 130, 1000)] == [
        16, 16, 32, 64, 128, 128, 192, 1024,
    ]  # fmt: skip
    network = make_network((784, 100, 130, 10))
    geometry = Geometry.from_network(network, "ieee")
    for config in itertools.chain(*TABLE.values()):
        tiles = config.tiles(geometry)
        for columns, tile in zip(geometry.padded_outs, tiles["BNS"], strict=True):
            assert columns % tile == 0
        assert all(tile <= config.BN for tile in tiles["BNS"] + tiles["BACK_BNS"])
        assert all(16 <= tile <= config.BK for tile in tiles["BKS"] + tiles["BACK_BKS"])


def test_problem_records_are_the_engine_s() -> None:
    assert PROBLEM.itemsize % 16 == 0
    offsets = sorted((at, kind.itemsize) for kind, at, *_ in PROBLEM.fields.values())
    for (at, size), (after, _) in itertools.pairwise(offsets):
        assert at + size <= after


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tile_sizes_of_the_table(precision: str) -> None:
    for widths, fused in (((784, 100, 10), True), ((3072, 2000, 10), False), ((5, 9000), False)):
        geometry = Geometry.from_network(make_network(widths), precision)
        rows = []
        for slots in (1, MANY_SLOTS - 1, MANY_SLOTS):
            config = config_for(geometry, precision, slots)
            assert config.fused == fused
            rows.append(config.BM)
        assert rows == ([32, 32, 64] if fused else [64, 64, 64])


def test_the_plan_of_a_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    plan = plan_for(make_network((784, 100, 10)), "cuda", MANY_SLOTS)
    assert (plan.arch, plan.precision, plan.config.BM) == (86, "tf32x3", 64)


@pytest.mark.parametrize(
    "change", [{"BM": 24}, {"BK": 8}, {"warps": 3}, {"stages": 0}, {"BN": 256}]
)
def test_configurations_that_cannot_be(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        dataclasses.replace(Config(True, 64, 128, 32, 4, 2), **change)


def test_precisions_are_checked() -> None:
    with pytest.raises(ValueError, match="precision must be one of"):
        Plan(make_network((5, 3)), "tf32")
