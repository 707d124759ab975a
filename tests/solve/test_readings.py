"""What is kept of a model between calls: used while the module is the same, and never when not."""

from __future__ import annotations

import copy
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import advcore
from advcore.oracles import TorchOracle
from advcore.oracles.module_of import module_of
from advcore.oracles.module_state import Copies, ModuleState, NoState
from advcore.solve import readings

from ..support.same_results import same

torch = pytest.importorskip("torch")
nn = torch.nn


class Scaled(nn.Module):
    """Attributes of many kinds, of which each changes the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 2.0
        self.factors = [1.0, {"last": 1.5}]
        self.array = np.ones(1, np.float32)
        self.shift = torch.zeros(1)  # a tensor that is neither parameter nor buffer
        self.function = torch.relu
        self.register_buffer("mean", torch.zeros(1))
        self.linear = nn.Linear(12, 12)

    def forward(self, x: Any) -> Any:
        factor = self.factor * self.factors[0] * self.factors[1]["last"] * float(self.array[0])
        return factor * self.function(self.linear(x.flatten(1)) + self.shift - self.mean)


def chain() -> Any:
    layers = nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers)


def with_norm() -> Any:
    layers = nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 4)
    return nn.Sequential(*layers)


def through_torch() -> Any:
    return nn.Sequential(Scaled(), nn.Softsign(), nn.Linear(12, 4))


MODELS = {"native": chain, "convolution": with_norm, "torch": through_torch}


@pytest.fixture(params=MODELS)
def model(request: Any) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def images() -> Any:
    return np.random.default_rng(0).random((4, 3, 2, 2), dtype=np.float32)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were tried, one entry a trial."""
    tried: list[Any] = []
    run = TorchOracle._run_trial

    def noted(self: Any, *args: Any) -> None:
        tried.append(self)
        run(self, *args)

    monkeypatch.setattr(TorchOracle, "_run_trial", noted)
    return tried


def attack(model: Any, images: Any, **options: Any) -> Any:
    return advcore.minimize_distortion(model, images, effort="fast", threads=1, **options)


def afresh(model: Any, images: Any, **options: Any) -> Any:
    """The result with nothing kept: that of a copy."""
    return attack(copy.deepcopy(model), images, **options)


def test_a_second_call_gives_the_same_bits_without_a_trial(
    model: Any, images: Any, trials: list[Any]
) -> None:
    first = attack(model, images)
    assert len(trials) == 1
    again = attack(model, images)
    assert len(trials) == 1
    same(first, again)
    assert first.engine["reason"] == again.engine["reason"]
    same(attack(model, images[:1]), afresh(model, images[:1]))


def test_other_shapes_and_options_are_read_for_themselves(
    model: Any, images: Any, trials: list[Any]
) -> None:
    attack(model, images)
    attack(model, images, confidence=0.5)
    assert len(trials) == 2
    attack(model, images)
    attack(model, images, confidence=0.5)
    assert len(trials) == 2


def by_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data *= -1.5


def last_bit(model: Any) -> None:
    weight = list(model.parameters())[-1]
    weight.data.view(torch.int32)[0] ^= 1


def through_numpy(model: Any) -> None:
    for parameter in model.parameters():
        parameter.detach().numpy()[...] *= 1.25


def optimizer_step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(torch.ones(2, 3, 2, 2)).square().sum().backward()
    optimizer.step()


def loaded_state(model: Any) -> None:
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})


def new_tensor(model: Any) -> None:
    model[-1].weight = nn.Parameter(torch.ones(4, model[-1].weight.shape[1]))
    model[-1].weight.data[0] *= 2


def data_swapped(model: Any) -> None:
    model[-1].weight.data = model[-1].weight.data.flip(0)


def to_double(model: Any) -> None:
    model.double()


def module_replaced(model: Any) -> None:
    model[-1] = nn.Linear(model[-1].weight.shape[1], 4).eval()


def module_added(model: Any) -> None:
    model.append(nn.Tanh().eval())


def hook_added(model: Any) -> None:
    model.register_forward_hook(lambda module, args, output: output.flip(1))


def hook_of_a_part(model: Any) -> None:
    model[-1].register_forward_pre_hook(lambda module, args: (3 * args[0],))


CHANGES: list[Callable[[Any], None]] = [
    *(by_data, last_bit, through_numpy, optimizer_step, loaded_state, new_tensor, data_swapped),
    *(to_double, module_replaced, module_added, hook_added, hook_of_a_part),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_read_again(model: Any, images: Any, change: Any) -> None:
    attack(model, images)
    change(model)
    fresh = afresh(model, images)
    result = attack(model, images)
    same(result, fresh)
    assert result.engine["reason"] == fresh.engine["reason"]
    same(attack(model, images), fresh)


@pytest.mark.parametrize("part", ["running_mean", "running_var"])
def test_changed_statistics_of_a_batch_norm(part: str, images: Any) -> None:
    model = with_norm().eval()
    attack(model, images)
    getattr(model[1], part).add_(0.7)
    same(attack(model, images), afresh(model, images))


def attribute_changes(part: Any) -> dict[str, Callable[[], None]]:
    return {
        "number": lambda: setattr(part, "factor", -2.0),
        "list": lambda: part.factors.__setitem__(0, 3.0),
        "nested": lambda: part.factors[1].update(last=0.5),
        "array": lambda: part.array.fill(4.0),
        "tensor": lambda: part.shift.add_(0.3),
        "buffer": lambda: part.mean.data.sub_(0.3),
        "function": lambda: setattr(part, "function", torch.tanh),
    }


@pytest.mark.parametrize("name", attribute_changes(None))
def test_changed_attributes(name: str, images: Any) -> None:
    model = through_torch().eval()
    attack(model, images)
    attribute_changes(model[0])[name]()
    same(attack(model, images), afresh(model, images))


def test_training_mode_is_refused_after_a_call(model: Any, images: Any) -> None:
    attack(model, images)
    model[-1].train()
    with pytest.raises(ValueError, match="eval mode"):
        attack(model, images)


def test_weights_alone_change_no_trial(model: Any, images: Any, trials: list[Any]) -> None:
    """Training loops: what the forwards have shown stays, the rest is found again."""
    attack(model, images)
    for _ in range(3):
        optimizer_step(model)
        attack(model, images)
    assert len(trials) == 1


WEIGHT = torch.ones(4, 12)


class Elsewhere(nn.Module):
    """A weight that is not the module's."""

    def forward(self, x: Any) -> Any:
        return x.flatten(1) @ WEIGHT.t()


def test_weights_from_elsewhere_are_read_in_every_call(images: Any) -> None:
    torch.manual_seed(0)
    WEIGHT.normal_()
    model = Elsewhere().eval()
    assert attack(model, images).engine["path"] == "native"
    WEIGHT[0] += 1e-4  # too little for the comparison of logits
    same(attack(model, images), afresh(model, images))


def test_operations_are_recorded_once(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from advcore.network.reading import lower

    traced: list[Any] = []
    trace = lower.trace
    monkeypatch.setattr(lower, "trace", lambda *args: traced.append(args) or trace(*args))
    for model in (chain().eval(), nn.Sequential(chain(), nn.Softsign()).eval()):
        traced.clear()
        attack(model, images)
        step_weights(model)
        attack(model, images)
        assert len(traced) == 1


def step_weights(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data += 0.01


def test_nothing_is_kept_with_the_module(model: Any, images: Any) -> None:
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    keys = list(model.state_dict())
    attack(model, images)
    assert attributes == {name: set(vars(part)) for name, part in model.named_modules()}
    assert keys == list(model.state_dict())


def test_readings_end_with_their_modules(images: Any) -> None:
    before = len(readings.READINGS._kept)
    parts: list[Any] = []
    for _ in range(5):
        model = chain().eval()
        attack(model, images)
        parts += [weakref.ref(model), weakref.ref(model[1].weight)]
    del model
    gc.collect()
    assert [part() for part in parts] == [None] * len(parts)
    assert len(readings.READINGS._kept) <= before


def test_few_readings_of_a_module(images: Any) -> None:
    model = through_torch().eval()
    for size in range(1, 8):
        attack(model, images, batch_size=size)
    assert len(readings.READINGS._kept[id(model)][1]) == readings.MOST_READINGS


def test_threads_share_a_reading(model: Any, images: Any) -> None:
    expected = afresh(model, images)
    results: list[Any] = []

    def run() -> None:
        for _ in range(3):
            results.append(attack(model, images))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 9
    for result in results:
        same(result, expected)


def test_large_weights_are_not_copied(
    images: Any, monkeypatch: pytest.MonkeyPatch, trials: list[Any]
) -> None:
    from advcore.oracles import module_state

    monkeypatch.setattr(module_state, "MOST_COPIED_BYTES", 100)
    model = chain().eval()
    attack(model, images)
    assert readings.READINGS._kept[id(model)][1][0].copies is None
    by_data(model)
    same(attack(model, images), afresh(model, images))


def test_a_trial_that_was_cut_short_is_not_kept(model: Any, images: Any, trials: list[Any]) -> None:
    attack(model, images, time_limit=1e-9)
    attack(model, images)
    assert len(trials) == 2


def test_a_survey_that_was_cut_short_is_not_kept(
    images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = through_torch().eval()
    with monkeypatch.context() as patch:

        def late(self: Any, *args: Any) -> None:
            time.sleep(0.6)
            self.check_time()

        patch.setattr(TorchOracle, "_survey", late)
        attack(model, images, time_limit=0.5)
    same(attack(model, images), afresh(model, images))


UNCOMPARABLE = {
    "hook": lambda model: model.register_forward_hook(lambda *args: None),
    "training": lambda model: model.train(),
    "object with slots": lambda model: setattr(model, "extra", iter([])),
    "method": lambda model: setattr(model, "extra", model.forward),
    "itself": lambda model: setattr(model, "extra", [model]),
    "generator": lambda model: setattr(model, "extra", torch.Generator()),
    "large array": lambda model: setattr(model, "extra", np.zeros(100_000)),
    "sparse": lambda model: setattr(model, "extra", torch.eye(3).to_sparse()),
    "complex": lambda model: setattr(model, "extra", torch.ones(2, dtype=torch.complex64)),
}


@pytest.mark.parametrize("name", UNCOMPARABLE)
def test_what_cannot_be_compared_has_no_state(name: str) -> None:
    model = chain().eval()
    UNCOMPARABLE[name](model)
    with pytest.raises(NoState):
        ModuleState(model)
    assert readings.READINGS.find(module_of(model), ()) is None


def scripted(model: Any) -> Any:
    return torch.jit.trace(model, torch.zeros(2, 3, 2, 2))


def without_training(model: Any) -> Any:
    del model.__dict__["training"]
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [scripted, without_training])
def test_modules_of_an_unusual_make(make: Any, images: Any) -> None:
    model = make(chain().eval())
    with pytest.raises(NoState):
        ModuleState(model)
    same(attack(model, images), attack(model, images))


def test_copies_are_compared_bit_for_bit() -> None:
    tensors = [torch.tensor([0.0, float("nan")]), torch.arange(6).reshape(2, 3).t()]
    tensors += [torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor([True]), torch.ones(0)]
    copies = Copies(tensors)
    assert copies.equal(tensors)
    for tensor in tensors[:4]:
        before = tensor.clone()
        # The sign of a zero alone, for the first.
        tensor.copy_(torch.logical_not(before) if tensor.dtype == torch.bool else -before)
        assert not copies.equal(tensors)
        tensor.copy_(before)
        assert copies.equal(tensors)


class ByItsClass(nn.Module):  # type: ignore[misc]
    """A module that is searched as a graph, with parts of its function in its class."""

    gain = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 3)
        self.eval()

    def before(self, x: Any) -> Any:
        return x

    def forward(self, x: Any) -> Any:
        x = self.before(x) * self.gain * SIGNS["now"]
        h = torch.utils.checkpoint.checkpoint(
            lambda t: torch.relu(self.first(t)), x, use_reentrant=False
        )
        return self.last(h).exp().log1p()


SIGNS = {"now": 1.0}


@pytest.mark.parametrize("change", ["class attribute", "method", "global"])
def test_a_change_outside_of_the_module_is_seen(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ByItsClass()
    x = np.random.default_rng(1).random((6, 8), dtype=np.float32)
    advcore.minimize_distortion(model, x)
    if change == "class attribute":
        monkeypatch.setattr(ByItsClass, "gain", -1.0)
    elif change == "method":
        monkeypatch.setattr(ByItsClass, "before", lambda self, x: 1 - x)
    else:
        monkeypatch.setitem(SIGNS, "now", -1.0)
    again = advcore.minimize_distortion(model, x)
    fresh = advcore.minimize_distortion(copy.deepcopy(model), x)
    np.testing.assert_array_equal(again.status, fresh.status)
    np.testing.assert_allclose(again.distortion, fresh.distortion, rtol=1e-4)
