"""`smoothing=False`: every evaluation is one of the model as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data

torch = pytest.importorskip("torch")


class Watched(torch.nn.Module):
    """A model with kinks and a squashed end whose forwards are compared with the model's own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(784, 40), torch.nn.Linear(40, 10)
        self.changed = self.rows = 0

    def forward(self, x: Any) -> Any:
        self.rows += len(x)
        h = self.first(x)
        hidden = torch.relu(h + torch.sin(h))  # the engine has no sine: it runs through torch
        out = torch.tanh(self.last(hidden))
        a, b = self.first.weight.detach(), self.first.bias.detach()
        own = x.detach().numpy() @ a.numpy().T + b.numpy()
        own = np.maximum(own + np.sin(own), 0)
        last = own @ self.last.weight.detach().numpy().T + self.last.bias.detach().numpy()
        self.changed += int(np.abs(out.detach().numpy() - np.tanh(last)).max(initial=0) > 1e-4)
        return out


def attack(**options: Any) -> tuple[Any, Watched]:
    model = Watched().eval()
    images = data.embedded_digits()[0][:6]
    return advcore.minimize_distortion(lambda x: model(x), images, **options), model


def test_no_pass_is_through_a_changed_network() -> None:
    for effort in ("fast", "default", "thorough"):
        result, model = attack(smoothing=False, effort=effort)
        assert model.changed == 0
        assert model.rows >= (result.evaluations + result.forwards).sum()  # it sees every one
        assert result.success.all()
        assert result.engine["path"] == "torch"


@pytest.mark.parametrize("effort", ["fast", "default", "thorough"])
def test_results_without_smoothing_stay_near(backend: Any, effort: str) -> None:
    network, x = data.embedded_network(), data.embedded_digits()[0][:20]
    exact = backend.attack(network, x, effort=effort, smoothing=False)
    smoothed = backend.attack(network, x, effort=effort)
    assert exact.success.all()
    assert exact.distortion.mean() < 1.12 * smoothed.distortion.mean()


def test_a_bad_value_is_named() -> None:
    with pytest.raises(TypeError, match="smoothing must be True or False, got 'no'"):
        attack(smoothing="no")
