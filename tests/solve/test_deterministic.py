"""``deterministic``: an image's result does not depend on the other images, bit for bit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from support.same_results import same
from support.small_models import refuse

import advcore
from advcore.solve.probes import probe_images, trial_images

torch = pytest.importorskip("torch")
nn = torch.nn

SHAPE = (3, 8, 8)
COUNT = 12
PARTS = {
    "permuted": np.random.default_rng(1).permutation(COUNT),
    "block": np.arange(4, 9),
    "one": np.array([5]),
    "repeated": np.array([3, 3, 10, 3]),
}


class Attention(nn.Module):
    """A patch embedding, one layer of self-attention and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, 32, 2, stride=2)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(self.embedding(x).flatten(2).transpose(1, 2)).mean(1))


class Residual(nn.Module):
    """Convolutions with batch norm, and a connection around one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)

    def forward(self, x: Any) -> Any:
        h = self.first(x)
        return self.head((h + self.second(h)).relu().mean((2, 3)))


def pooled() -> Any:
    """Max-pooling, whose smoothed form is an exponential, and widths that are no multiple of 8."""
    parts = nn.Conv2d(3, 5, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 5)
    return nn.Sequential(*parts)


def dense(width: int) -> Any:
    hidden = nn.Linear(192, width), nn.Tanh()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 5))


class Rounding(nn.Module):
    """Logits whose last bits depend on the batch, as a product's may.

    They depend on the number of rows, and where this is above ``most`` on the place of each.
    """

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.body, self.most = dense(16), most

    def forward(self, x: Any) -> Any:
        h = (x.flatten(1)[:, None] * self.body[1].weight).sum(2) + self.body[1].bias
        z = (h.tanh()[:, None] * self.body[3].weight).sum(2)
        place = torch.arange(len(x)) % 3 if len(x) > self.most else torch.tensor([len(x) % 7])
        return z * (1 + 2.0**-18 * place[:, None])


class NumpyModel:
    """Two layers in NumPy, float32, whose products see the whole batch."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.first = rng.standard_normal((192, 40)).astype(np.float32) / 6
        self.last = rng.standard_normal((40, 5)).astype(np.float32)

    def forward(self, x: Any) -> Any:
        self.h = np.tanh((x.reshape(len(x), -1) - 0.5) @ self.first)
        return (self.h @ self.last) * np.float32(1 + 2.0**-18 * (len(x) % 7))

    def backward(self, dlogits: Any) -> Any:
        return ((dlogits @ self.last.T) * (1 - self.h**2)) @ self.first.T


MODELS = {
    "residual": Residual,
    "attention": Attention,
    "pooled": pooled,
    "dense": lambda: dense(32),
    "odd width": lambda: dense(57),
    "rounding": Rounding,
    "numpy": NumpyModel,
}


def model(name: str) -> Any:
    torch.manual_seed(0)
    made = MODELS[name]()
    if name == "numpy":
        return made
    made.eval().requires_grad_(False)
    last = made.body[-1] if name == "rounding" else list(made.modules())[-1]
    logits = made(torch.rand(200, *SHAPE))
    spread = logits.std(0)
    last.weight.div_(spread[:, None])  # each class is predicted for some images
    last.bias.sub_(logits.mean(0)).div_(spread)
    return made if name == "dense" else lambda x: 1 * made(x)  # "dense" is lowered to the engine


@pytest.fixture
def images() -> Any:
    x = np.random.default_rng(0).random((COUNT, *SHAPE), dtype=np.float32)
    return (np.rint(255 * x) / 255).astype(np.float32)


def differing(name: str, images: Any, aim: str, **options: Any) -> tuple[list[str], Any]:
    """Parts of the images whose results are not those of the whole, and the whole."""
    attacked = model(name)
    targets = None
    if aim == "targeted":
        x = images if name == "numpy" else torch.tensor(images)
        logits = np.asarray(attacked.forward(x) if name == "numpy" else attacked(x))
        targets = logits.argsort(axis=1)[:, -2]
    levels = {"levels": 256, "few levels": 3}.get(aim)
    options = {"levels": levels, "threads": 1, "batch_size": 8, **options}

    def run(rows: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "deterministic: an image's logits")
            part = None if targets is None else targets[rows]
            return advcore.minimize_distortion(attacked, images[rows], part, **options)

    whole, found = run(np.arange(COUNT)), []
    for part, rows in PARTS.items():
        try:
            same(run(rows), whole, rows_b=rows)
        except AssertionError:
            found.append(part)
    return found, whole


@pytest.mark.parametrize("aim", ["targeted", "untargeted", "levels", "few levels"])
@pytest.mark.parametrize("name", MODELS)
def test_an_image_is_on_its_own(name: str, aim: str, images: Any) -> None:
    found, whole = differing(name, images, aim, deterministic=True, effort="fast")
    assert found == []
    assert whole.success.all()
    assert whole.engine["path"] == {"dense": "native", "numpy": "numpy"}.get(name, "torch")


@pytest.mark.parametrize("options", [
    {"batch_size": 10}, {"batch_size": None}, {"effort": "default"}, {"threads": 2},
    {"loss": "cross_entropy"},
])  # fmt: skip
def test_with_other_options_too(options: dict[str, Any], images: Any) -> None:
    found, whole = differing("residual", images, "targeted", deterministic=True, **options)
    assert found == []
    assert int(whole.engine["batches"]) <= (options.get("batch_size", 8) or 64)


def test_with_bounds_of_each_image(images: Any) -> None:
    """The noise is measured at each result then, and not on images inside the bounds."""
    attacked = model("rounding")
    lo, hi = np.maximum(images - 0.5, 0), np.minimum(images + 0.5, 1)
    lo[0], hi[0] = 0, 1

    def run(rows: Any) -> Any:
        bounds = lo[rows], hi[rows]
        return advcore.minimize_distortion(
            attacked,
            images[rows],
            bounds=bounds,
            deterministic=True,
            effort="fast",
            threads=1,
            batch_size=8,
        )

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(3, 10)):
        same(run(rows), whole, rows_b=rows)


@pytest.mark.parametrize("aim", ["targeted", "untargeted", "levels"])
@pytest.mark.parametrize("name", ["rounding", "numpy"])
def test_without_the_option_neighbours_matter(name: str, aim: str, images: Any) -> None:
    found, whole = differing(name, images, aim, effort="fast")
    assert "block" in found
    assert "batches" not in whole.engine


@pytest.mark.parametrize(("most", "rows"), [(100, "64"), (16, "16"), (1, "1")])
def test_rows_are_as_many_as_stay_independent(most: int, rows: str, images: Any) -> None:
    attacked = Rounding(most).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = advcore.minimize_distortion(
            lambda x: 1 * attacked(x), images[:3], deterministic=True, effort="fast"
        )
    assert found.engine["batches"] == rows
    told = [str(warning.message) for warning in caught]
    assert any("depend on its place" in text for text in told) == (rows == "1")


def test_the_model_gets_one_size(images: Any) -> None:
    body, rows = dense(32).eval(), []

    def counted(x: Any) -> Any:
        rows.append(len(x))
        return body(x)

    found = advcore.minimize_distortion(counted, images, deterministic=True, batch_size=32)
    assert found.engine["batches"] == "32"
    assert set(rows) <= {1, 2, 3, 8, 32}  # 1, 2, 3 and 8: the trials and the noise
    assert rows.count(32) > len(rows) / 2


def test_batches_of_one_size_stay_where_memory_runs_out(images: Any) -> None:
    body = dense(32).eval()
    most = [100]

    def hungry(x: Any) -> Any:
        if len(x) > most[0]:
            raise MemoryError("none left")
        return body(x)

    def starve(progress: Any) -> None:
        most[0] = 20

    with pytest.raises(advcore.ModelError, match="none left"):
        advcore.minimize_distortion(hungry, images, deterministic=True, callback=starve)


def test_the_trials_see_no_image_of_the_call(images: Any) -> None:
    """Images that the model takes for others than they are would change the search else."""
    seen: list[Any] = []
    body = dense(32).eval()

    def noted(x: Any) -> Any:
        seen.append(x.detach().clone())
        return body(x)

    def stop(progress: Any) -> bool:
        return True

    trials: list[Any] = []
    for part in (images[:3], images[5:]):
        seen.clear()
        advcore.minimize_distortion(noted, part, deterministic=True, callback=stop, labels=0)
        mine = {tuple(row.flatten().tolist()) for row in torch.tensor(part)}
        trials.append([x for x in seen if tuple(x[0].flatten().tolist()) not in mine])
    first, second = trials
    assert len(first) == len(second) > 5
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_trial_images_are_inside_the_bounds() -> None:
    lo = np.array([0, -2, -np.inf, 5, -1e9, 3], np.float32)
    hi = np.array([1, 255, np.inf, 5, -1e6, np.inf], np.float32)
    x, (low, high) = trial_images(lo, hi)
    assert x.shape == (64, 6)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert ((x >= lo) & (x <= hi)).all()
    assert np.array_equal(low, lo)
    assert np.array_equal(high, hi)
    assert np.ptp(x[:, 0]) > 0.5
    own, (low, high) = trial_images(np.stack([lo, lo]), np.stack([hi, hi]))
    assert (own.min(), own.max()) >= (0, 0)
    assert own.max() <= 1
    assert low.shape == high.shape == (6,)


def test_equal_bounds_of_each_image_are_its_own() -> None:
    """Whether the bounds of all images happen to be equal decides nothing."""
    lo, hi = np.zeros((2, 4), np.float32), np.full((2, 4), 9, np.float32)
    assert probe_images(lo, hi).max() <= 1
    assert probe_images(lo[0], hi[0]).max() > 1


def test_bad_values_are_refused(images: Any) -> None:
    for value in (1, "yes", None, np.ones(2, bool)):
        refuse(
            TypeError, "deterministic must be True or False", model("dense"), images,
            deterministic=value,
        )  # fmt: skip
