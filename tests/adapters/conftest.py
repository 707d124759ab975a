"""A trained network on digits, with images of channel, height and width, for every library."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from advcore import data


class Digits(NamedTuple):
    """A torch module (B, 1, 28, 28) -> (B, 10), images, their predictions and other classes."""

    model: Any
    x: Any
    labels: Any
    targets: Any


@pytest.fixture
def digits() -> Digits:
    """The network of the package on eight of its digits."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Flatten(), data.embedded_network().to_torch()).eval()
    x = torch.from_numpy(data.embedded_digits()[0][:8].reshape(-1, 1, 28, 28).copy())
    labels = model(x).argmax(dim=1)
    return Digits(model, x, labels, (labels + 3) % 10)
