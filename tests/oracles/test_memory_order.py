"""The order of memory of a user's model, `torch.channels_last`, is kept by all kinds of rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

from advcore.oracles import TorchOracle  # noqa: E402


class Watch(nn.Module):  # type: ignore[misc]
    """Returns its input, and notes whether in it and its gradient channels come first in memory."""

    seen: list[tuple[str, bool]]

    def forward(self, x: Any) -> Any:
        self.seen.append(("value", x.stride(1) == 1))
        if x.requires_grad:
            note = self.seen
            x.register_hook(lambda g: note.append(("gradient", g.stride(1) == 1)))
        return x.view_as(x)


def watched_model(activation: Any) -> tuple[Any, list[tuple[str, bool]]]:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3, bias=False), Watch(), nn.BatchNorm2d(8), Watch(), activation, Watch(),
        nn.MaxPool2d(3, 2, padding=1), Watch(), nn.Conv2d(8, 6, 3), Watch(), activation, Watch(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ]  # fmt: skip
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    seen: list[tuple[str, bool]] = []
    for layer in layers:
        if isinstance(layer, Watch):
            layer.seen = seen
    return model.to(memory_format=torch.channels_last), seen


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.Tanh()]
)
@pytest.mark.parametrize(
    ("k", "record"),
    [((0, 0, 0), False), ((0, 0, 0), True), ((1, 1, 1), False), ((0.5, 0, 1), False)],
)
def test_layers_see_channels_last(activation: Any, k: tuple[float, ...], record: bool) -> None:
    model, seen = watched_model(activation)
    oracle = TorchOracle(model, (3, 12, 14))
    assert oracle.kind == ("saturating" if isinstance(activation, nn.Tanh) else "convolutional")
    x = np.random.default_rng(0).random((3, 3 * 12 * 14), dtype=np.float32)
    slots = np.arange(3, dtype=np.int32)
    oracle.forward(x, slots=slots, record_scales=np.ones(3, bool), grad=False)
    seen.clear()
    oracle.forward(x, np.array(k, np.float32), slots, np.full(3, record))
    oracle.backward(np.ones((3, 5), np.float32))
    assert [kind for kind, _ in seen].count("value") == 6
    assert [kind for kind, _ in seen].count("gradient") == 6
    assert all(last for _, last in seen), seen


def test_smoothed_results_do_not_depend_on_the_order_of_memory() -> None:
    results = []
    for order in (torch.channels_last, torch.contiguous_format):
        model, _ = watched_model(nn.ReLU())
        oracle = TorchOracle(model.to(memory_format=order), (3, 12, 14))
        x = np.random.default_rng(0).random((3, 3 * 12 * 14), dtype=np.float32)
        slots = np.arange(3, dtype=np.int32)
        oracle.forward(x, slots=slots, record_scales=np.ones(3, bool), grad=False)
        logits = oracle.forward(x, np.array([0.5, 0, 1], np.float32), slots)
        results.append((logits, oracle.backward(np.ones((3, 5), np.float32))))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
