"""The attack in the form of adv-lib's, by adv-lib's own runner and metrics."""

from __future__ import annotations

import functools
import importlib
import sys
import time
import types
from typing import Any

import numpy as np
import pytest
from support.libraries import adapter_of

import advcore

torch = pytest.importorskip("torch")
from advcore.adapters.advlib import advcore_attack  # noqa: E402

NORMS = {2: "l2", float("inf"): "linf", 1: "l1"}


class Event:
    """`torch.cuda.Event` on a machine without a GPU, by the clock."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.seconds - self.seconds)


def loose_version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.partition("+")[0].split(".")))


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """adv-lib's runner, which needs CUDA events and ``distutils``, a former module of Python."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    version = types.ModuleType("distutils.version")
    version.LooseVersion = loose_version
    monkeypatch.setitem(sys.modules, "distutils", types.ModuleType("distutils"))
    monkeypatch.setitem(sys.modules, "distutils.version", version)
    for name in ("visdom", "torchvision"):  # of its logger and of a perceptual distance
        if name not in sys.modules:
            stand_in = types.ModuleType(name)
            stand_in.Visdom = stand_in.models = stand_in.transforms = None
            monkeypatch.setitem(sys.modules, name, stand_in)
    adapter_of("adv_lib")
    found = importlib.import_module("adv_lib.utils.attack_utils")
    monkeypatch.setattr(found, "LooseVersion", loose_version)  # imported before by another library
    return found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("way", ["untargeted", "targeted"])
def test_the_runner_finds_our_success_and_distances(
    utils: Any, digits: Any, norm: float, way: str
) -> None:
    targets = digits.targets if way == "targeted" else None
    attack = functools.partial(advcore_attack, norm=norm, max_queries=2000)
    data = utils.run_attack(digits.model, digits.x, digits.labels, attack, targets)
    for hooks in (digits.model._forward_pre_hooks, digits.model._backward_hooks):
        hooks.clear()  # the runner leaves them
    found = utils.compute_attack_metrics(digits.model, data)
    classes = {"labels": digits.labels} if targets is None else {"targets": targets}
    watched = functools.partial(lambda model, x: model(x), digits.model)
    ours = advcore.minimize_distortion(watched, digits.x, norm=norm, max_queries=2000, **classes)
    assert found["success"].all()
    np.testing.assert_allclose(found["distances"][NORMS[norm]], ours.distortion, rtol=1e-4)
    backwards = ours.evaluations.mean()
    assert backwards <= data["num_backwards"] <= backwards + 1  # the trial of the model
    assert data["num_forwards"] >= backwards


@pytest.mark.parametrize("norm", NORMS)
def test_a_model_that_nothing_watches_may_run_in_the_engine(digits: Any, norm: float) -> None:
    native = advcore.minimize_distortion(digits.model, digits.x, labels=digits.labels, norm=norm)
    assert native.engine["path"] == "native"
    found = advcore_attack(digits.model, digits.x, digits.labels, norm=norm)
    assert torch.equal(found, native.adversarial)


def test_targets_may_be_the_labels_of_a_targeted_call(digits: Any) -> None:
    found = advcore_attack(digits.model, digits.x, digits.targets, targeted=True)
    assert torch.equal(found, advcore_attack(digits.model, digits.x, digits.labels, digits.targets))
    assert (digits.model(found).argmax(dim=1) == digits.targets).all()


def test_a_logger_gets_successes_and_evaluations(digits: Any) -> None:
    class Logger:
        def __init__(self) -> None:
            self.lines: dict[str, list[float]] = {}
            self.updates = 0

        def accumulate_line(self, name: str, x: float, y: float) -> None:
            self.lines.setdefault(name, []).append(y)

        def update_lines(self) -> None:
            self.updates += 1

    logger = Logger()
    advcore_attack(digits.model, digits.x, digits.labels, callback=logger)
    assert logger.lines["success"][-1] == 1
    assert logger.lines["evaluations"][-1] > 1
    assert logger.updates == len(logger.lines["success"])


def test_bad_input_is_named(digits: Any) -> None:
    with pytest.raises(TypeError, match=r"targets must be classes.* pass targeted="):
        advcore_attack(digits.model, digits.x, digits.labels, True)
    with pytest.raises(TypeError, match="steps is no option"):
        advcore_attack(digits.model, digits.x, digits.labels, steps=100)
    with pytest.raises(ValueError, match="norm must be"):
        advcore_attack(digits.model, digits.x, digits.labels, norm=0)
