"""Digits and network of the package, MNIST from disk, and the models that are trained on it."""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from support.marks import needs_data

from advcore import data
from advcore._extras import require


def test_embedded_digits() -> None:
    images, labels = data.embedded_digits()
    assert images.shape == (1000, 784)
    assert images.dtype == np.float32
    assert images.min() == 0
    assert images.max() == 1
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels[:10], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9])
    np.testing.assert_array_equal(images * 255, np.rint(images * 255))


def test_embedded_network_knows_the_embedded_digits() -> None:
    network = data.embedded_network()
    assert [layer.weight.shape for layer in network.layers] == [(100, 784), (100, 100), (10, 100)]
    assert [layer.activation for layer in network.layers] == ["sigmoid", "sigmoid", "identity"]
    images, labels = data.embedded_digits()
    hidden = images.astype(np.float64)
    for layer in network.layers:
        hidden = hidden @ layer.weight.T + layer.bias
        if layer.activation == "sigmoid":
            hidden = 1 / (1 + np.exp(-hidden))
    accuracy = np.mean(hidden.argmax(1) == labels)
    assert accuracy > 0.97
    np.testing.assert_allclose(network.forward(images), hidden, rtol=1e-4, atol=1e-4)


@needs_data
@pytest.mark.mnist
def test_mnist_from_disk() -> None:
    images, labels = data.mnist("test")
    assert images.shape == (10_000, 784)
    assert images.dtype == np.float32
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    digits, digit_labels = data.embedded_digits()
    np.testing.assert_array_equal(images[:1000], digits)
    np.testing.assert_array_equal(labels[:1000], digit_labels)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r'split must be "train" or "test", got \'valid\''):
        data.mnist("valid")


def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        data.mnist("train")


def test_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    with gzip.open(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x03" + bytes(12))
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="is not MNIST's t10k-images"):
        data.mnist("test")


def test_download_without_pooch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pip install "advcore\[data\]"'):
        data.mnist("test")


def test_download_tries_the_next_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")
    labels = np.arange(4, dtype=np.uint8)
    raw = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels.tobytes()
    archive = tmp_path / "archive.gz"
    archive.write_bytes(gzip.compress(raw))
    asked: list[str] = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path) -> str:
        asked.append(url)
        assert known_hash == f"sha256:{data._FILES['t10k-labels-idx1-ubyte'][0]}"
        if len(asked) == 1:
            raise OSError("no route to host")
        return str(archive)

    stem = "t10k-labels-idx1-ubyte"
    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    known = (data._FILES[stem][0], hashlib.sha256(raw).hexdigest())
    monkeypatch.setitem(data._FILES, stem, known)
    np.testing.assert_array_equal(data._read(stem), labels)
    assert asked == [f"{mirror}{stem}.gz" for mirror in data.MIRRORS]


def test_all_mirrors_down(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def retrieve(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.delenv("ADVCORE_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(OSError, match=r"could not be downloaded.*no route to host"):
        data.mnist("test")


def test_require_passes_on_errors_inside_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_extra.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        require("broken_extra", "x", "a test")


@pytest.mark.parametrize(
    ("builder", "parameters"),
    [
        ("fc10", 7_850),
        ("fc100_100_10", 89_610),
        ("fc200_200_10", 199_210),
        ("fc123_456_10", 157_669),
    ],
)
def test_models_are_seeded(builder: str, parameters: int) -> None:
    torch = pytest.importorskip("torch")
    from advcore import models

    state = torch.get_rng_state()
    first, again = getattr(models, builder)(seed=1), getattr(models, builder)(seed=1)
    other = getattr(models, builder)(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(p.numel() for p in first.parameters()) == parameters
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    assert first(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    linear = [layer for layer in first if isinstance(layer, torch.nn.Linear)]
    assert len(models.WEIGHT_DECAY[builder]) == len(linear)


def test_training_learns_and_repeats() -> None:
    torch = pytest.importorskip("torch")
    from advcore import models
    from advcore.models import training

    torch.set_num_threads(1)
    images, labels = data.embedded_digits()
    images, labels = images[:300], labels[:300]
    runs = []
    for _ in range(2):
        model = models.fully_connected([20, 10], seed=3)
        history = training.train(
            model,
            images,
            labels,
            weight_decay=(1e-5, 1e-6),
            epochs=30,
            batch_size=32,
            learning_rate=2e-2,
            seed=4,
        )
        runs.append((history, [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(map(torch.equal, runs[0][1], runs[1][1]))
    assert runs[0][0][-1] < 0.1 * runs[0][0][0]
    assert not model.training
    assert training.error_rate(model, images, labels) < 0.01


def test_training_minimises_the_penalty_of_the_paper() -> None:
    torch = pytest.importorskip("torch")
    from advcore import models
    from advcore.models import training

    model = models.fully_connected([4, 3], inputs=5, seed=0)
    images, labels = np.zeros((8, 5), np.float32), np.arange(8) % 3
    first, second = (model[1].weight.detach().clone(), model[3].weight.detach().clone())
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(
            model(torch.from_numpy(images)), torch.from_numpy(labels)
        )
    expected = plain + 0.5 * first.square().sum() / 4 + 0.25 * second.square().sum() / 3
    (objective,) = training.train(
        model, images, labels, weight_decay=(0.5, 0.25), epochs=1, batch_size=8
    )
    assert objective == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_decay": (1.0, 1.0, 1.0)}, r"one per Linear layer \(2\), got 3"),
        ({"weight_decay": -1.0}, "finite and not negative"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_training_refuses(change: dict[str, object], message: str) -> None:
    pytest.importorskip("torch")
    from advcore import models
    from advcore.models import training

    model = models.fully_connected([4, 3], inputs=5)
    options: dict[str, object] = {"epochs": 1} | change
    with pytest.raises(ValueError, match=message):
        training.train(model, np.zeros((8, 5), np.float32), np.zeros(8, int), **options)  # type: ignore[arg-type]
