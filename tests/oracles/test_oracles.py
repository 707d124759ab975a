"""Oracles: NumPy models and torch models behind one contract."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data
from advcore.oracles import NumpyOracle, TorchOracle
from advcore.oracles.logits import Logits, softmax_output


class Affine:
    """``x @ A.T + b`` on images of any shape; float64 inside."""

    def __init__(self, classes: int = 3, shape: tuple[int, ...] = (2, 3)) -> None:
        rng = np.random.default_rng(0)
        self.shape = shape
        self.a = rng.standard_normal((classes, int(np.prod(shape))))
        self.b = rng.standard_normal(classes)

    def forward(self, x: Any) -> Any:
        assert x.shape[1:] == self.shape
        assert x.dtype == np.float32
        return x.reshape(len(x), -1) @ self.a.T + self.b

    def backward(self, dlogits: Any) -> Any:
        return (dlogits @ self.a).reshape(len(dlogits), *self.shape)


def images(rows: int = 4, n: int = 6) -> Any:
    return np.random.default_rng(1).random((rows, n), dtype=np.float32)


def test_numpy_oracle_passes_images_in_their_shape() -> None:
    model = Affine()
    oracle = NumpyOracle(model, (2, 3))
    assert (oracle.classes, oracle.kind) == (3, "smooth")
    x, dlogits = images(), np.eye(4, 3, dtype=np.float32)
    logits = oracle.forward(x)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, x @ model.a.T + model.b, rtol=1e-6)
    gradient = oracle.backward(dlogits)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient[:3], model.a.astype(np.float32))
    np.testing.assert_array_equal(gradient[3], np.zeros(6))


def test_numpy_oracle_names_what_is_wrong() -> None:
    model: Any = Affine()
    model.backward = None
    with pytest.raises(TypeError, match="must have a method backward, got Affine"):
        NumpyOracle(model, (2, 3))
    model = Affine()
    model.forward = lambda x: np.zeros((len(x), 2, 2))
    with pytest.raises(ValueError, match=r"\(1, K\), got \(1, 2, 2\)"):
        NumpyOracle(model, (2, 3))
    model.forward = lambda x: np.zeros((len(x), 2), int)
    with pytest.raises(TypeError, match="floating-point logits, got int64"):
        NumpyOracle(model, (2, 3))
    model.forward = lambda x: np.zeros((7, 2))
    with pytest.raises(ValueError, match=r"got \(7, 2\)"):
        NumpyOracle(model, (2, 3))
    model = Affine()
    oracle = NumpyOracle(model, (2, 3))
    model.backward = lambda d: np.zeros((len(d), 5))
    with pytest.raises(ValueError, match=r"must return shape \(2, 2, 3\), got \(2, 5\)"):
        oracle.backward(np.zeros((2, 3), np.float32))
    model.forward = lambda x: np.zeros((len(x), 4))
    with pytest.raises(ValueError, match="returned 3 logits before, now 4"):
        oracle.forward(images())


def test_single_logit_is_the_binary_form() -> None:
    model = Affine(classes=1)
    oracle = NumpyOracle(model, (2, 3))
    assert oracle.classes == 2
    x = images()
    logits = oracle.forward(x)
    np.testing.assert_array_equal(logits[:, 0], np.zeros(4))
    np.testing.assert_allclose(logits[:, 1:], x @ model.a.T + model.b, rtol=1e-6)
    dlogits = np.array([[5, 2], [5, 0], [0, -1], [1, 1]], np.float32)
    np.testing.assert_allclose(oracle.backward(dlogits), dlogits[:, 1:] @ model.a, rtol=1e-6)


def test_logits_overflow_to_infinity_without_a_warning() -> None:
    assert np.isinf(Logits().convert(np.array([[1e300, 0.0]]), 1)[0, 0])


def test_softmax_output_is_told_from_logits() -> None:
    z = np.random.default_rng(0).standard_normal((5, 10))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert softmax_output(p)
    assert softmax_output(p.astype(np.float32))
    assert not softmax_output(z)
    assert not softmax_output(p * 1.01)
    assert not softmax_output(np.concatenate([p, z]))
    half = p.astype(np.float32).view(np.uint32) & 0xFFFF0000  # as in bfloat16
    assert np.abs(half.view(np.float32).sum(axis=1) - 1).max() > 1e-4
    assert softmax_output(half.view(np.float32))
    assert not softmax_output(half.view(np.float32) * np.float32(0.5))
    assert softmax_output(p.astype(np.float16))
    assert not softmax_output(np.full((2, 3), np.nan))
    assert not softmax_output(np.zeros((0, 3)))
    assert not softmax_output(np.zeros((2, 3)))


# --- torch ---------------------------------------------------------------------------------------


@pytest.fixture
def model() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def exact(model: Any, x: Any, dlogits: Any) -> tuple[Any, Any]:
    """Logits and input gradient by a plain backward, on a copy, in float64."""
    import copy

    import torch

    twin = copy.deepcopy(model).double()
    leaf = torch.tensor(x, dtype=torch.float64).view(-1, 2, 3).requires_grad_(True)
    z = twin(leaf)
    z.backward(torch.tensor(dlogits, dtype=torch.float64))
    return z.detach().numpy(), leaf.grad.reshape(len(x), -1).numpy()


def test_torch_oracle_agrees_with_float64(model: Any) -> None:
    oracle = TorchOracle(model, (2, 3))
    assert (oracle.classes, oracle.kind) == (3, "saturating")
    assert str(oracle.device) == "cpu"
    x, dlogits = images(), np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    z, gradient = exact(model, x, dlogits)
    np.testing.assert_allclose(oracle.forward(x), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(oracle.backward(dlogits), gradient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(oracle.forward(x, grad=False), z, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="needs a forward with grad=True"):
        oracle.backward(dlogits)


def test_parameters_keep_their_state(model: Any) -> None:
    model[1].weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model[3].bias.grad = kept = model[3].bias.detach().clone()
    oracle = TorchOracle(model, (2, 3))
    oracle.forward(images())
    oracle.backward(np.ones((4, 3), np.float32))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model[3].bias.grad is kept
    assert [p.grad is None for p in model.parameters()] == [True, True, True, False]


def test_input_is_the_callers_memory() -> None:
    torch = pytest.importorskip("torch")
    seen = []
    weight = torch.eye(6)[:, :3]

    def model(x: Any) -> Any:
        seen.append((x.data_ptr(), tuple(x.shape), x.requires_grad, torch.is_grad_enabled()))
        return x.flatten(1) @ weight

    oracle = TorchOracle(model, (2, 3))
    x = images()
    oracle.forward(x)
    assert seen[-1] == (x.ctypes.data, (4, 2, 3), True, True)
    oracle.forward(x, grad=False)
    assert seen[-1] == (x.ctypes.data, (4, 2, 3), False, False)


def test_model_that_writes_to_its_input_gets_copies() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))

    def model(x: Any) -> Any:
        return x.mul_(2).flatten(1) @ weight

    oracle = TorchOracle(model, (2, 3))
    x = images()
    before = x.copy()
    np.testing.assert_allclose(oracle.forward(x), 2 * before @ weight.numpy(), rtol=1e-5)
    dlogits = np.ones((4, 3), np.float32)
    np.testing.assert_allclose(oracle.backward(dlogits), 2 * dlogits @ weight.T.numpy(), rtol=1e-5)
    oracle.forward(x, grad=False)
    np.testing.assert_array_equal(x, before)


def test_read_only_and_strided_inputs_are_copied(model: Any) -> None:
    oracle = TorchOracle(model, (2, 3))
    x = images()
    z = oracle.forward(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(oracle.forward(frozen), z)
    np.testing.assert_array_equal(oracle.forward(np.asfortranarray(x)), z)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_model_of_another_precision(model: Any, dtype: str) -> None:
    import torch

    oracle = TorchOracle(model.to(getattr(torch, dtype)), (2, 3))
    x, dlogits = images(), np.ones((4, 3), np.float32)
    z, gradient = exact(model, x, dlogits)
    tolerance = 1e-6 if dtype == "float64" else 0.05
    logits = oracle.forward(x)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, z, atol=tolerance)
    np.testing.assert_allclose(oracle.backward(dlogits), gradient, atol=tolerance)


def test_callers_grad_modes_and_autocast_do_not_matter(model: Any) -> None:
    import torch

    oracle = TorchOracle(model, (2, 3))
    x, dlogits = images(), np.ones((4, 3), np.float32)
    z, gradient = oracle.forward(x), oracle.backward(dlogits)
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu")):
        with context:
            np.testing.assert_array_equal(oracle.forward(x), z)
            np.testing.assert_array_equal(oracle.backward(dlogits), gradient)
            TorchOracle(model, (2, 3))


def test_a_first_gradient_does_not_import_sympy() -> None:
    pytest.importorskip("torch")
    code = """
import sys, torch
from torch import nn
from advcore.network import Network
from advcore.oracles.torch_oracle import TorchOracle
import numpy

before = "sympy" in sys.modules
model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
Network.from_torch(model, (2, 3))
oracle = TorchOracle(model, (2, 3))
oracle.forward(numpy.ones((2, 6), "f4"))
gradient = oracle.backward(numpy.eye(3, dtype="f4")[:2])
assert (gradient == model[1].weight[:2].detach().numpy()).all()
print(before, "sympy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    )
    before, after = done.stdout.split()
    assert before == after


def test_torch_single_logit_is_the_binary_form() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0)[:, None]
    oracle = TorchOracle(lambda x: x.flatten(1) @ weight, (2, 3))
    assert oracle.classes == 2
    x = images()
    expected = np.stack([np.zeros(4), x @ np.arange(6.0)], axis=1)
    np.testing.assert_allclose(oracle.forward(x), expected, rtol=1e-6)
    dlogits = np.array([[9, 1], [9, -2]], np.float32)
    oracle.forward(x[:2])
    np.testing.assert_allclose(oracle.backward(dlogits), np.outer([1, -2], np.arange(6.0)))


def test_outputs_that_are_no_logits_are_named() -> None:
    torch = pytest.importorskip("torch")
    for output, error, text in (
        (lambda x: (x, x), TypeError, r"tensor \(B, K\), got tuple"),
        (lambda x: x.numpy(), TypeError, "got ndarray"),
        (lambda x: x.flatten(1).argmax(1, keepdim=True), TypeError, "got torch.int64"),
        (lambda x: x, ValueError, r"got \(1, 2, 3\)"),
        (lambda x: x.sum((1, 2)), ValueError, r"got \(1,\)"),
        (lambda x: torch.zeros(5, 3), ValueError, r"got \(5, 3\)"),
    ):
        with pytest.raises(error, match=text):
            TorchOracle(output, (2, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be callable, got int"):
        TorchOracle(3, (2, 3))  # type: ignore[arg-type]


def test_constant_model_has_zero_gradient() -> None:
    torch = pytest.importorskip("torch")
    constant = torch.ones(3, requires_grad=True)
    for output in (torch.zeros(3), constant):  # without a graph, and with one that misses x
        oracle = TorchOracle(lambda x, z=output: z.repeat(len(x), 1), (2, 3))
        oracle.forward(images())
        gradient = oracle.backward(np.ones((4, 3), np.float32))
        np.testing.assert_array_equal(gradient, np.zeros((4, 6), np.float32))


def test_model_that_cuts_the_graph_is_named(model: Any) -> None:
    import torch

    def cut(x: Any) -> Any:
        with torch.no_grad():
            return model(x)

    with pytest.raises(ValueError, match=r"differentiable with torch\.autograd"):
        TorchOracle(cut, (2, 3))


def test_not_a_number_stays_in_its_row() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.eye(6)[:, :3]
    oracle = TorchOracle(lambda x: torch.sqrt(x.flatten(1)) @ weight, (2, 3))
    x = images()
    x[1, 0] = -1
    logits = oracle.forward(x)
    gradient = oracle.backward(np.ones((4, 3), np.float32))
    assert np.isnan(logits).any(axis=1).tolist() == [False, True, False, False]
    assert np.isnan(gradient).any(axis=1).tolist() == [False, True, False, False]


def test_smoothing_needs_slots() -> None:
    nn = pytest.importorskip("torch").nn
    oracle = TorchOracle(nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU()).eval(), (2, 3))
    assert oracle.kind == "kinked"
    with pytest.raises(ValueError, match="slots must be given"):
        oracle.forward(images(), np.ones(4, np.float32))


# --- the torch path against the native one


def wrapped(network: advcore.Network) -> Any:
    """The network as a module of a type that is not lowered."""
    nn = pytest.importorskip("torch").nn

    class User(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.inner = network.to_torch()

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    return User().eval()


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_smoothed_pass_of_torch_and_native_agree(activation: str, random_network: Any) -> None:
    network = random_network(sizes=(20, 16, 12, 5), activation=activation)
    pytest.importorskip("torch")
    oracle = TorchOracle(wrapped(network), (20,))
    assert oracle.kind == network.kind != "smooth"
    x, moved = images(40, 20), images(41, 20)[1:]
    slots, k = np.arange(40, dtype=np.int32), np.tile(np.float32([0, 0.05, 0.3, 2]), 10)
    scales = np.zeros((40, 3), np.float32)
    network.core.forward(x, None, scales, True)
    oracle.forward(x, slots=slots, record_scales=np.ones(40, bool))
    dlogits = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    z, theirs = network.core.forward(moved, k, scales), oracle.forward(moved, k, slots)
    np.testing.assert_allclose(theirs, z, atol=1e-5)
    # a narrow spline turns rounding of its argument into rounding / 2d
    gradient = network.core.backward(dlogits)
    np.testing.assert_allclose(oracle.backward(dlogits), gradient, atol=1e-4)


@pytest.mark.parametrize(("targeted", "share"), [(False, 0.9), (True, 0.8)])
def test_torch_path_ends_where_the_native_one_does(targeted: bool, share: float) -> None:
    """The embedded network of sigmoids. Rounding decides now and then which minimum is found: two
    instruction sets of the engine agree on 95% of 200 digits. Of a torch path that
    smooths nothing 65% (untargeted) and 45% of these would agree.
    """
    network = data.embedded_network()
    module = wrapped(network)
    x, labels = (v[:20] for v in data.embedded_digits())
    aim = (labels + 1 + np.arange(20) % 9) % 10 if targeted else labels
    kind: dict[str, Any] = {"targets" if targeted else "labels": aim}
    native = advcore.minimize_distortion(network, x, **kind)
    result = advcore.minimize_distortion(lambda rows: 1 * module(rows), x, **kind)
    assert (native.engine["path"], result.engine["path"]) == ("native", "torch")
    np.testing.assert_array_equal(result.success, native.success)
    close = np.isclose(result.distortion, native.distortion, rtol=1e-3, atol=0)
    assert close.mean() >= share


def test_a_run_leaves_the_compiler_of_torch_alone(tmp_path: Any) -> None:
    """Importing it takes a second."""
    pytest.importorskip("torch")
    code = """
import sys, numpy, torch, advcore
from torch import nn
layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.Tanh()
model = nn.Sequential(*layers).eval()
before = "torch._dynamo" in sys.modules
images = numpy.random.rand(3, 1, 4, 4).astype("f4")
result = advcore.minimize_distortion(lambda x: 1 * model(x), images)
print(result.engine["path"], before, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    path, before, after = done.stdout.split()
    assert (path, after) == ("torch", before)
