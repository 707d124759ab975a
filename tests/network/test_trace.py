"""The graph of a torch model: the same for every dress, for any number of rows, or refused."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from advcore.network import Unsupported  # noqa: E402
from advcore.network.reading.trace import differs, trace  # noqa: E402

IMAGE = (3, 8, 8)


class Residual(nn.Module):
    """A small residual network with a normalisation by buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(6 * 16, 4)

    def block(self, h: Tensor) -> Tensor:
        return functional.relu(h + self.norm(self.second(h)))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first((x - self.mean) / 0.25))
        h = functional.max_pool2d(self.block(h), 2)
        return self.head(h.reshape(h.shape[0], -1))


class Checkpointed(Residual):
    def block(self, h: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().block, h, use_reentrant=False)
        return out


class Attention(nn.Module):
    """Attention with a class token, whose sizes depend on the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(12, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.reshape(x.shape[0], 16, 12)
        tokens = [self.token.expand(len(x), -1, -1), self.embedding(patches)]
        out: Tensor = self.head(self.layer(torch.cat(tokens, dim=1))[:, 0])
        return out


pytestmark = pytest.mark.filterwarnings(r"ignore:.torch\.jit\.:DeprecationWarning")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def image() -> Tensor:
    return torch.rand(1, *IMAGE)


def exported(module: nn.Module) -> Any:
    rows = torch.export.Dim.AUTO
    program = torch.export.export(
        module, (torch.rand(2, *IMAGE),), dynamic_shapes=({0: rows},), strict=False
    )
    return program.module()


@pytest.mark.parametrize(
    "dress",
    [lambda m: m, lambda m: m.forward, lambda m: torch.jit.trace(m, image()), exported,
     torch.fx.symbolic_trace],
    ids=["module", "method", "scripted", "exported", "fx"],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_dress_gives_the_same_logits(dress: Any, rows: int) -> None:
    module = Residual().eval()
    graph = trace(dress(module), image())
    x = torch.rand(rows, *IMAGE)
    assert torch.equal(graph(x), module(x))
    assert differs(graph, module, x) is None


@pytest.mark.parametrize("kind", [Checkpointed, Attention])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_checkpoints_and_attention(kind: type[nn.Module], rows: int) -> None:
    module = kind().eval()
    graph = trace(module, image())
    assert differs(graph, module, torch.rand(rows, *IMAGE)) is None


def test_a_scripted_module_is_read_in_its_first_calls() -> None:
    module = torch.jit.trace(Residual().eval(), image())
    targets = [str(node.target) for node in trace(module, image()).graph.nodes]
    assert "aten.max_pool2d_with_indices.default" in targets


def test_a_changed_weight_is_seen() -> None:
    module = Residual().eval()
    graph = trace(module, image())
    x = torch.rand(3, *IMAGE)
    with torch.no_grad():
        module.head.weight.data.mul_(2)
    assert torch.equal(graph(x), module(x))


def test_nothing_of_the_module_changes() -> None:
    module = Residual().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trace(module, image())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def dependent(x: Tensor) -> Tensor:
    return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def masked(x: Tensor) -> Tensor:
    return x[x > 0.5].sum() * x.flatten(1)


def looping(x: Tensor) -> Tensor:
    return torch.stack([row.flatten() for row in x])


def scaled_by_rows(x: Tensor) -> Tensor:
    return x.flatten(1) / len(x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (dependent, "reads a value"),
        (masked, "values of a tensor"),
        (lambda x: functional.dropout(x.flatten(1)), "is random"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train(), "changes a tensor of the model"),
        (looping, "depend on the number of rows"),
        (lambda x: x, "not the result"),
    ],
)  # fmt: skip
def test_refused(model: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        trace(model, image())


class Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def test_a_backward_of_its_own_is_found() -> None:
    def rounded(x: Tensor) -> Tensor:
        return Rounded.apply(10 * x).flatten(1)[:, :4] + x.flatten(1)[:, 4:8]

    graph = trace(rounded, image())
    assert "backward of its own" in str(differs(graph, rounded, torch.rand(4, *IMAGE)))


def test_other_logits_are_found() -> None:
    module = Residual().eval()
    graph = trace(module, image())
    other = Residual().eval()
    assert "other logits" in str(differs(graph, other, torch.rand(4, *IMAGE)))


def test_views_of_one_tensor_are_not_taken_for_each_other() -> None:
    rows = list(torch.randn(5, 4).unbind(0))
    with pytest.raises(Unsupported, match="depends on the number of rows"):
        trace(lambda x: x.flatten(1)[:, :4] + rows[len(x)], image())


def test_a_write_to_a_view_of_the_model_is_refused() -> None:
    buffer = torch.ones(4)

    def counting(x: Tensor) -> Tensor:
        buffer.view(-1).add_(0.1)
        return x.flatten(1)[:, :4] * buffer

    with pytest.raises(Unsupported, match="changes a tensor of the model"):
        trace(counting, image())
