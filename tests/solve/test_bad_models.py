"""Models that are not what they should be, or that fail: errors that name it."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from support.same_results import same
from support.small_models import INF, NAN, K, Model, N, images, names, refuse

import advcore
from advcore import ModelError, reference

# --- models


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (3, TypeError, "model must be a torch.nn.Module, .* got int"),
        (None, TypeError, "model must be a torch.nn.Module, .* got NoneType"),
        (object(), TypeError, "model must be a torch.nn.Module, .* got object"),
        (Model, TypeError, r"model is a class \(Model\); pass an instance"),
        (
            Model(lambda x: np.zeros(len(x))),
            ValueError,
            r"model must return logits of shape \(B, K\), here \(4, K\), got \(4,\)",
        ),
        (Model(lambda x: np.zeros((len(x), 2, 2))), ValueError, r"\(B, K\), .* got \(4, 2, 2\)"),
        (Model(lambda x: np.zeros((len(x), 0))), ValueError, r"\(B, K\), .* got \(4, 0\)"),
        (Model(lambda x: np.zeros((3, K))), ValueError, r"\(B, K\), here \(4, K\), got \(3, 3\)"),
        (Model(lambda x: np.zeros((len(x), K), int)), TypeError, "floating-point .* got int64"),
        (Model(lambda x: (x, x)), TypeError, r"an array \(B, K\), got tuple with 2 of them"),
        (
            Model(lambda x: np.exp(x[:, :3]) / np.exp(x[:, :3]).sum(1, keepdims=True)),
            ValueError,
            "model must return logits, got rows in .* the output of a softmax",
        ),
    ],
)
def test_models(model: Any, error: Any, text: str) -> None:
    refuse(error, text, model, images())


def test_model_that_raises_at_once_is_named() -> None:
    def forward(x: Any) -> Any:
        raise ZeroDivisionError("broken model")

    text = (
        r"the model raised on a batch of 4 images of shape \(2, 3\): ZeroDivisionError: broken mo"
    )
    with pytest.raises(ValueError, match=text) as info:
        advcore.minimize_distortion(Model(forward), images().reshape(4, 2, 3))
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_random_model_is_refused() -> None:
    rng, a = np.random.default_rng(0), Model().a
    noisy = Model(lambda x: x @ a.T + rng.standard_normal((len(x), K)))
    text = r"model must be deterministic: logits of the same images differ by up to \d\.\d between"
    refuse(ValueError, text, noisy, images())
    faint = Model(lambda x: (x - 0.5) @ a.T + 1e-4 * rng.standard_normal((len(x), K)))
    result = advcore.minimize_distortion(faint, images(), bounds=(-5, 5))
    assert result.success.all()


def test_model_that_looks_at_its_batch_is_refused() -> None:
    a = Model().a
    model = Model(lambda x: (x - x.mean(0)) @ a.T)
    refuse(
        ValueError,
        "the same logits in any batch: they differ by up to .* 8 and of 1",
        model,
        images(),
    )


def test_device_of_a_numpy_model() -> None:
    refuse(
        ValueError,
        "device must be cpu for a NumPy model, got cuda",
        Model(),
        images(),
        device="cuda",
    )


@pytest.mark.parametrize("part", ["forward", "backward"])
def test_model_that_raises_in_the_middle(part: str) -> None:
    """ModelError with the cause and what was computed."""
    x = images(20)
    model = Model()
    calls = 0

    def failing(value: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise ZeroDivisionError("broken model")
        return value @ model.a if part == "backward" else (value - 0.5) @ model.a.T

    broken = Model(**{part: failing})
    with pytest.raises(
        ModelError, match="the model raised ZeroDivisionError: broken model"
    ) as info:
        advcore.minimize_distortion(broken, x, batch_size=4)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    result = info.value.result
    assert len(result) == 20
    left = np.array(names(result)) == "interrupted"
    assert left.any()
    assert not left.all()
    whole = advcore.minimize_distortion(model, x, batch_size=4)
    np.testing.assert_array_equal(result.adversarial[~left], whole.adversarial[~left])
    np.testing.assert_array_equal(result.success[~left], whole.success[~left])
    np.testing.assert_array_equal(result.success, (result.adversarial != x).any(axis=1))
    label, now = (((v - 0.5) @ model.a.T).argmax(axis=1) for v in (x, result.adversarial))
    np.testing.assert_array_equal(now != label, result.success)


def test_backward_of_a_wrong_shape_is_named() -> None:
    model = Model(backward=lambda d: np.zeros((len(d), N + 1)))
    with pytest.raises(ValueError, match=r"model\.backward must return shape \(4, 6\), got"):
        advcore.minimize_distortion(model, images())


def test_number_of_classes_that_changes_is_named() -> None:
    count = 0

    def forward(x: Any) -> Any:
        nonlocal count
        count += 1
        return np.tile(np.arange(3.0 if count < 8 else 4.0), (len(x), 1))

    with pytest.raises((ModelError, ValueError), match="model returned 3 logits before, now 4"):
        advcore.minimize_distortion(Model(forward), images(40), batch_size=1)


# --- torch


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def module(torch: Any, classes: int = K) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(N, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes)
        ).eval()


def test_training_mode_is_named(torch: Any) -> None:
    model = module(torch)
    model[1].train()
    text = re.escape(
        "model must be in eval mode, its submodule '1' (Tanh) is in training mode; call model.ev"
    )
    refuse(ValueError, text, model, images())
    refuse(ValueError, "the module is in training mode", module(torch).train(), images())


def test_a_wrapper_in_training_mode_around_layers_in_eval_mode(torch: Any) -> None:
    class Reading(torch.nn.Sequential):
        def forward(self, x: Any) -> Any:
            return (lambda: torch.nn.functional.dropout(super().forward(x), 0.1, self.training))()

    net = module(torch)
    wrapper = torch.nn.Sequential(torch.nn.Sequential(net))
    assert wrapper.training
    result = advcore.minimize_distortion(wrapper, images())
    same(result, advcore.minimize_distortion(net, images()))
    refuse(ValueError, "the module is in training mode", Reading(net), images())
    net[1].train()
    refuse(ValueError, r"submodule '0.0.1' \(Tanh\) is in training mode", wrapper, images())


def test_a_detached_model_is_named_on_black_images(torch: Any) -> None:
    model = module(torch)
    refuse(ValueError, "no graph leads there", lambda x: model(x.detach()), 0 * images())


def test_shapes_that_are_not_of_a_batch_are_named(torch: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 3))
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    assert advcore.minimize_distortion(net.eval(), x).success.all()
    refuse(ValueError, r"channels last\?", net, x.transpose(0, 2, 3, 1))
    refuse(ValueError, r"one image alone is images\[None\]", net, x[0])
    one = lambda v: module(torch)(v)[:, 0]  # noqa: E731
    refuse(ValueError, r"got \(4,\); a single logit an image: \(B, 1\)", one, images())


def test_threads_are_those_of_torch_too(torch: Any) -> None:
    net, seen = module(torch), []

    def model(x: Any) -> Any:
        seen.append(torch.get_num_threads())
        return net(x)

    before = torch.get_num_threads()
    advcore.minimize_distortion(model, images(), labels=0, threads=before + 1, levels=256)
    assert torch.get_num_threads() == before
    assert set(seen) == {before + 1}


def test_a_model_of_steps_is_named(torch: Any) -> None:
    model = module(torch)
    with pytest.warns(
        UserWarning, match="gradient of the model's logits is exactly zero"
    ) as caught:
        advcore.minimize_distortion(lambda x: model((8 * x).round()), images())
    assert [warning.filename for warning in caught] == [__file__]
    constant = advcore.minimize_distortion(lambda x: 0 * model(x), images(), 1)  # no warning
    assert names(constant) == ["not_found"] * 4


def test_a_frozen_script_runs(torch: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        frozen = torch.jit.freeze(torch.jit.script(module(torch)))
    assert advcore.minimize_distortion(frozen, images()).success.all()


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("mask", [-1e4, -1e6, -1e9, -3e38, -INF])
def test_masked_classes_ask_for_no_margin(torch: Any, mask: float, native: bool) -> None:
    """Models mask classes by a large negative logit, whose rounding is not that of the others."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(N, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    with torch.no_grad():
        layers[2].weight[3:] = 0
        layers[2].bias[3:] = mask
        three = torch.nn.Linear(8, 3)
        three.weight[:], three.bias[:] = layers[2].weight[:3], layers[2].bias[:3]
    plain = torch.nn.Sequential(layers[0], layers[1], three).eval()
    wanted = advcore.minimize_distortion(plain, images(), effort="thorough")
    model = layers.eval() if native else lambda x: 1 * layers(x)
    found = advcore.minimize_distortion(model, images(), effort="thorough")
    assert found.success.all()
    np.testing.assert_allclose(found.distortion, wanted.distortion, rtol=1e-4)


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_classes_masked_by_minus_infinity(torch: Any, loss: str) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(N, K)
    masks = torch.tensor([0.0, 0.0, 0.0, -INF])
    model = lambda x: torch.cat([linear(x), linear(x)[:, :1]], dim=1) + masks  # noqa: E731
    plain = advcore.minimize_distortion(linear.eval(), images(), loss=loss, effort="thorough")
    for attack in (advcore.minimize_distortion, reference.minimize_distortion):
        found = attack(model, images(), loss=loss, confidence=1e-4)
        assert found.success.all()
        np.testing.assert_allclose(found.distortion, plain.distortion, rtol=2e-2)
        aimed = attack(model, images(), np.full(4, 3), loss=loss)
        assert names(aimed) == ["not_found"] * 4


def test_masked_classes_hide_no_random_logits(torch: Any) -> None:
    class Masked(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            z = torch.nn.functional.dropout(torch.cat([x, -x], dim=1), 0.5)
            return z + torch.where(torch.arange(z.shape[1]) < 3, 0.0, -1e6)

    refuse(ValueError, "model must be deterministic", Masked().eval(), images())


def test_a_model_that_writes_to_its_input_unseen_gets_copies(torch: Any) -> None:
    class Writes(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(N, K)

        def forward(self, x: Any) -> Any:
            y = self.linear(x)
            x.data.zero_()
            return y

    torch.manual_seed(0)
    model, x = Writes().eval(), images()
    result = advcore.minimize_distortion(model, x)
    np.testing.assert_array_equal(x, images())
    plain = advcore.minimize_distortion(lambda rows: model.linear(rows), images())
    assert result.success.all()
    np.testing.assert_array_equal(result.adversarial, plain.adversarial)


@pytest.mark.parametrize("outputs", [1, 3])
def test_one_sigmoid_is_warned_about(torch: Any, outputs: int) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(N, outputs), torch.nn.Sigmoid()).eval()
    if outputs == 3:
        advcore.minimize_distortion(model, images())
    else:
        with pytest.warns(UserWarning, match="the output of a sigmoid") as caught:
            advcore.minimize_distortion(model, images())
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda t, m: lambda x: (m(x), x), TypeError, r"return a tensor \(B, K\), got tuple"),
        (lambda t, m: lambda x: m(x)[:, 0], ValueError, r"logits of shape \(B, K\), .* got \(4,\)"),
        (lambda t, m: lambda x: m(x)[None], ValueError, r"\(B, K\), .* got \(1, 4, 3\)"),
        (lambda t, m: lambda x: m(x).argmax(1, keepdim=True), TypeError, "got torch.int64"),
        (lambda t, m: lambda x: m(x.detach()).detach(), ValueError, "must be differentiable"),
        # the weights want gradients: there is a graph, but none to the images
        (lambda t, m: lambda x: m(x.detach()), ValueError, "no graph leads there"),
        (lambda t, m: lambda x: t.softmax(m(x), 1), ValueError, "the output of a softmax"),
        (
            lambda t, m: t.nn.Sequential(m, t.nn.Softmax(1)).eval(),
            ValueError,
            "the output of a softmax; pass the model without it",
        ),
        (lambda t, m: t.nn.Sequential(m, t.nn.Sigmoid()).eval(), None, ""),
    ],
)
def test_torch_outputs(torch: Any, make: Any, error: Any, text: str) -> None:
    model = make(torch, module(torch))
    if error is None:
        assert advcore.minimize_distortion(model, images()).success.all()
    else:
        refuse(error, text, model, images())


def test_wrong_input_size_in_torch(torch: Any) -> None:
    text = r"batch of 4 images of shape \(7,\): RuntimeError: .* shapes cannot be multiplied"
    refuse(ValueError, text, module(torch), images(n=7))


def test_class_of_a_module(torch: Any) -> None:
    refuse(TypeError, r"model is a class \(Linear\); pass an instance", torch.nn.Linear, images())


def test_dropout_that_stays_active_is_refused(torch: Any) -> None:
    net = module(torch)
    text = r"model must be deterministic: .* \(dropout or another random layer active"
    refuse(ValueError, text, lambda x: torch.nn.functional.dropout(net(x), 0.5), images())


def test_exported_program_of_a_fixed_batch(torch: Any) -> None:
    program = torch.export.export(module(torch), (torch.zeros(4, N),)).module()
    text = "; an exported program needs a dynamic batch dimension$"
    refuse(ValueError, r"the model raised on a batch of 3 images .*" + text, program, images(3))
    refuse(ValueError, r"the model raised on a batch of 2 images .*" + text, program, images(4))


@pytest.mark.parametrize("lowered", [True, False])
def test_tensors_come_back_as_tensors(torch: Any, lowered: bool) -> None:
    net, x = module(torch), images(8)
    model = net if lowered else lambda v: 1 * net(v)
    expected = advcore.minimize_distortion(model, x)
    assert isinstance(expected.adversarial, np.ndarray)
    for tensor in (
        torch.from_numpy(x.copy()),
        torch.from_numpy(x.copy()).double(),
        torch.from_numpy(x.copy()).requires_grad_(True),
        torch.from_numpy(np.ascontiguousarray(x.T)).T,
    ):
        result = advcore.minimize_distortion(
            model, tensor, labels=torch.from_numpy(expected.prediction * 0)
        )
        assert isinstance(result.adversarial, torch.Tensor)
        assert result.adversarial.dtype == torch.float32
        assert not result.adversarial.requires_grad
        same = advcore.minimize_distortion(model, x, labels=[0] * 8)
        np.testing.assert_array_equal(result.adversarial.numpy(), same.adversarial)
    half = torch.from_numpy(np.rint(8 * x) / 8)
    rounded = advcore.minimize_distortion(model, half.bfloat16())
    exact = advcore.minimize_distortion(model, half)
    np.testing.assert_array_equal(rounded.adversarial.numpy(), exact.adversarial.numpy())


@pytest.mark.parametrize("lowered", [True, False])
def test_single_logit_in_torch_is_the_binary_form(torch: Any, lowered: bool) -> None:
    net, x = module(torch, classes=1), images(12)
    model = net if lowered else lambda v: 1 * net(v)
    result = advcore.minimize_distortion(model, x, bounds=(-20, 20))
    assert result.engine["path"] == ("native" if lowered else "torch")
    with torch.no_grad():
        clean = net(torch.from_numpy(x))[:, 0].numpy() > 0
        found = net(torch.from_numpy(result.adversarial))[:, 0].numpy() > 0
    assert result.success.any()
    assert (clean != found)[result.success].all()
    np.testing.assert_array_equal(result.prediction[result.success], found[result.success])


def test_nan_in_torch_for_some_images(torch: Any) -> None:
    net, x = module(torch), images(8)
    x[:, 0] = 0
    x[3, 0] = 1

    def model(v: Any) -> Any:
        return net(v) + torch.where(v[:, :1] == 1, NAN, 0.0)

    frozen = np.arange(N) == 0
    bounds = (np.where(frozen, x, -5), np.where(frozen, x, 5))
    result = advcore.minimize_distortion(model, x, bounds=bounds)
    assert names(result)[3] == "non_finite"
    rest = np.arange(8) != 3
    assert "non_finite" not in np.array(names(result))[rest]
    alone = advcore.minimize_distortion(model, x[rest], bounds=(bounds[0][rest], bounds[1][rest]))
    np.testing.assert_array_equal(result.success[rest], alone.success)
    np.testing.assert_allclose(result.distortion[rest], alone.distortion, rtol=1e-3)


def test_torch_model_that_raises_in_the_middle(torch: Any) -> None:
    net, calls = module(torch), 0

    def model(v: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise RuntimeError("out of memory")
        return net(v)

    with pytest.raises(ModelError, match="RuntimeError: out of memory") as info:
        advcore.minimize_distortion(model, images(30), batch_size=2)
    assert len(info.value.result) == 30
    assert "interrupted" in names(info.value.result)
    assert isinstance(info.value.result.adversarial, np.ndarray)


def test_devices_that_are_not_there(torch: Any) -> None:
    text = r"device must be one that torch can use here, got {} \({}"
    for device, reason in (("nonsense", "Expected one of cpu"), (0.5, ".*float")):
        refuse(
            ValueError,
            text.format(repr(str(device)), reason),
            *(module(torch), images()),
            device=device,
        )
    result = advcore.minimize_distortion(module(torch), images(), device="cpu", bounds=(-5, 5))
    assert result.engine["device"] == "cpu"
    assert result.engine["path"] == "native"
    if not torch.cuda.is_available():
        reason = r"torch\.cuda\.is_available\(\) is False\)"
        for device in ("cuda", torch.device("cuda")):
            refuse(
                ValueError, text.format("'cuda'", reason), module(torch), images(), device=device
            )


def test_the_module_is_left_as_it_was(torch: Any) -> None:
    for activation in (torch.nn.Tanh(), torch.nn.ReLU()):
        net = module(torch)
        net[1] = activation.eval()
        net[0].weight.requires_grad_(False)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        for model in (net, lambda v, m=net: m(v)):
            advcore.minimize_distortion(model, images())
        assert not net.training
        assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
        assert all(p.grad is None for p in net.parameters())
        for key, value in net.state_dict().items():
            assert torch.equal(value, before[key])
        assert not net[1]._forward_hooks
