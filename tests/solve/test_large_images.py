"""Images of `schedules.LARGE` values and more, on which the descent is the search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore.solve import schedules

torch = pytest.importorskip("torch")
nn = torch.nn


def many_classes(seed: int) -> Any:
    """A convolutional network with random weights and 1,000 classes, for images of 3 channels."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(288, 1000),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data *= 2.5
    return model.eval().requires_grad_(False)


def distortion_of_plain_attack(model: Any, image: Any, target: Any, steps: int) -> float:
    """The distortion that gradients of cross-entropy find, on a sphere that shrinks and grows."""
    image, target = torch.from_numpy(image), torch.from_numpy(target)
    r, radius, nearest = torch.zeros_like(image), 1.0, float("inf")
    for step in range(steps):
        x = (image + r).requires_grad_(True)
        logits = model(x)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, target), x)
        reached = bool(logits.argmax(1) == target)
        nearest = min(nearest, float(r.norm())) if reached else nearest
        radius *= 0.95 if reached else 1.05
        length = 0.01 + 0.5 * (1 + np.cos(np.pi * step / steps))
        r = r - length * gradient / gradient.norm()
        r = (image + radius * r / r.norm()).clamp(0, 1) - image
    return nearest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_targets_among_many_classes(seed: int) -> None:
    """The runner-up changes from step to step, and the image is near all the same."""
    model, rng = many_classes(seed), np.random.default_rng(seed)
    x, target = rng.random((1, 3, 80, 80), dtype=np.float32), rng.integers(1000, size=1)
    assert x.size >= schedules.LARGE
    plain = distortion_of_plain_attack(model, x, target, 100)
    fast, default = (
        advcore.minimize_distortion(model, x, target, effort=e) for e in ("fast", "default")
    )
    for result in (fast, default):
        assert result.success.all()
        assert result.rescues[0] == 0
        assert result.distortion[0] <= min(1.05 * plain, 12)
    assert default.distortion[0] <= fast.distortion[0]
    assert default.evaluations[0] <= 170


@pytest.mark.parametrize("slope", [0.2, 0.05])
def test_an_image_far_beyond_the_linearised_margin(slope: float) -> None:
    """The margin rises by 80% of the way, then with a part of its slope: by how much is it far?

    An image that is more than four times as far as the linear distance has not converged. One
    fallback looks for a nearer one.
    """
    model = nn.Sequential(nn.Conv2d(1, 2, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1 / 64)  # the mean of a block
        model[0].bias.copy_(torch.tensor([-0.1, -0.28]))  # kinks at 0.1 and 0.28; x0 is at 0.2
        model[3].weight.zero_()
        model[3].weight[1, :256] = 10 / 256
        model[3].weight[1, 256:] = -(1 - slope) * 10 / 256
        model[3].bias.copy_(torch.tensor([2.0, 0.0]))
    x = np.full((1, 1, 128, 128), 0.2, np.float32)
    result = advcore.minimize_distortion(model, x, np.array([1]))
    exact = (0.08 + 0.02 / slope) * 128
    assert result.success.all()
    np.testing.assert_allclose(result.distortion, exact, rtol=2e-3)
    far = exact > 4 * 0.1 * 128
    assert result.rescues[0] == far
    assert (result.status[0] == advcore.Status.stalled) == far
    assert result.evaluations[0] <= 280
