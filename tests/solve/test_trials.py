"""The trials of a model before the run: rows, threads, time, and what they leave."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest
from support.small_models import K, Model, N, affine, images, names, refuse

import advcore

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn


class Counted(nn.Module):  # type: ignore[misc]
    """A small network that notes the rows and threads of its calls."""

    def __init__(self, most: int = 10**9, seconds: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(N, 16), nn.Tanh(), nn.Linear(16, K))
        self.most, self.seconds = most, seconds
        self.rows: list[int] = []

    def forward(self, x: Any) -> Any:
        self.rows.append(len(x))
        time.sleep(self.seconds)
        if len(x) > self.most:
            raise RuntimeError(
                f"shape '[{self.most}, {N}]' is invalid for input of size {x.numel()}"
            )
        return self.net(x)


def in_numpy(model: Any) -> Any:
    def forward(x: Any) -> Any:
        model.rows.append(len(x))
        time.sleep(model.seconds)
        return (x - 0.5) @ Model().a.T

    return Model(forward)


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"levels": 256}, {"labels": [0] * 12}])
def test_a_batch_is_the_most_that_a_model_gets(most: int, options: Any) -> None:
    for wrap in (lambda m: m.eval(), lambda m: lambda x: m(x), in_numpy):
        model = Counted()
        result = advcore.minimize_distortion(wrap(model), images(12), batch_size=most, **options)
        assert result.success.all()
        assert max(model.rows) == most


def test_a_model_of_one_image_is_searched_like_others() -> None:
    x = images(12)
    one = advcore.minimize_distortion(Counted(most=1).eval(), x, batch_size=1)
    many = advcore.minimize_distortion(Counted().eval(), x)
    assert one.success.all()
    np.testing.assert_allclose(one.distortion, many.distortion, rtol=1e-3)
    starts = one.adversarial
    again = advcore.minimize_distortion(Counted(most=1).eval(), x, batch_size=1, starts=starts)
    assert (again.distortion <= one.distortion).all()


def test_a_model_of_one_image_is_told_the_option() -> None:
    text = "on a batch of 12 images .*; one image at a time works: pass batch_size=1"
    refuse(ValueError, text, Counted(most=1).eval(), images(12))
    model = Model(lambda x: (x.reshape(1, N) - 0.5) @ Model().a.T)
    refuse(ValueError, "; one image at a time works: pass batch_size=1", model, images(12))


def test_a_lowered_module_ignores_the_batch_in_its_margin() -> None:
    net = Counted().net.eval()
    one, many = (
        advcore.minimize_distortion(net, images(12), batch_size=size, threads=1) for size in (1, 12)
    )
    np.testing.assert_array_equal(one.adversarial, many.adversarial)


@pytest.mark.parametrize("limit", [1e-9, 0.12])
def test_the_time_limit_holds_in_the_trials(limit: float) -> None:
    for wrap in (lambda m: m.eval(), lambda m: lambda x: m(x), in_numpy):
        model = Counted(seconds=0.1)
        result = advcore.minimize_distortion(wrap(model), images(5), time_limit=limit)
        assert len(model.rows) <= 2
        assert names(result) == ["interrupted"] * 5
        assert not result.success.any()
        np.testing.assert_array_equal(result.adversarial, images(5))
        refuse(
            ValueError, r"targets must be in \[0, 3\)", wrap(model), images(5), 3, time_limit=1e-9
        )


def test_the_time_limit_in_the_trials_of_a_lowered_module() -> None:
    result = advcore.minimize_distortion(Counted().net.eval(), images(5), time_limit=1e-9)
    assert names(result) == ["interrupted"] * 5
    assert "time_limit" in str(result.engine["reason"])


class Broken(torch.autograd.Function):  # type: ignore[misc]
    """The identity without a derivative."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("no derivative")


def test_a_backward_that_raises_is_named_before_the_run() -> None:
    net = Counted().net
    text = r"the model's backward raised on a batch of 2 images of shape \(6,\): NotImplemented"
    with pytest.raises(ValueError, match=text) as info:
        advcore.minimize_distortion(lambda x: net(Broken.apply(x)), images())
    assert isinstance(info.value.__cause__, NotImplementedError)


def test_models_without_values_are_named() -> None:
    net, x = Counted().net.eval(), images()
    refuse(ValueError, "device must be one that holds values, got 'meta'", net, x, device="meta")
    refuse(ValueError, "its parameters are on the device meta", net.to("meta"), x)


def test_a_callable_in_training_mode_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(N, 8), nn.BatchNorm1d(8), nn.Linear(8, K)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    text = "model must be in eval mode: a forward changed the running_mean of a BatchNorm1d"
    refuse(ValueError, text, lambda x: net(x), images(20))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    plain = Counted().net.train()
    assert advcore.minimize_distortion(lambda x: plain(x), images()).success.all()


def test_statistics_of_the_batch_are_named_behind_a_linear_layer() -> None:
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    net = nn.Sequential(nn.Linear(N, 8), norm, nn.Linear(8, K)).eval()
    refuse(ValueError, "statistics of the batch in use", net, images(20))


def test_labels_that_are_mostly_wrong_are_named() -> None:
    x, network = images(20), affine()
    right = network.forward(x).argmax(1)
    text = "the model gives 20 of 20 images another class than labels says"
    with pytest.warns(UserWarning, match=text):
        result = advcore.minimize_distortion(network, x, labels=(right + 1) % K)
    assert "20 already adversarial count as 0" in repr(result)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nine_wrong = np.where(np.arange(20) < 9, right + 1, right) % K
        advcore.minimize_distortion(network, x, labels=nine_wrong)
        advcore.minimize_distortion(network, x[:4], labels=(right[:4] + 1) % K)


FORKED = """
import multiprocessing
import numpy as np, torch
from torch import nn
import advcore

images = np.random.default_rng(0).random((64, 784), dtype=np.float32)
model = nn.Sequential(nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 10)).eval()
forms = [model, lambda x: 1 * model(x)]

def attack(form):
    x = torch.from_numpy(images[:4]).bfloat16()
    result = advcore.minimize_distortion(forms[form], x, threads=1, effort="fast")
    return float(result.distortion.sum())

torch.set_num_threads(2)
with torch.no_grad():
    model(torch.from_numpy(images))
pool = multiprocessing.get_context("fork").Pool(2)
print(pool.map_async(attack, [0, 1]).get(timeout=100))
pool.terminate()
"""


def test_one_thread_holds_in_the_child_of_a_fork() -> None:
    """A thread more would hang: torch has used its own before the fork."""
    done = subprocess.run([sys.executable, "-P", "-c", FORKED], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr


NO_MEMORY = """
import resource
import advcore
from advcore import data

images, labels = data.embedded_digits()
network = data.embedded_network()
once = lambda threads: advcore.minimize_distortion(network, images, labels=labels, threads=threads)
once(1)
used = 4096 * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    once(512)
except ValueError as error:
    print(error)
once(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
def test_threads_that_cannot_start_are_named() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", NO_MEMORY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "threads must be as many as this system can start, got 512 (" in done.stdout
