"""Ctrl-C after the search, and models that fail for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import advcore
from advcore import Status

LATE_PROGRAM = """
import os, signal, sys
import numpy as np, advcore
from advcore.solve import finish

signal.signal(signal.SIGINT, signal.default_int_handler)
name, presses = sys.argv[2], int(sys.argv[3])
network = advcore.Network.load(sys.argv[1])
x = np.random.default_rng(1).random((60, 20), dtype=np.float32)
class Model:
    def __init__(self):
        self.forward, self.backward = network.forward, network.backward
model = Model() if name == "margins" else network
whole = advcore.minimize_distortion(model, x, threads=1)
owner = finish if name != "margins" else finish.Judge
if name == "make_result":
    import advcore.api as owner
original = getattr(owner, name)
def pressed(*args, **options):
    for _ in range(presses):
        os.kill(os.getpid(), signal.SIGINT)
    setattr(owner, name, original)
    return original(*args, **options)
setattr(owner, name, pressed)
try:
    advcore.minimize_distortion(model, x, threads=1)
except advcore.Interrupted as error:
    result = error.result
else:
    sys.exit("not interrupted")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert np.array_equal(result.adversarial, whole.adversarial)
assert np.array_equal(result.success, whole.success)
assert np.array_equal(result.status, whole.status)
"""


@pytest.mark.parametrize(
    ("moment", "presses"),
    [
        ("keep_inside", 1),  # before the verification
        ("confirm", 1),
        ("margins", 1),  # in a forward of it
        ("margins", 2),
        ("shorten", 1),
        ("distances", 1),  # the result is being made
        ("make_result", 1),
    ],
)
def test_ctrl_c_after_the_search_keeps_the_result(
    moment: str, presses: int, tmp_path: Path, random_network: Any
) -> None:
    """The first Ctrl-C lets the verification end, a second one ends it.

    What the search on the model itself has found is a success by the logits that it gave then.
    """
    random_network(sizes=(20, 64, 5), activation="tanh").save(tmp_path / "n.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", LATE_PROGRAM, str(tmp_path / "n.safetensors"), moment, str(presses)],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_handler_of_the_callers_is_left_alone(random_network: Any, random_images: Any) -> None:
    import signal

    def mine(number: int, frame: Any) -> None:
        pass

    seen: list[Any] = []
    before = signal.signal(signal.SIGINT, mine)
    try:
        advcore.minimize_distortion(
            random_network(),
            random_images(5),
            callback=lambda _: seen.append(signal.getsignal(signal.SIGINT)),
        )
        assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen
    assert all(handler is mine for handler in seen)


@pytest.mark.parametrize("lowered", [True, False])
def test_a_model_that_fails_for_good_leaves_what_it_has_confirmed(
    lowered: bool, random_network: Any, random_images: Any
) -> None:
    """What a search on the model itself has found keeps the word of its forwards there."""
    torch = pytest.importorskip("torch")
    network, x = random_network(activation="tanh"), random_images(50)
    module = network.to_torch()

    calls = [0]

    def model(images: Any) -> Any:
        calls[0] += 1
        if calls[0] > 45:
            raise RuntimeError("broken for good")
        return module(images)

    if lowered:  # the engine searches, the module fails in the verification
        real = module.forward

        def after_the_run(state: advcore.Progress) -> None:
            if state.finished == state.total:
                torch.nn.Sequential.forward, kept[0] = fail, torch.nn.Sequential.forward

        kept = [real]

        def fail(self: Any, images: Any) -> Any:
            raise RuntimeError("broken for good")

        try:
            with pytest.raises(advcore.ModelError) as caught:
                advcore.minimize_distortion(module, x, callback=after_the_run)
        finally:
            torch.nn.Sequential.forward = kept[0]
        assert not caught.value.result.success.any()
        return
    with pytest.raises(advcore.ModelError) as caught:
        advcore.minimize_distortion(model, x, batch_size=10)
    result = caught.value.result
    left = result.status == Status.interrupted
    assert left.any()
    moved = (result.adversarial != x).any(axis=1)
    np.testing.assert_array_equal(result.success, moved)
    assert np.isinf(result.distortion[~moved]).all()
    label = network.forward(x).argmax(axis=1)
    found = result.success
    assert (network.forward(result.adversarial[found]).argmax(axis=1) != label[found]).all()
