"""Networks: layers, files, and the lowering of torch modules against torch in float64."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from advcore.network import ACTIVATIONS, Layer, Network, Unsupported
from advcore.network.safetensors import read_tensors, write_tensors


def random_network(activations: list[str], width: int = 7, inputs: int = 5) -> Network:
    rng = np.random.default_rng(3)
    sizes = [inputs, *[width] * (len(activations) - 1), 4]
    return Network(
        [
            Layer(
                rng.standard_normal((sizes[i + 1], sizes[i])).astype(np.float32),
                rng.standard_normal(sizes[i + 1]).astype(np.float32),
                name,
                0.2,
            )
            for i, name in enumerate(activations)
        ]
    )


def test_import_of_network_and_oracles_loads_no_torch() -> None:
    code = "import sys, advcore.network, advcore.oracles, advcore.reference, advcore.result\n"
    code += "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shared", ["activation", "linear"])
def test_modules_used_twice_are_lowered_twice(shared: str) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    act, mid = torch.nn.Tanh(), torch.nn.Linear(8, 8)
    parts = [torch.nn.Linear(5, 8), act, mid, act if shared == "activation" else torch.nn.Tanh()]
    if shared == "linear":
        parts += [mid, torch.nn.Tanh()]
    module = torch.nn.Sequential(*parts, torch.nn.Linear(8, 3)).eval()
    x = torch.rand(7, 5)
    network = Network.from_torch(module, (5,))
    assert len(network.layers) == (3 if shared == "activation" else 4)
    np.testing.assert_allclose(network.forward(x.numpy()), module(x).detach(), atol=1e-6)


@pytest.mark.parametrize("protocol", [0, 2])
def test_modules_stored_with_the_former_name_of_normalize_are_lowered(protocol: int) -> None:
    """Version 0.1 stored the class as ``advcore.torch_modules.Normalize``."""
    torch = pytest.importorskip("torch")
    from advcore.network import Normalize

    torch.manual_seed(0)
    module = torch.nn.Sequential(Normalize(0.2, 0.5), torch.nn.Linear(5, 3)).eval()
    stored = pickle.dumps(module, protocol)
    name, former_name = b"cadvcore.network\nNormalize\n", b"cadvcore.torch_modules\nNormalize\n"
    assert stored.count(name) == 1
    loaded = pickle.loads(stored.replace(name, former_name))
    assert type(loaded[0]) is Normalize
    x = torch.rand(7, 5)
    network = Network.from_torch(loaded, (5,))
    assert len(network.layers) == 1
    np.testing.assert_allclose(network.forward(x.numpy()), module(x).detach(), atol=1e-6)


def test_layer_copies_and_freezes_its_arrays() -> None:
    weight = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    layer = Layer(weight, np.zeros(2))  # type: ignore[arg-type]
    weight[0, 0] = 9
    assert layer.weight.dtype == np.float32
    assert layer.weight.flags.c_contiguous
    np.testing.assert_array_equal(layer.weight, [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="read-only"):
        layer.weight[0, 0] = 1


@pytest.mark.parametrize(
    ("weight", "bias", "activation", "error", "text"),
    [
        (np.zeros((2, 3), int), np.zeros(2), "relu", TypeError, "weight must be float32"),
        (np.zeros(3), np.zeros(2), "relu", ValueError, "weight must have 2"),
        (np.zeros((2, 3)), np.zeros(3), "relu", ValueError, r"bias must have shape \(2,\)"),
        (np.zeros((2, 3)), np.zeros(2), "swish", ValueError, "got 'swish'"),
        (np.full((2, 3), np.nan), np.zeros(2), "relu", ValueError, "weight must be finite"),
        (np.zeros((2, 3)), np.full(2, 1e300), "relu", ValueError, "bias must be finite"),
    ],
)
def test_layer_refuses(weight: Any, bias: Any, activation: str, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Layer(weight, bias, activation)


def test_network_refuses_what_does_not_chain() -> None:
    first = Layer(np.zeros((3, 2), np.float32), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="at least one Layer"):
        Network([])
    with pytest.raises(ValueError, match=r"layers\[1\] must take 3 values"):
        Network([first, first])
    with pytest.raises(TypeError, match=r"layers\[0\] must be a Layer, got str"):
        Network(["relu"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least 2 logits"):
        Network([Layer(np.zeros((1, 2), np.float32), np.zeros(1, np.float32))])


def test_save_and_load_keep_every_bit(tmp_path: Any) -> None:
    network = random_network(list(ACTIVATIONS))
    network.save(tmp_path / "n.safetensors", {"licence": "Apache-2.0"})
    loaded = Network.load(tmp_path / "n.safetensors")
    assert [layer.activation for layer in loaded.layers] == list(ACTIVATIONS)
    assert [layer.slope for layer in loaded.layers] == [0.2] * len(ACTIVATIONS)
    for a, b in zip(network.layers, loaded.layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        np.testing.assert_array_equal(a.bias, b.bias)
    assert read_tensors(tmp_path / "n.safetensors")[1]["licence"] == "Apache-2.0"


def test_file_is_what_the_safetensors_package_reads_and_writes(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    network = random_network(["relu", "identity"])
    network.save(tmp_path / "ours.safetensors")
    theirs = safetensors.load_file(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(theirs["layers.1.weight"], network.layers[1].weight)
    safetensors.save_file(theirs, tmp_path / "theirs.safetensors", {"a": "b"})
    tensors, notes = read_tensors(tmp_path / "theirs.safetensors")
    assert notes == {"a": "b"}
    assert sorted(tensors) == sorted(theirs)
    np.testing.assert_array_equal(tensors["layers.0.bias"], network.layers[0].bias)


def test_load_refuses_other_files(tmp_path: Any) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="not a safetensors file"):
        Network.load(path)
    write_tensors(path, {"a": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="metadata 'format'"):
        Network.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(
        ValueError, match=r"needs the 12 bytes from 0 on, its offsets are \[0, 12\]"
    ):
        read_tensors(path)
    with pytest.raises(TypeError, match="must be float32, got float64"):
        write_tensors(path, {"a": np.zeros(3)})  # type: ignore[dict-item]


def test_pickle_and_copy_give_the_same_network() -> None:
    network = random_network(["tanh", "identity"])
    for twin in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        np.testing.assert_array_equal(twin.layers[0].weight, network.layers[0].weight)
        assert repr(twin) == "Network(5 -> 7 tanh -> 4 identity)"


def test_kind_is_that_of_the_activations() -> None:
    assert random_network(["relu", "identity"]).kind == "kinked"
    assert random_network(["tanh", "leaky_relu", "identity"]).kind == "kinked"
    assert random_network(["gelu", "tanh", "identity"]).kind == "saturating"
    assert random_network(["sigmoid", "identity"]).kind == "saturating"
    assert random_network(["gelu", "gelu_tanh", "softplus", "identity"]).kind == "smooth"


# --- torch ---------------------------------------------------------------------------------------


def trained(module: Any, seed: int = 0) -> Any:
    """The module in eval mode, with statistics and affine parts of BatchNorm away from 0 and 1."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if hasattr(child, "running_var") and child.running_var is not None:
            shape = child.running_var.shape
            child.running_mean.copy_(torch.randn(shape, generator=generator))
            child.running_var.copy_(torch.rand(shape, generator=generator) + 0.2)
            if child.affine:
                child.weight.data.copy_(torch.randn(shape, generator=generator))
                child.bias.data.copy_(torch.randn(shape, generator=generator))
    return module.eval()


def value_and_gradient(module: Any, x: Any, seed: Any) -> tuple[Any, Any]:
    import torch

    leaf = x.clone().requires_grad_(True)
    z = module(leaf)
    (gradient,) = torch.autograd.grad(z, leaf, seed.expand_as(z))
    return z.detach(), gradient


def assert_lowered(module: Any, shape: tuple[int, ...], layers: list[str]) -> None:
    """Same logits and input gradients as the module in float64, up to float32 weights."""
    import torch

    network = Network.from_torch(module, shape)
    assert [layer.activation for layer in network.layers] == layers
    exact, twin = copy.deepcopy(module).double(), network.to_torch().double()
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((6, *shape), generator=generator, dtype=torch.float64)
    seed = torch.randn(network.classes, generator=generator, dtype=torch.float64)
    z, gradient = value_and_gradient(exact, x, seed)
    z_twin, gradient_twin = value_and_gradient(twin, x, seed)
    assert float((z - z_twin).abs().max()) < 2e-6 * max(1.0, float(z.abs().max()))
    scale = max(1.0, float(gradient.abs().max()))
    assert float((gradient - gradient_twin).abs().max()) < 5e-6 * scale


def modules() -> dict[str, tuple[Any, tuple[int, ...], list[str]]]:
    nn = pytest.importorskip("torch").nn
    from advcore.network import Normalize

    nested = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Identity()),
        nn.Sequential(nn.Linear(12, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.4))),
        nn.Linear(8, 5, bias=False),
    )
    every = nn.Sequential(
        nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.LeakyReLU(0.3),
        nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Softplus(),
        nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.GELU(approximate="tanh"), nn.Linear(6, 4),
    )  # fmt: skip
    names = ["relu", "leaky_relu", "sigmoid", "tanh", "softplus", "gelu", "gelu_tanh", "identity"]
    image = (3, 2, 2)
    return {
        "nested": (nested, image, ["relu", "identity"]),
        "every activation": (every, (12,), names),
        "bare Linear": (nn.Linear(12, 3), (12,), ["identity"]),
        "Linear Linear": (
            nn.Sequential(nn.Linear(12, 6), nn.Linear(6, 3)), (12,), ["identity", "identity"],
        ),
        "activation at the end": (
            nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid()),
            (12,), ["tanh", "sigmoid"],
        ),
        "norm before the activation": (
            nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
            (12,), ["relu", "identity"],
        ),
        "norm after the activation": (
            nn.Sequential(nn.Linear(12, 6), nn.Sigmoid(), nn.BatchNorm1d(6), nn.Linear(6, 3)),
            (12,), ["sigmoid", "identity"],
        ),
        "norms at both ends": (
            nn.Sequential(
                nn.BatchNorm1d(12, affine=False), nn.Linear(12, 3), nn.BatchNorm1d(3, eps=0.1)
            ),
            (12,), ["identity"],
        ),
        "norm after the last activation": (
            nn.Sequential(nn.Linear(12, 3), nn.Tanh(), nn.BatchNorm1d(3)),
            (12,), ["tanh", "identity"],
        ),
        "two norms": (
            nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3)),
            image, ["identity"],
        ),
        "norm over channels of sequences": (
            nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 3)),
            (3, 4), ["identity"],
        ),
        "normalised images": (
            nn.Sequential(
                Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]), nn.Flatten(), nn.Linear(12, 3)
            ),
            image, ["identity"],
        ),
        "normalised by one number": (
            nn.Sequential(Normalize(0.1307, 0.3081), nn.Linear(12, 3)), (12,), ["identity"],
        ),
        "flatten in two steps": (
            nn.Sequential(nn.Flatten(2, 3), nn.Flatten(-2), nn.Linear(12, 3)),
            image, ["identity"],
        ),
    }  # fmt: skip


CASES = (
    "nested", "every activation", "bare Linear", "Linear Linear", "activation at the end",
    "norm before the activation", "norm after the activation", "norms at both ends",
    "norm after the last activation", "two norms", "norm over channels of sequences",
    "normalised images", "normalised by one number", "flatten in two steps",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("double", [False, True])
def test_lowered_network_is_the_module(case: str, double: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    module, shape, layers = modules()[case]
    module = trained(module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert_lowered(module.double() if double else module, shape, layers)
    after = module.float().state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_case_is_tested() -> None:
    assert tuple(modules()) == CASES


@pytest.mark.parametrize("last", ["identity", "tanh"])
def test_single_logit_becomes_two_classes(last: str) -> None:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    parts = [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1), *([nn.Tanh()] if last == "tanh" else [])]
    model = nn.Sequential(*parts).eval()
    network = Network.from_torch(model, (4,))
    x = torch.rand(5, 4)
    z = network.to_torch()(x)
    assert network.classes == 2
    assert torch.equal(z[:, 0], torch.zeros(5))
    torch.testing.assert_close(z[:, 1:], model(x))
    assert len(network.layers) == (2 if last == "identity" else 3)


def unsupported() -> dict[str, tuple[Any, str]]:
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return torch.relu(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
            return gradient

    class StraightThrough(nn.Module):
        def forward(self, x: Any) -> Any:
            return Straight.apply(x)

    class Branching(nn.Linear):
        def forward(self, x: Any) -> Any:
            return super().forward(x) if x.sum() > 0 else -x

    def linear() -> Any:
        return nn.Linear(4, 3)

    patched = linear()
    patched.forward = lambda x: x
    infinite = linear()
    infinite.weight.data[0, 0] = float("inf")
    huge = linear().double()
    huge.weight.data[0, 0] = 1e300
    training = nn.Sequential(linear(), nn.Dropout(0.5))
    batch = nn.BatchNorm1d(4, track_running_stats=False)
    seq = nn.Sequential
    return {
        "backward of its own": (seq(linear(), StraightThrough()), "a backward of its own"),
        "branching": (Branching(4, 4), "reads a value of a tensor"),
        "convolution": (seq(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 1)), "only convolutions of"),
        "softmax": (seq(linear(), nn.Softmax(1)), r"aten._softmax.default .*no native form"),
        "deep": (
            seq(seq(seq(linear(), nn.ELU()))),
            r"aten.elu.default \(elu_default\): it has no native",
        ),
        "patched": (patched, "is not the result of one of its"),
        "half": (linear().half(), "torch.float16"),
        "mixed": (seq(linear(), nn.Linear(3, 3).double()), "the model raised RuntimeError"),
        "infinite": (infinite, "its weight is not finite"),
        "huge": (huge, "weight must be finite in float32"),
        "meta": (nn.Linear(4, 3, device="meta"), "no dense data"),
        "softplus": (seq(linear(), nn.Softplus(beta=2)), "only beta 1 and threshold 20, got 2"),
        "no Linear before": (seq(nn.ReLU(), linear()), r"aten.relu.default .*has no Linear"),
        "two activations": (seq(linear(), nn.ReLU(), nn.Tanh()), r"aten.tanh.default .* no Linear"),
        "no Linear": (nn.Tanh(), "has no Linear"),
        "sizes": (nn.Linear(5, 3), "the model raised RuntimeError"),
        "batch statistics": (seq(batch, linear()), "it normalises by the batch"),
        "flatten of the batch": (seq(nn.Flatten(0), nn.Unflatten(0, (-1, 4))), "across the images"),
        "training": (training, "training mode"),
        "not a module": (lambda x: x, r"model \(function\): not a torch.nn.Module"),
    }


REFUSED = (
    "backward of its own", "branching", "convolution", "softmax", "deep", "patched", "half",
    "mixed", "infinite", "huge", "meta", "softplus", "no Linear before", "two activations",
    "no Linear", "sizes", "batch statistics", "flatten of the batch", "training", "not a module",
)  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_unsupported_with_a_reason(case: str) -> None:
    model, reason = unsupported()[case]
    if case not in ("training", "not a module"):
        model.eval()
    with pytest.raises(Unsupported, match=reason) as caught:
        Network.from_torch(model, (4,))
    assert caught.value.reason == str(caught.value)


def test_every_refusal_is_tested() -> None:
    assert tuple(unsupported()) == REFUSED


def test_normalize_checks_its_numbers() -> None:
    pytest.importorskip("torch")
    from advcore.network import Normalize

    with pytest.raises(ValueError, match="std must be positive"):
        Normalize(0.5, [0.1, 0.0])
    with pytest.raises(ValueError, match="mean must be finite"):
        Normalize(float("nan"), 1.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_forward_and_backward_agree_with_torch(activation: str) -> None:
    torch = pytest.importorskip("torch")
    network = random_network([activation, activation, "identity"], width=33, inputs=21)
    x = np.random.default_rng(0).random((9, 21), dtype=np.float32)
    seed = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    z = network.to_torch().double()(leaf)
    (gradient,) = torch.autograd.grad(z, leaf, torch.tensor(seed, dtype=torch.float64))
    logits = network.forward(x)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, z.detach(), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(network.backward(seed), gradient, rtol=2e-4, atol=2e-4)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 21\), got \(9, 20\)"):
        network.forward(x[:, :20])
    with pytest.raises(TypeError, match="x must be floating point, got int64"):
        network.forward(x.astype(np.int64))
