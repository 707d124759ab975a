"""The record of a run: labels, options, versions, hashes."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import data, minimize_distortion
from advcore.fingerprint import hash_of


def sha256(values: Any, kind: Any) -> str:
    return hashlib.sha256(np.asarray(values, kind).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    images, labels = data.embedded_digits()
    return images[:8], labels[:8]


def test_labels_options_and_hashes_of_a_run(digits: Any, tmp_path: Any) -> None:
    images, labels = digits
    network = data.embedded_network()
    result = minimize_distortion(network, images, labels=labels, effort="fast", seed=3, record=True)
    assert result.label.tolist() == labels.tolist()
    record = result.record
    assert record["options"]["effort"] == "fast"
    assert record["options"]["seed"] == 3
    assert record["options"]["max_evaluations"] is None
    assert record["options"]["bounds"] == "(0.0, 1.0)"
    assert record["model"] == {
        "name": "advcore.network.network.Network", "hash": hash_of(network),
    }  # fmt: skip
    assert record["input"] == {
        "count": 8, "shape": "(784,)", "labels": "given",
        "images_sha256": sha256(images, np.float32), "labels_sha256": sha256(labels, np.int64),
    }  # fmt: skip
    assert record["versions"]["advcore"] == advcore.__version__
    result.save(tmp_path / "r.npz")
    assert advcore.Result.load(tmp_path / "r.npz").record == record


def test_labels_without_an_argument(digits: Any) -> None:
    images, labels = digits
    network = data.embedded_network()
    predicted = minimize_distortion(network, images, record=True)
    assert predicted.label.tolist() == network.forward(images).argmax(1).tolist()
    assert predicted.record["input"]["labels"] == "predicted"
    targets = (labels + 1) % 10
    targeted = minimize_distortion(
        network, images, targets, starts=(images[:2], labels[:2]), record=True
    )
    assert targeted.label.tolist() == [-1] * 8
    kept = targeted.record["input"]
    assert kept["labels"] == "none"
    assert kept["targets_sha256"] == sha256(targets, np.int64)
    pool = images[:2].tobytes() + labels[:2].astype(np.int64).tobytes()
    assert kept["starts_sha256"] == hashlib.sha256(pool).hexdigest()
    both = minimize_distortion(network, images, targets, labels=labels)
    assert both.label.tolist() == labels.tolist()


def test_hashes_tell_inputs_and_models_apart(digits: Any) -> None:
    images, _ = digits
    network = data.embedded_network()
    one = minimize_distortion(network, images, record=True).record
    other = minimize_distortion(network, images[::-1], record=True).record
    assert one["model"] == other["model"]
    assert one["input"]["images_sha256"] != other["input"]["images_sha256"]

    class Linear:
        weight = np.random.default_rng(0).standard_normal((3, 784)).astype(np.float32)

        def forward(self, x: Any) -> Any:
            return x @ self.weight.T

        def backward(self, d: Any) -> Any:
            return d @ self.weight

    named = minimize_distortion(Linear(), images, record=True).record["model"]
    assert named["name"].endswith("Linear")
    assert named["hash"] == hash_of(Linear())


def test_without_hashes(digits: Any) -> None:
    record = minimize_distortion(data.embedded_network(), digits[0], record=False).record
    assert record["model"].keys() == {"name"}
    assert record["input"].keys() == {"count", "shape", "labels"}
    assert record["options"]["effort"] == "default"
    assert (
        minimize_distortion(data.embedded_network(), digits[0]).record["model"] == record["model"]
    )
    many = minimize_distortion(data.embedded_network(), data.embedded_digits()[0][:32])
    assert "hash" in many.record["model"]


def test_what_cannot_be_hashed_ends_no_run(digits: Any) -> None:
    class Chained:
        network = data.embedded_network()

        def __init__(self) -> None:
            self.next: Any = None
            for _ in range(100_000):
                self.next = [self.next]

        def forward(self, x: Any) -> Any:
            return self.network.forward(x)

        def backward(self, d: Any) -> Any:
            return self.network.backward(d)

    model = Chained()
    result = minimize_distortion(model, digits[0][:2], record=True)
    assert result.record["model"]["hash"] is None
    while model.next is not None:  # Python itself would recurse where it frees the chain.
        model.next = model.next[0]


def test_an_interrupted_run_has_a_record(digits: Any) -> None:
    with pytest.raises(advcore.Interrupted) as stopped:
        minimize_distortion(data.embedded_network(), digits[0], callback=_stop_at_once, record=True)
    assert "images_sha256" in stopped.value.result.record["input"]


def _stop_at_once(_: Any) -> None:
    raise KeyboardInterrupt
