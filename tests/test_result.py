"""Result: figures over a batch with known answers, and files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from advcore import _core
from advcore.result import Result, status_code


def make(**changes: Any) -> Result:
    """Five images: already adversarial, three attacked, one not found."""
    distortion = np.array([0.0, 1.0, 2.0, 4.0, np.inf], np.float32)
    names = ["already_adversarial", "converged", "converged", "budget", "not_found"]
    values: dict[str, Any] = {
        "engine": {"path": "native", "device": "cpu", "threads": 2},
        "adversarial": np.arange(5 * 6, dtype=np.float32).reshape(5, 2, 3) / 30,
        "success": np.array([True, True, True, True, False]),
        "distortion": distortion,
        "rms_distortion": (distortion / np.sqrt(6)).astype(np.float32),
        "margin": np.array([0.5, 1e-4, 2e-4, 3e-4, -0.25], np.float32),
        "prediction": np.array([3, 1, 2, 0, 7]),
        "target": np.array([3, 1, 2, 0, 8]),
        "c": np.array([np.nan, 0.1, 0.2, 0.3, np.nan]),
        "status": np.array([status_code(name) for name in names], np.int8),
        "evaluations": np.array([1, 10, 20, 40, 100], np.int32),
        "forwards": np.array([0, 5, 5, 5, 10], np.int32),
        "iterations": np.array([0, 8, 18, 30, 70], np.int32),
        "rescues": np.array([0, 0, 0, 1, 2], np.int32),
        "seconds": 0.5,
        "penalty": "l2",
        "loss": "margin",
    }
    return Result(**{**values, **changes})


def test_status_codes_are_those_of_the_engine() -> None:
    for name in ("converged", "already_adversarial", "budget", "stalled", "not_found"):
        assert status_code(name) == int(_core.Status[name].value)


def test_curve_counts_failures_as_robust_and_adversarial_images_as_zero() -> None:
    result = make()
    assert result.curve(0.0) == pytest.approx(0.2)
    assert result.curve(0.999) == pytest.approx(0.2)
    assert result.curve(1.0) == pytest.approx(0.4)
    assert result.curve(np.inf) == pytest.approx(0.8)
    assert result.curve(-1.0) == 0.0
    assert isinstance(result.curve(1.0), float)
    np.testing.assert_allclose(result.curve([[0, 2], [3, 9]]), [[0.2, 0.6], [0.6, 0.8]])
    assert result.robust_accuracy(2.0) == 2 / 5
    assert isinstance(result.robust_accuracy(2.0), float)
    np.testing.assert_allclose(result.robust_accuracy([0, np.inf]), [0.8, 0.2])
    np.testing.assert_array_equal(result.minimum_distortion(), [0, 1, 2, 4, np.inf])
    with pytest.raises(ValueError, match="eps must not be NaN"):
        result.curve(np.nan)


def test_summary_has_the_figures_of_the_successes() -> None:
    lines = make().summary().splitlines()
    assert lines == [
        "5 images, 4 adversarial (80.0%), 0.5 s, 10 images/s, native cpu",
        "distortion ||r||: mean 1.7500, median 1.5000 (1 already adversarial count as 0); "
        "rms: mean 0.7144",
        "evaluations: mean 34.2, p99 98; further forwards: mean 5.0",
        "status: converged 2, already_adversarial 1, budget 1, not_found 1",
    ]
    penalty = np.array([np.nan, 1.5, 2.5, 4.5, np.nan], np.float32)
    text = make(penalty_distortion=penalty).summary()
    assert "penalty minimiser ||r||: mean 2.8333" in text


def test_robust_accuracy_is_a_quotient_of_counts() -> None:
    names = ("success", "distortion")
    many = {name: np.repeat(getattr(make(), name)[1:2], 100) for name in names}
    many["distortion"][:7] = 0.5
    assert make(**many).robust_accuracy(0.5) == 0.93


def test_repr_is_one_line() -> None:
    text = "Result(5 images, 4 adversarial, mean ||r|| 1.750, native cpu)"
    assert repr(make()) == text
    failed = make(success=np.zeros(5, bool))
    assert repr(failed) == "Result(5 images, 0 adversarial, native cpu)"


def test_speed_is_that_of_the_finished_images() -> None:
    status = make().status.copy()
    status[3:] = status_code("interrupted")
    assert "0.5 s, 6 images/s" in make(status=status).summary()


def test_every_status_is_explained() -> None:
    for name in _core.Status.__members__:
        assert f"- {name}: " in str(Result.__doc__)


def test_summary_without_success_and_without_images() -> None:
    failed = make(success=np.zeros(5, bool))
    assert "0 adversarial (0.0%)" in failed.summary()
    assert "distortion" not in failed.summary()
    result = make()
    empty = {
        name: value[:0] for name, value in vars(result).items() if isinstance(value, np.ndarray)
    }
    nothing = make(**empty)
    assert len(nothing) == 0
    assert nothing.summary() == "0 images, native cpu"
    assert np.isnan(nothing.curve(1.0))
    assert np.isnan(nothing.robust_accuracy([1.0, 2.0])).all()


@pytest.mark.parametrize("penalty", [None, np.array([np.nan, 1, 2, 3, np.nan], np.float32)])
def test_save_and_load_keep_everything(tmp_path: Any, penalty: Any) -> None:
    result = make(penalty_distortion=penalty)
    result.save(tmp_path / "r.npz")
    loaded = Result.load(tmp_path / "r.npz")
    for name, value in vars(result).items():
        other = getattr(loaded, name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value)
            assert other.dtype == value.dtype
        else:
            assert other == value
            assert type(other) is type(value)


def test_files_of_former_versions(tmp_path: Any) -> None:
    """Where the penalty was called norm, in the file and as an attribute."""
    make().save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as stored:
        former = {name.replace("penalty", "norm"): stored[name] for name in stored.files}
    assert str(former["norm"]) == '"l2"'
    np.savez_compressed(tmp_path / "former.npz", **former)
    loaded = Result.load(tmp_path / "former.npz")
    assert loaded.penalty == "l2"
    np.testing.assert_array_equal(loaded.adversarial, make().adversarial)
    with pytest.warns(FutureWarning, match=r"Result\.norm is called Result\.penalty now"):
        assert loaded.norm == "l2"
    np.savez_compressed(tmp_path / "both.npz", **former, penalty=former["norm"])
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['norm'\]"):
        Result.load(tmp_path / "both.npz")


def test_tensors_are_stored_as_arrays(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    adversarial = torch.arange(30.0).view(5, 6)
    make(adversarial=adversarial).save(tmp_path / "r.npz")
    loaded = Result.load(str(tmp_path / "r.npz")).adversarial
    np.testing.assert_array_equal(loaded, adversarial.numpy())


def test_files_that_are_no_results_are_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"must end in \.npz, got 'x'"):
        make().save("x")
    np.savez(tmp_path / "x.npz", success=np.ones(2), extra=np.ones(2))
    with pytest.raises(ValueError, match=r"missing \['adversarial'.*unknown \['extra'\]"):
        Result.load(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", np.ones(2))
    (tmp_path / "x.txt").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    for name in ("x.npy", "x.txt", "empty.npz", "cut.npz"):
        with pytest.raises(ValueError, match=rf"{name}: not a stored result$"):
            Result.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path / "absent.npz")
