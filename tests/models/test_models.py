"""Models by name, preprocessing inside the model, and the locally connected network."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.marks import needs_data

import advcore
from advcore import data, models, validate

pytest.importorskip("torch")
import torch
from torch import nn

from advcore.models import locally_connected, pretrained, training
from advcore.models import modules as torch_modules


def test_models_are_imported_without_torch() -> None:
    code = "import advcore.models, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("name", [name for name in models.BUILDERS if name != "alexnet"])
def test_builders_are_loaded_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in models.PRETRAINED and "ADVCORE_DATA" not in os.environ:
        monkeypatch.delenv("ADVCORE_DATA", raising=False)
        with pytest.raises(pretrained.Unavailable, match="ADVCORE_DATA is not set"):
            advcore.load_model(name)
        return
    network = advcore.load_model(name).eval()
    shape = getattr(network, "input_shape", (784,))
    logits = network(torch.rand(2, *shape))
    assert logits.shape == (2, 1000 if name in models.PRETRAINED else 10)


def test_alexnet_is_found_in_models(monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.alexnet(pretrained=False)(torch.rand(1, 3, 224, 224)).shape == (1, 1000)
    monkeypatch.delenv("ADVCORE_DATA", raising=False)

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no such host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(OSError, match=r"alexnet-owt-7be5be79\.pth: no such host"):
        advcore.load_model("alexnet")


def test_load_model_says_what_it_takes() -> None:
    with pytest.raises(
        ValueError, match=r"^load_model: expected x\.onnx, x\.pt2, .* got 'nothing'"
    ):
        advcore.load_model("nothing")
    with pytest.raises(FileNotFoundError, match=r"^load_model: none\.onnx does not exist"):
        advcore.load_model(Path("none.onnx"))


# Preprocessing


class First(nn.Module):
    """Keeps what it was given."""

    def forward(self, x: Any) -> Any:
        self.seen = x
        return x.mean((2, 3))


def test_preprocessing_step_by_step() -> None:
    x = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    inner = First().eval()
    model = models.preprocess(
        inner, mean=(104, 117, 123), std=(1, 2, 4), scale=255, size=10, crop=(8, 6), bgr=True
    )
    assert not any(part.training for part in model.modules())
    model(x)
    small = nn.functional.interpolate(x, (10, 15), mode="bilinear", antialias=True)
    # column 4 of 15: (15 - 6) // 2
    expected = 255 * small[:, [2, 1, 0], 1:9, 4:10]
    expected = (expected - torch.tensor([104.0, 117, 123]).view(3, 1, 1)) / torch.tensor(
        [1.0, 2, 4]
    ).view(3, 1, 1)
    torch.testing.assert_close(inner.seen, expected, rtol=1e-4, atol=1e-3)
    models.preprocess(inner, size=(7, 9))(x)
    assert inner.seen.shape == (2, 3, 7, 9)
    models.preprocess(inner, size=20)(x)
    torch.testing.assert_close(inner.seen, x, rtol=0, atol=0)


def test_the_attack_measures_distortion_before_the_preprocessing() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()
    model = models.preprocess(inner, mean=0.5, std=0.2, size=9, crop=8, bgr=True)
    images = np.random.default_rng(0).random((6, 3, 14, 18), dtype=np.float32)
    result = advcore.minimize_distortion(model, images)
    assert result.success.all()
    assert result.adversarial.shape == images.shape
    seen = model(torch.from_numpy(result.adversarial)).argmax(1).numpy()
    np.testing.assert_array_equal(seen, result.prediction)
    by_hand = np.linalg.norm((result.adversarial - images).reshape(6, -1), axis=1)
    np.testing.assert_allclose(result.distortion, by_hand, rtol=1e-5)
    assert 0 <= result.adversarial.min() <= result.adversarial.max() <= 1


def test_normalisation_of_a_fully_connected_model_stays_in_the_engine() -> None:
    inner = models.fc10(seed=1).eval()
    model = models.preprocess(inner, mean=0.13, std=0.31)
    images = data.embedded_digits()[0][:5].reshape(5, 1, 28, 28)
    result = advcore.minimize_distortion(model, images)
    assert result.engine["path"] == "native"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "size must be a positive integer or"),
        ({"size": (1, 2, 3)}, "size must be a positive integer or"),
        ({"crop": 2.5}, "crop must be a positive integer or"),
        ({"std": (1, 0, 1)}, "std must be positive"),
        ({"scale": 0}, "scale must be a finite number > 0"),
    ],
)
def test_preprocessing_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        models.preprocess(First(), **options)


def test_preprocessing_takes_modules_only() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function"):
        models.preprocess(lambda x: x)  # type: ignore[arg-type]


def test_a_crop_larger_than_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="images of 4x5 are smaller than the crop of 6x3"):
        torch_modules.CenterCrop((6, 3))(torch.zeros(1, 3, 4, 5))


def pictures(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape) / 255


@pytest.mark.parametrize("case", ["flat", "grey", "channels", "channels last", "colour flat"])
def test_normalised_pictures_are_noticed(case: str) -> None:
    raw = {
        "flat": pictures(20, 784),
        "grey": pictures(20, 28, 28),
        "channels": pictures(2, 3, 32, 32),
        "channels last": pictures(2, 32, 32, 3),
        "colour flat": pictures(4, 3072),
    }[case].astype(np.float32)
    images = (raw - np.float32(0.45)) / np.float32(0.22)
    with pytest.warns(UserWarning, match=r"8-bit pictures with values from -2.05 to 2.5, .*std="):
        validate.warn_if_normalised(images)


@pytest.mark.parametrize(
    "case",
    ["raw", "bytes", "around 0", "continuous", "whole", "few", "not pictures", "none", "nan"],
)
def test_other_images_are_not(case: str) -> None:
    images = {
        "raw": pictures(4, 1, 28, 28),
        "bytes": pictures(4, 1, 28, 28) * 255,
        "around 0": pictures(4, 3, 28, 28) * 2 - 1,
        "continuous": np.random.default_rng(0).standard_normal((4, 3, 28, 28)),
        "whole": np.rint(pictures(4, 28, 28) * 100) - 50,
        "few": np.full((4, 28, 28), -2.0),
        "not pictures": (pictures(50, 100) - 0.5) / 0.2,
        "none": pictures(0, 28, 28),
        "nan": np.full((2, 28, 28), np.nan),
    }[case]
    if case == "not pictures":
        images = images[:, :60]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate.warn_if_normalised(images)


# The locally connected network


def naive(network: Any, x: Any) -> Any:
    """One stage of one image, place by place, in float64."""
    filters, pool, contrast = network.stage1
    maps, rows, columns = filters.shape
    x, weight = x.double().numpy(), filters.weight.detach().double().numpy()
    h = np.zeros((maps, rows, columns))
    for i in range(rows):
        for j in range(columns):
            field = x[:, i : i + filters.field, j : j + filters.field].reshape(-1)
            h[:, i, j] = weight[i * columns + j] @ field
    size, step = pool.size, pool.stride
    pooled = np.array(
        [
            [
                np.sqrt(1e-3 + (h[:, i : i + size, j : j + size] ** 2).sum((1, 2)))
                for j in range(0, columns - size + 1, step)
            ]
            for i in range(0, rows - size + 1, step)
        ]
    ).transpose(2, 0, 1)
    window = contrast.window[0, 0].double().numpy()
    half = len(window) // 2

    def mean(values: Any) -> Any:
        out = np.zeros(values.shape[1:])
        for i, j in np.ndindex(out.shape):
            total = inside = 0.0
            for u, v in np.ndindex(window.shape):
                a, b = i + u - half, j + v - half
                if 0 <= a < out.shape[0] and 0 <= b < out.shape[1]:
                    total += window[u, v] * values[:, a, b].mean()
                    inside += window[u, v]
            out[i, j] = total / inside
        return out

    centred = pooled - mean(pooled)
    return centred / np.sqrt(mean(centred**2) + contrast.least**2)


def test_a_stage_is_what_the_paper_says() -> None:
    network = models.quocnet(width=0.5, side=15, channels=2).eval()
    x = torch.rand(2, 2, 15, 15, generator=torch.Generator().manual_seed(0))
    out = network.get_submodule("stage1")(x).detach().numpy()
    for row in range(2):
        np.testing.assert_allclose(out[row], naive(network, x[row]), rtol=1e-4, atol=1e-5)


def test_the_paper_s_size() -> None:
    """Le et al. 2012 give 18x18 fields, 8 maps, 3 stages on 200x200x3: here only counted."""
    with torch.device("meta"):
        filters = locally_connected.LocallyConnected((3, 200, 200), 8, 18)
    assert filters.shape == (8, 183, 183)
    assert filters.weight.numel() == 183**2 * 8 * 18**2 * 3


def test_stages_and_sizes() -> None:
    network = locally_connected.quocnet(stages=2, field=5, pool=3, width=0.25)
    assert network(torch.rand(2, 784)).shape == (2, 10)
    assert network.get_submodule("stage2.filters").shape[0] == 2
    with pytest.raises(ValueError, match="stage 2 has no place left"):
        locally_connected.quocnet(stages=2)
    with pytest.raises(ValueError, match=r"no field of 7 .* in \(1, 6, 6\)"):
        locally_connected.quocnet(side=6)


def test_reconstruction_tica_learns_to_reconstruct() -> None:
    images = torch.from_numpy(data.embedded_digits()[0][:200]).view(-1, 1, 28, 28)
    network = models.quocnet(seed=1)
    filters, pool = network.get_submodule("stage1.filters"), network.get_submodule("stage1.pool")

    def left() -> float:
        """Share of the receptive fields that the filters do not reconstruct."""
        fields, weight = filters.fields(images), filters.weight.detach()
        rest = weight.transpose(1, 2) @ (weight @ fields) - fields
        return float(rest.square().sum() / fields.square().sum())

    assert left() > 0.8
    history = locally_connected.reconstruction_tica(filters, pool, images, epochs=30, batch_size=50)
    assert history[-1] < 0.7 * history[0]
    assert left() < 0.35


def test_a_trained_quocnet_is_attacked() -> None:
    images, labels = data.embedded_digits()
    network = models.quocnet(width=0.5, seed=0)
    parts: list[str] = []
    locally_connected.train(
        *(network, images[:800], labels[:800]),
        epochs=8,
        callback=lambda name, _: parts.append(name),
    )
    assert parts == ["stage1", "classifier"]
    assert training.error_rate(network, images[800:], labels[800:]) < 0.25
    result = advcore.minimize_distortion(network, images[800:810], labels=labels[800:810])
    again = advcore.minimize_distortion(network, images[800:810], labels=labels[800:810])
    assert result.success.all()
    assert result.engine["path"] == "torch"
    np.testing.assert_array_equal(result.adversarial, again.adversarial)
    with torch.no_grad():
        seen = network(torch.from_numpy(result.adversarial)).argmax(1).numpy()
    assert not np.any(seen == labels[800:810])
    assert 0.1 < np.median(result.distortion) < 3


@needs_data
def test_squeezenet_is_that_of_models() -> None:
    network = models.squeezenet1_0()
    images, labels = pretrained.imagenet_samples(network.input_shape[1])  # type: ignore[index]
    with torch.inference_mode():
        assert (network(torch.from_numpy(images)).argmax(1).numpy() == labels).sum() == 15


def test_the_note_keeps_its_documented_place() -> None:
    from advcore.models import preprocessing

    assert preprocessing.normalised_note is validate.normalised_note
