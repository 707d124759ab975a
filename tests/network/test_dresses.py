"""Models that are chains by what they run, not by their classes, reach the native engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcore.network import Network, Unsupported

torch = pytest.importorskip("torch")


def value_and_gradient(module: Any, x: Any, seed: Any) -> tuple[Any, Any]:
    leaf = x.clone().requires_grad_(True)
    z = module(leaf)
    (gradient,) = torch.autograd.grad(z, leaf, seed.expand_as(z))
    return z.detach(), gradient


class Functional:
    """Makers of models that are chains only by what they run."""

    @staticmethod
    def own_normalize() -> Any:
        class Normalize(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
                self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))

            def forward(self, x: Any) -> Any:
                return (x - self.mean) / self.std

        nn = torch.nn
        return nn.Sequential(
            Normalize(), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)
        )

    @staticmethod
    def code() -> Any:
        from torch.nn import functional

        class Code(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = torch.nn.Linear(12, 6), torch.nn.Linear(6, 3)

            def forward(self, x: Any) -> Any:
                h = (1 - x.permute(0, 2, 3, 1)).reshape(len(x), -1) * 2
                return 3 * self.last(functional.relu(self.first(h)).clamp(min=0)) + 1

        return Code()

    @staticmethod
    def reordered() -> Any:
        class Reordered(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)

            def forward(self, x: Any) -> Any:
                h = self.first(x[:, 1, :, :].flip(2).flatten(1) - torch.ones(4))
                return self.last(torch.tanh(h))[:, 1:].flip(1)

        return Reordered()

    @staticmethod
    def pooled_first() -> Any:
        nn = torch.nn
        convolution = nn.Conv2d(3, 5, 1)
        return nn.Sequential(
            convolution, nn.MaxPool2d(2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(5, 3)
        )

    @staticmethod
    def hooked() -> Any:
        nn = torch.nn
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))
        model[1].register_forward_hook(lambda module, args, out: 2 * out)
        return model

    @staticmethod
    def parametrized() -> Any:
        nn = torch.nn
        linear = nn.utils.parametrizations.weight_norm(nn.Linear(12, 6))
        return nn.Sequential(nn.Flatten(), linear, nn.ReLU(), nn.Linear(6, 3))

    @staticmethod
    def traced() -> Any:
        return torch.fx.symbolic_trace(Functional.parametrized())


@pytest.mark.parametrize(
    ("name", "activation"),
    [("own_normalize", "relu"), ("code", "relu"), ("reordered", "tanh"), ("hooked", "relu"),
     ("pooled_first", "leaky_relu"), ("parametrized", "relu"), ("traced", "relu")],
)  # fmt: skip
def test_a_chain_in_any_dress_is_lowered(name: str, activation: str) -> None:
    torch.manual_seed(2)
    model = getattr(Functional, name)().eval()
    network = Network.from_torch(model, (3, 2, 2))
    assert [layer.activation for layer in network.layers] == [activation, "identity"]
    x = torch.rand(6, 3, 2, 2)
    seed = torch.randn(network.classes)
    z, gradient = value_and_gradient(model, x, seed)
    np.testing.assert_allclose(network.forward(x.numpy()), z, atol=2e-6)
    rows = seed.expand_as(z).numpy()
    np.testing.assert_allclose(network.backward(rows), gradient.flatten(1), atol=2e-6)


def test_a_model_is_as_before_after_it_is_read() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(12, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return self.linear(x.flatten(1)) + self.calls

    model = Counting().eval()
    with pytest.raises(Unsupported, match="changes a tensor of the model"):
        Network.from_torch(model, (3, 2, 2))
    assert float(model.calls) == 0


def test_a_compiled_model_is_read_without_its_compiler() -> None:
    def refused(graph: Any, inputs: Any) -> Any:
        raise AssertionError("the compiler ran")

    model = Functional.own_normalize().eval()
    network = Network.from_torch(torch.compile(model, backend=refused), (3, 2, 2))
    for layer, expected in zip(
        network.layers, Network.from_torch(model, (3, 2, 2)).layers, strict=True
    ):
        np.testing.assert_array_equal(layer.weight, expected.weight)
