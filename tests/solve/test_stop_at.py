"""A distortion that is small enough ends the search of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.backends import Backend
from support.same_results import same
from support.small_models import affine as small_affine
from support.small_models import images, refuse

from advcore import Status


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_an_image_ends_where_its_distortion_is_small_enough(
    backend: Backend, random_network: Any, random_images: Any, norm: str
) -> None:
    network, x = random_network(activation="tanh"), random_images(8)
    full = backend.attack(network, x, norm=norm)
    limit = float(np.median(full.distortion))
    some = backend.attack(network, x, norm=norm, stop_at=limit)
    ended = some.status == int(Status.good_enough)
    assert 0 < ended.sum() <= (full.distortion <= limit).sum()
    assert (some.distortion[ended] <= limit).all()
    assert (some.evaluations[ended] < full.evaluations[ended]).all()
    if backend.exact:
        same(some[~ended], full[~ended])
    else:
        np.testing.assert_allclose(some.distortion[~ended], full.distortion[~ended], rtol=0.01)


def test_a_clean_image_of_another_class_stays_already_adversarial(backend: Backend) -> None:
    network, x = small_affine(), images()
    labels = (network.forward(x).argmax(axis=1) + 1) % 3
    result = backend.attack(network, x, labels=labels, stop_at=10)
    assert (result.status == int(Status.already_adversarial)).all()


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), ("0.5", TypeError)])
def test_bad_values_are_named(value: Any, error: type[Exception]) -> None:
    refuse(error, "stop_at must be", small_affine(), images(), stop_at=value)
