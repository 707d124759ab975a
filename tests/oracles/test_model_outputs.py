"""Outputs that hold the logits among other things, and hints in the errors of models."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from advcore.oracles import NumpyOracle
from advcore.oracles.hints import error_hint

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn

from advcore.oracles import TorchOracle  # noqa: E402
from advcore.oracles.inner_modules import buffers_kept, inner_modules  # noqa: E402

Pair = namedtuple("Pair", "logits features")


def linear() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(6, 3).eval()


def forward(model: Any) -> Any:
    return TorchOracle(model, (6,)).forward(np.ones((2, 6), np.float32))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda z: (z,),
        lambda z: [z],
        lambda z: (None, z),
        lambda z: {"scores": z},
        lambda z: OrderedDict(logits=z, hidden=z + 1),
        lambda z: Pair(z, z + 1),
        lambda z: SimpleNamespace(loss=None, logits=z),
    ],
)
def test_the_only_logits_are_taken(wrap: Any) -> None:
    net = linear()
    np.testing.assert_array_equal(forward(lambda x: wrap(net(x))), forward(net))
    numpy_model = SimpleNamespace(
        forward=lambda x: wrap(net(torch.tensor(x)).detach().numpy()), backward=lambda d: d
    )
    if wrap(1) == [1]:  # a list of rows is an array in NumPy
        return
    oracle = NumpyOracle(numpy_model, (6,))
    np.testing.assert_array_equal(oracle.forward(np.ones((2, 6), np.float32)), forward(net))


@pytest.mark.parametrize(
    ("wrap", "error", "text"),
    [
        (lambda z: (z, z), TypeError, r"got tuple with 2 of them: .*, lambda x: model\(x\)\[0\]$"),
        (lambda z: {"a": z, "b": z}, TypeError, r"got dict .*, lambda x: model\(x\)\['a'\]$"),
        (lambda z: (z, 3), TypeError, r"got tuple: .* logits, lambda x: model\(x\)\[0\]$"),
        (lambda z: SimpleNamespace(scores=z), TypeError, r"lambda x: model\(x\)\.scores$"),
        (lambda z: "logits", TypeError, r"must return a tensor \(B, K\), got str$"),
        (lambda z: z[:, 0], ValueError, r"as \.unsqueeze\(1\) or \[:, None\] makes it"),
        (lambda z: z[:, :, None], ValueError, "one class for an image, not one for each of its pi"),
        (lambda z: z.to_sparse(), TypeError, r"dense logits, .*sparse_coo: add \.to_dense\(\)"),
        (lambda z: z.to("meta"), ValueError, "logits with values, got a tensor on the device meta"),
        (
            lambda z: torch.nested.as_nested_tensor(list(z), layout=torch.jagged),
            TypeError,
            "dense logits, got a tensor of the layout torch.jagged",
        ),
    ],
)
def test_other_outputs_are_refused_with_the_remedy(wrap: Any, error: Any, text: str) -> None:
    net = linear()
    x = np.ones((2, 6), np.float32)
    with pytest.raises(error, match=text):
        TorchOracle(lambda v: wrap(net(v)), (6,), sample=x)


def test_one_image_without_a_batch_is_named() -> None:
    net = nn.Conv2d(3, 1, 1).eval()
    model = lambda x: net(x).mean((-1, -2))[None]  # noqa: E731
    with pytest.raises(ValueError, match=r"got \(1, 1\); .*one image alone is images\[None\]$"):
        TorchOracle(model, (4, 4), sample=np.ones((3, 16), np.float32))
    with pytest.raises(ValueError, match=r"got \(3,\); without the axis of the batch\?"):
        TorchOracle(lambda x: linear()(x)[0], (6,))


def caught(model: Any, *shape: int) -> Exception:
    try:
        model(torch.rand(shape))
    except Exception as error:
        return error
    raise AssertionError(f"no error for {shape}")


def test_hints_follow_the_error() -> None:
    double, embedding = nn.Linear(6, 3).double(), nn.Embedding(9, 2)
    batch_norm = nn.BatchNorm1d(6, track_running_stats=False).eval()
    cases: Any = [
        (double, (4, 6), None, "a function that is no module gets float32"),
        (double, (4, 6), "float32", "the images are float32"),
        (embedding, (4, 6), None, "floating point, and whole numbers"),
        (batch_norm, (1, 6), None, "statistics of the batch"),
        (linear(), (4, 7), None, ""),
        (linear(), (7, 7), None, "one image alone is images[None]"),
        (linear(), (3, 4, 4), None, "one image alone is images[None]"),
        (nn.Conv2d(3, 1, 1), (2, 8, 8, 3), None, "channels last? a model with convolutions takes"),
        (nn.Conv2d(3, 1, 1), (3, 8, 8, 3), None, "channels last?"),
        (nn.Conv2d(1, 1, 1), (4, 64), None, "(N, channels, height, width): reshape"),
        (nn.Conv2d(1, 1, 1), (4, 8, 8), None, "(N, channels, height, width): images[:, None]"),
        (nn.Conv2d(1, 1, 1), (3, 8, 8), None, "one image alone is images[None]; a model with conv"),
        (nn.BatchNorm2d(1), (4, 64), None, "(N, channels, height, width): reshape"),
        (nn.BatchNorm2d(1), (4, 8, 8), None, "(N, channels, height, width): images[:, None]"),
        (nn.MaxPool2d(2), (4, 64), None, "(N, channels, height, width): reshape"),
    ]
    for model, shape, dtype, text in cases:
        hint = error_hint(caught(model, *shape), shape, dtype)
        assert (text in hint) if text else (hint == "")
    assert error_hint(ZeroDivisionError("division by zero"), (7, 7), None) == ""
    for fault in ("an illegal memory access was encountered", "unspecified launch failure"):
        broken = RuntimeError(f"CUDA error: {fault}\nCUDA kernel errors might be reported later")
        assert "restart it" in error_hint(broken, (4, 6), None)
    elsewhere = RuntimeError("Expected all tensors to be on the same device, but found cpu and mps")
    assert "pass device=" in error_hint(elsewhere, (4, 6), None)


GLOBAL = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


class Holder:
    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, x: Any) -> Any:
        return self.net(x)

    def method(self, x: Any) -> Any:
        return self.net(x)


class Ensemble(nn.Module):  # type: ignore[misc]
    def __init__(self, nets: list[Any]) -> None:
        super().__init__()
        self.nets = nets  # not registered: eval() does not reach them

    def forward(self, x: Any) -> Any:
        return sum(net(x) for net in self.nets)


def call(net: Any, x: Any) -> Any:
    return net(x)


def helper(x: Any) -> Any:
    return GLOBAL(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: lambda x: net(x),
        lambda net: lambda x: sum(net(row) for row in [x]),
        lambda net: lambda x, net=net: net(x),
        lambda net: functools.partial(call, net),
        lambda net: net.forward,
        lambda net: Holder(net),
        lambda net: Holder(net).method,
        lambda net: Ensemble([net]).eval(),
        lambda net: lambda x: helper(x),
        lambda net: lambda x: torch.vmap(lambda row: GLOBAL(row[None])[0])(x),
    ],
)
def test_modules_behind_a_callable_are_found(wrap: Any) -> None:
    assert GLOBAL[1] in inner_modules(wrap(GLOBAL))


def test_buffers_in_training_mode_are_kept() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    net[1].running_mean[0] = float("nan")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with (
        pytest.raises(ValueError, match="eval mode: a forward changed the running_mean of a Batch"),
        buffers_kept(lambda x: net(x)),
    ):
        net(torch.rand(4, 6))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    assert net.training
    with pytest.raises(ValueError, match="eval mode"), buffers_kept(lambda x: net(x)):
        net(torch.rand(1, 6))  # raises itself, after it has counted the batch
    assert net[1].num_batches_tracked == 0
    with buffers_kept(lambda x: net(x)):  # nothing happens
        pass


def test_buffers_that_a_script_or_an_assignment_changes_are_kept() -> None:
    class Counting(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.calls = self.calls + 1
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.BatchNorm1d(6))
    for net, name in ((Counting(), "calls"), (script, "running_mean")):
        before = getattr(net, name).clone()
        with pytest.raises(ValueError, match=f"{name} of a "), buffers_kept(lambda x, n=net: n(x)):
            net(torch.rand(4, 6))
        assert torch.equal(getattr(net, name), before)
