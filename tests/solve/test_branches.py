"""Which networks with branches run in the engine, and how their runs end beside torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import advcore  # noqa: E402


class Residual(nn.Module):
    """A stem, one residual block, the mean over all positions and a Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Linear(16 * width, 4)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.stem(x))
        h = torch.relu(h + self.second(torch.relu(self.first(h))))
        return self.last(nn.functional.max_pool2d(h, 3, 2, 1).flatten(1))


def attack(model: Any) -> Any:
    x = np.random.default_rng(0).random((12, 2, 8, 8), dtype=np.float32)
    with torch.no_grad():
        targets = (model(torch.from_numpy(x)).argmax(1).numpy() + 1) % 4
    return advcore.minimize_distortion(model, x, targets)


def test_a_small_one_runs_in_the_engine_and_ends_as_through_torch() -> None:
    model = Residual(6).eval()
    native = attack(model)
    by_torch = attack(lambda x: model(x) + 0 * x.flatten(1)[:, :1])  # no module stands for it
    assert (native.engine["path"], by_torch.engine["path"]) == ("native", "torch")
    assert native.success.all()
    assert by_torch.success.all()
    np.testing.assert_allclose(native.distortion.mean(), by_torch.distortion.mean(), rtol=0.02)


def test_a_large_one_is_left_to_torch() -> None:
    result = attack(Residual(40).eval())
    assert result.engine["path"] == "torch"
    assert "branches with 29,520 weights" in result.engine["reason"]
