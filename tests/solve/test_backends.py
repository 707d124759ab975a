"""Every back end finds what the native engine finds; a wrong one does not pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.affine import affine, check_targeted
from support.backends import BACKENDS, Backend, Native, Numpy

import advcore
from advcore import Layer, Network, _core


@pytest.mark.parametrize("name", [each.name for each in BACKENDS])
def test_back_ends_that_this_machine_lacks_are_skipped_visibly(name: str) -> None:
    (chosen,) = (each for each in BACKENDS if each.name == name)
    if reason := chosen.missing():
        pytest.skip(f"no test runs on the back end {name}: {reason}")


def test_the_instruction_set_of_this_process_is_held_to_the_same_bits() -> None:
    exact = [each.name for each in BACKENDS if each.tolerance is None]
    assert exact == [f"native-{_core.isa()}"]


@pytest.mark.parametrize("activation", ["softplus", "gelu", "sigmoid", "tanh"])
def test_smooth_networks(
    backend: Backend, activation: str, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation=activation, gain=1.5), random_images(60)
    targets = (network.forward(x).argmax(1) + 1) % 5
    native = advcore.minimize_distortion(network, x, targets)
    found = backend.attack(network, x, targets)
    assert found.success.all()
    backend.assert_agrees(found, native)


@pytest.mark.backends("smooths")
def test_relu_is_as_good_as_native(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="relu"), random_images(60)
    native = advcore.minimize_distortion(network, x)
    found = backend.attack(network, x)
    assert found.success.all()
    assert found.distortion.mean() == pytest.approx(native.distortion.mean(), rel=1e-2)


def test_a_callback_is_called_in_this_process(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    states: list[advcore.Progress] = []
    backend.attack(random_network(), random_images(20), callback=states.append)
    assert states[-1].finished == 20


def test_errors_come_back(backend: Backend, random_network: Any, random_images: Any) -> None:
    with pytest.raises(ValueError, match="must lie inside bounds"):
        backend.attack(random_network(), random_images(3), bounds=(0, 0.1))
    assert backend.attack(random_network(), random_images(3)).success.all()


# --- the suite tells a wrong back end from a right one


def changed(network: Network, factor: float) -> Network:
    """The same network with a first weight that is ``factor`` as large."""
    weight = network.layers[0].weight.copy()
    weight[0] *= np.float32(factor)
    first = Layer(weight, network.layers[0].bias, network.layers[0].activation)
    return Network([first, *network.layers[1:]])


class OtherWeights(Numpy):
    def model(self, network: Network) -> Any:
        return super().model(changed(network, 1.05))


class OtherGradient(Numpy):
    def model(self, network: Network) -> Any:
        model = super().model(network)
        right = model.backward
        noise = np.random.default_rng(0).uniform(0.5, 1.5, network.inputs)
        model.backward = lambda dlogits: right(dlogits) * noise
        return model


class NoBounds(Numpy):
    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        wide = {**options, "bounds": (-np.inf, np.inf)}
        return super().attack(network, images, targets, **wide)


class TooFar(Numpy):
    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        found = super().attack(network, images, targets, **options)
        adversarial = (images + np.float32(1.01) * (found.adversarial - images)).clip(0, 1)
        r = np.linalg.norm(adversarial.astype(np.float64) - images, axis=1)
        return dataclasses.replace(found, adversarial=adversarial, distortion=r)


class NoConfidence(Numpy):
    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        return super().attack(network, images, targets, **{**options, "confidence": 0.0})


class TooNear(Numpy):
    def attack(self, network: Network, images: Any, targets: Any = None, **options: Any) -> Any:
        found = super().attack(network, images, targets, **options)
        return dataclasses.replace(found, distortion=0.99 * found.distortion)


def test_a_right_back_end_passes() -> None:
    check_targeted(Numpy(), affine(784, 10, 0.0, 1.0))


@pytest.mark.parametrize(
    "wrong", [OtherWeights, OtherGradient, NoBounds, TooFar, NoConfidence, TooNear]
)
def test_a_wrong_back_end_does_not_pass(wrong: type[Backend]) -> None:
    with pytest.raises(AssertionError):
        check_targeted(wrong(), affine(784, 10, 0.0, 1.0))


def test_other_bits_are_not_the_same(random_network: Any, random_images: Any) -> None:
    network, x = random_network(activation="tanh"), random_images(20)
    native = advcore.minimize_distortion(network, x)
    nudged = np.nextafter(native.adversarial, np.float32(2))
    with pytest.raises(AssertionError, match="adversarial"):
        Native(_core.isa()).assert_agrees(dataclasses.replace(native, adversarial=nudged), native)


def test_distances_beyond_the_tolerance_do_not_agree(
    backend: Backend, random_network: Any, random_images: Any
) -> None:
    network, x = random_network(activation="tanh"), random_images(20)
    native = advcore.minimize_distortion(network, x)
    worse = native.distortion.copy()
    worse[3] *= 1.5
    with pytest.raises(AssertionError):
        backend.assert_agrees(dataclasses.replace(native, distortion=worse), native)
