"""Random models as the mean over fixed draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore.models

torch = pytest.importorskip("torch")
averaged = pytest.importorskip("advcore.models.averaging")


class Noisy(torch.nn.Module):
    """A small network behind dropout and additive noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(12, 24), torch.nn.Linear(24, 4)
        with torch.no_grad():
            self.first.weight.mul_(3)
            self.last.weight.mul_(3)

    def forward(self, x: Any) -> Any:
        """Logits (B, 4)."""
        h = torch.tanh(self.first(x + 0.05 * torch.randn_like(x)))
        return self.last(torch.nn.functional.dropout(h, 0.2))


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).random((12, 12), dtype=np.float32)


def test_a_random_model_is_refused_and_the_remedy_named(images: Any) -> None:
    with pytest.raises(ValueError, match=r"deterministic.*advcore\.models\.averaged"):
        advcore.minimize_distortion(Noisy().eval(), images)


def test_the_mean_is_a_function_of_the_image(images: Any) -> None:
    model = averaged.Averaged(Noisy(), samples=8)
    x = torch.from_numpy(images)
    whole = model(x)
    assert torch.equal(model(x), whole)
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.allclose(alone, whole, atol=1e-5)
    assert not torch.allclose(averaged.Averaged(Noisy(), samples=8, seed=99)(x), whole, atol=1e-3)


def test_the_mean_is_that_of_the_draws(images: Any) -> None:
    x = torch.from_numpy(images)
    network = Noisy()
    mean = averaged.Averaged(network, samples=600)(x[:2])
    plain = torch.stack([network(x[:2]) for _ in range(600)]).mean(dim=0)
    assert torch.allclose(mean, plain, atol=0.4)


def test_an_attack_on_the_mean(images: Any) -> None:
    model = advcore.models.averaged(Noisy(), samples=8)
    before = torch.random.get_rng_state()
    found = advcore.minimize_distortion(model, images)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.success.all()
    clean = model(torch.from_numpy(images)).argmax(dim=1)
    moved = model(torch.from_numpy(found.adversarial)).argmax(dim=1)
    assert (clean != moved).all()
    again = advcore.minimize_distortion(model, images)
    assert np.array_equal(found.adversarial, again.adversarial)


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="model must be"):
        averaged.Averaged(len)
    for samples in (0, 1.5, True):
        with pytest.raises(ValueError, match="samples must be"):
            averaged.Averaged(Noisy(), samples=samples)


def test_a_model_that_vmap_cannot_run_is_named(images: Any) -> None:
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(self.lstm(x.view(-1, 4, 3))[0][:, -1], 0.2)

    text = "averaged needs a model that torch.func.vmap can run: no LSTM or GRU"
    with pytest.raises(ValueError, match=text) as info:
        advcore.minimize_distortion(averaged.Averaged(Recurrent()), images)
    assert "images[None]" not in str(info.value)
