"""tanh, sigmoid or a clamp behind the logits: the search sees the logits before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Layer, Network, data

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from advcore.oracles import TorchOracle  # noqa: E402
from advcore.oracles.logits import squashing  # noqa: E402

IMAGES, LABELS = (values[:20] for values in data.embedded_digits())


@pytest.fixture(scope="module")
def bare() -> Any:
    return data.embedded_network().to_torch().eval()


SQUASHED = {
    "tanh": lambda z: torch.tanh(z),
    "steep tanh": lambda z: torch.tanh(3 * z),
    "in place": lambda z: (3 * z).tanh_(),
    "soft cap": lambda z: 5 * torch.tanh(z / 5),
    "sigmoid": lambda z: 2 * torch.sigmoid(3 * z) - 1,
    "clamp": lambda z: z.clamp(-3, 3),
    "clamp above": lambda z: torch.clamp(z, max=1.0),
    "hardtanh": lambda z: functional.hardtanh(z, -3, 3),
    "logsigmoid": lambda z: functional.logsigmoid(z),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_squashed_logits_are_reached_like_bare_ones(name: str, bare: Any) -> None:
    """No image is missed, and none is much farther than the limits of the outputs make it."""

    def model(x: Any) -> Any:
        return SQUASHED[name](bare(x))

    plain = advcore.minimize_distortion(bare, IMAGES, labels=LABELS)
    found = advcore.minimize_distortion(model, IMAGES, labels=LABELS)
    assert found.success.all()
    assert (found.margin >= 1e-4).all()
    assert found.distortion.mean() <= 1.5 * plain.distortion.mean()
    logits = model(torch.from_numpy(found.adversarial)).detach().numpy()
    assert (logits.argmax(axis=1) != LABELS).all()
    targets = (LABELS + 1) % 10
    aimed = advcore.minimize_distortion(model, IMAGES, targets)
    plain = advcore.minimize_distortion(bare, IMAGES, targets)
    assert aimed.success.all()
    assert aimed.distortion.mean() <= 1.25 * plain.distortion.mean()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_native_networks_are_searched_before_the_squashing(activation: str) -> None:
    network = data.embedded_network()
    last = network.layers[-1]
    squashed = Network([*network.layers[:-1], Layer(last.weight, last.bias, activation)])
    assert network.unsquashed() is network
    np.testing.assert_array_equal(squashed.unsquashed().forward(IMAGES), network.forward(IMAGES))
    plain = advcore.minimize_distortion(network, IMAGES, labels=LABELS)
    for model in (squashed, squashed.to_torch().eval()):
        found = advcore.minimize_distortion(model, IMAGES, labels=LABELS)
        assert found.engine["path"] == "native"
        assert found.success.all()
        assert found.distortion.mean() <= 1.5 * plain.distortion.mean()


def oracle(model: Any, unsquash: bool = True) -> TorchOracle:
    made = TorchOracle(model, (784,), survey=False)
    made.survey(unsquash)
    return made


def test_what_the_search_sees(bare: Any) -> None:
    x, slots = IMAGES[:3], np.arange(3, dtype=np.int32)
    logits = bare(torch.from_numpy(x)).detach().numpy()
    squashed = oracle(lambda x: 2 * torch.tanh(bare(x)) + 1)
    np.testing.assert_allclose(squashed.forward(x), 2 * np.tanh(logits) + 1, atol=1e-5)
    np.testing.assert_allclose(squashed.forward(x, slots=slots), 2 * logits + 1, rtol=1e-5)
    assert squashed.squash is not None
    assert squashed.squash(1.5) == pytest.approx(2 * np.tanh(0.25) + 1)

    def changed(x: Any) -> Any:
        out = torch.tanh(bare(x))
        out[:, 3] = 0
        return out

    for model in (
        changed,
        lambda x: -torch.tanh(bare(x)),  # another order
        lambda x: torch.tanh(bare(x)) * torch.arange(1, 11),
        lambda x: torch.tanh(bare(x)) @ torch.eye(10),
        lambda x: torch.tanh(bare(x))[:, :1] + 0.5,  # one logit, whose sign decides
    ):
        made = oracle(model)
        assert made.squash is None
        np.testing.assert_array_equal(made.forward(x, slots=slots), made.forward(x))
    assert oracle(lambda x: torch.tanh(bare(x))[:, :1]).squash is None  # a slice comes last
    assert oracle(lambda x: torch.tanh(bare(x)[:, :1])).squash is not None
    assert oracle(lambda x: torch.sigmoid(bare(x)[:, :1])).squash is None
    assert oracle(lambda x: torch.tanh(bare(x)), unsquash=False).squash is None


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "clamp"])
def test_without_a_confidence_results_are_nearer(name: str, bare: Any) -> None:
    """What rounding needs is asked of the outputs, so that the verification confirms it."""

    def model(x: Any) -> Any:
        return SQUASHED[name](bare(x))

    asked, free = (
        advcore.minimize_distortion(model, IMAGES, labels=LABELS, confidence=value)
        for value in (1e-4, 0.0)
    )
    assert free.success.all()
    assert free.distortion.mean() <= 1.003 * asked.distortion.mean()


def test_limits_of_a_squashing_function() -> None:
    rate, floor, cap = squashing(np.tanh, 1e-4)
    assert rate == pytest.approx(2, rel=0.01)
    assert np.tanh(cap) == pytest.approx(1 - 1.01e-4, abs=1e-9)
    assert floor == pytest.approx(-cap, abs=1e-6)
    rate, floor, cap = squashing(lambda z: min(max(z, -3), 3), 1e-4)
    assert rate > 1e3
    assert (floor, cap) == pytest.approx((-3, 3), abs=1e-3)


@pytest.mark.parametrize("size", [1, 2])
def test_trials_and_search_keep_to_the_batch_size(size: int, bare: Any) -> None:
    rows = []

    def model(x: Any) -> Any:
        rows.append(len(x))
        return torch.tanh(bare(x))

    advcore.minimize_distortion(model, IMAGES[:3], labels=LABELS[:3], batch_size=size)
    assert max(rows) == size
    made = TorchOracle(model, (784,), survey=False, batch_size=size)
    made.survey(unsquash=True)
    assert made.squash is not None


def test_the_outputs_decide_where_the_model_raises(bare: Any) -> None:
    """The search has seen other logits: its successes count only where the model confirms them."""
    calls, most = [0], [1 << 30]

    def model(x: Any) -> Any:
        calls[0] += 1
        if calls[0] > most[0]:
            raise RuntimeError("out of order")
        return torch.tanh(bare(x))

    def run() -> Any:
        return advcore.minimize_distortion(model, IMAGES[:4], labels=LABELS[:4], batch_size=1)

    assert run().success.all()
    calls, most = [0], [int(0.3 * calls[0])]  # in the search
    with pytest.raises(advcore.ModelError) as caught:
        run()
    assert not caught.value.result.success.any()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_lines_and_noise_of_a_native_network_are_those_of_its_outputs(activation: str) -> None:
    from advcore.options import Options
    from advcore.solve.choose import choose_backend

    network = data.embedded_network()
    last = network.layers[-1]
    squashed = Network([*network.layers[:-1], Layer(last.weight, last.bias, activation)])
    for model in (squashed, squashed.to_torch().eval()):
        backend = choose_backend(model, IMAGES, (784,), Options())
        ends, t = np.roll(IMAGES, 1, axis=0), np.array([0, 0.5, 1], np.float32)
        along = backend.forward_along(IMAGES, ends, t)
        np.testing.assert_allclose(along[:, 0], squashed.forward(IMAGES), atol=1e-5)
        assert backend.noise(IMAGES) < 1e-5
        assert (backend.noise_at(IMAGES) < 1e-5).all()


def test_kernels_of_a_gpu_get_no_squashed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from advcore.options import Options
    from advcore.solve import choose, cuda_native

    monkeypatch.setattr(cuda_native, "unavailable", lambda network, device: None)
    network = data.embedded_network()
    last = network.layers[-1]
    squashed = Network([*network.layers[:-1], Layer(last.weight, last.bias, "tanh")])
    made = TorchOracle(squashed.to_torch().eval(), (784,))
    assert choose._kernels_missing(network, made, Options()) is None
    assert "squashing" in str(choose._kernels_missing(squashed, made, Options()))
    assert choose._kernels_missing(squashed, made, Options(loss="cross_entropy")) is None


@pytest.mark.parametrize("options", [{"confidence": 0.05}, {"loss": "cross_entropy"}])
def test_options_about_the_outputs_keep_the_outputs(options: Any, bare: Any) -> None:
    model = lambda x: torch.tanh(bare(x) / 8)  # noqa: E731
    found = advcore.minimize_distortion(model, IMAGES, labels=LABELS, **options)
    assert found.success.all()
    assert (found.margin >= options.get("confidence", 0)).all()
