"""Result: figures over a batch with known answers, and files."""

from __future__ import annotations

import pickle
import zipfile
from typing import Any

import numpy as np
import pytest
from support.damage import damaged, damaged_members, refusals
from support.results import make, same

from advcore import _core
from advcore.result import Result, status_code


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
        "distortion ||r||: mean 1.7500, median 1.5000 (1 already adversarial count as 0; "
        "without them mean 2.3333, median 2.0000); rms: mean 0.7144",
        "evaluations: mean 34.2, p99 98, 100 ms an image; further forwards: mean 5.0",
        "status: converged 2, already_adversarial 1, budget 1, not_found 1",
    ]
    penalty = np.array([np.nan, 1.5, 2.5, 4.5, np.nan], np.float32)
    text = make(penalty_distortion=penalty).summary()
    assert "penalty minimiser ||r||: mean 2.8333" in text


def test_summary_says_why_a_model_ran_through_torch() -> None:
    engine = {"path": "torch", "device": "cpu", "reason": "a callable that is not a module"}
    lines = make(engine=engine).summary().splitlines()
    assert lines[1] == "why through torch: a callable that is not a module"
    assert len(lines) == 5
    native = make(engine={**engine, "path": "native"})
    assert "why" not in native.summary()
    stored = make(engine={"path": "torch"})
    assert "why" not in stored.summary()


def test_robust_accuracy_is_a_quotient_of_counts() -> None:
    names = ("success", "distortion")
    many = {name: np.repeat(getattr(make(), name)[1:2], 100) for name in names}
    many["distortion"][:7] = 0.5
    assert make(**many).robust_accuracy(0.5) == 0.93


def test_repr_is_one_line() -> None:
    mean = "mean ||r|| 1.750 (1 already adversarial count as 0)"
    assert repr(make()) == f"Result(5 images, 4 adversarial, {mean}, native cpu)"
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


def test_rows_and_their_concatenation(tmp_path: Any) -> None:
    penalty = np.array([np.nan, 1, 2, 3, np.nan], np.float32)
    result = make(penalty_distortion=penalty)
    same(Result.concatenate([result[:2], result[2:]]), result)
    same(Result.concatenate(result), result)  # one result for each image
    same(result[np.arange(5)], result)
    found = result[result.success]
    assert len(found) == 4
    assert found.seconds == pytest.approx(0.4)
    np.testing.assert_array_equal(result[[-1, 0]].prediction, [7, 3])
    np.testing.assert_array_equal(result[3].adversarial, result.adversarial[3:4])
    assert len(result[[]]) == len(result[:0]) == 0
    whole = Result.concatenate([result[:3], make()])
    assert len(whole) == 8
    assert np.isnan(whole.penalty_distortion[3:]).all()
    assert whole.robust_accuracy(1.0) == 4 / 8
    assert "8 images" in whole.summary()
    whole.save(tmp_path / "whole.npz")
    same(Result.load(tmp_path / "whole.npz"), whole)


def test_rows_of_tensors() -> None:
    torch = pytest.importorskip("torch")
    result = make(adversarial=torch.arange(30.0).view(5, 6))
    part = result[torch.tensor([True, False, True, False, False])]
    assert torch.equal(part.adversarial, result.adversarial[::2][:2])
    assert torch.equal(
        Result.concatenate([part, result[3:]]).adversarial, result.adversarial[[0, 2, 3, 4]]
    )
    mixed = Result.concatenate([part, make(adversarial=np.ones((5, 6), np.float32))])
    assert isinstance(mixed.adversarial, np.ndarray)


def test_what_ran_is_joined() -> None:
    engines: list[Any] = [
        {"path": "torch", "device": "cpu", "rounds": 3, "round_seconds": 0.5},
        {"path": "native", "device": "cpu", "rounds": 4, "threads": 2},
    ]
    joined = Result.concatenate([make(engine=engine) for engine in engines])
    assert joined.engine == {
        "path": "torch, native",
        "device": "cpu",
        "rounds": 7,
        "round_seconds": 0.5,
        "threads": 2,
    }
    assert joined.seconds == 1.0


def test_rows_and_results_that_do_not_fit_are_named() -> None:
    result = make()
    for rows in ("adversarial", 1.5, [0.5], (0, 1), None, np.ones((2, 2), int)):
        with pytest.raises(TypeError, match=r"rows must be a slice, row numbers or a mask \(N,\)"):
            result[rows]
    for index in (5, [0, 9], np.ones(4, bool)):
        with pytest.raises(IndexError):
            result[index]
    with pytest.raises(ValueError, match="one Result or more, got none"):
        Result.concatenate([])
    with pytest.raises(TypeError, match="must be Result objects, got int"):
        Result.concatenate([make(), 3])  # type: ignore[list-item]
    flat = make(adversarial=np.zeros((5, 6), np.float32))
    with pytest.raises(ValueError, match=r"one shape of their images, got \(2, 3\), \(6,\)"):
        Result.concatenate([make(), flat])
    with pytest.raises(ValueError, match="one penalty, got l2, l2_unsquared"):
        Result.concatenate([make(), make(penalty="l2_unsquared")])


def test_summary_says_what_stalled_means() -> None:
    status = make().status.copy()
    status[1] = status_code("stalled")
    text = make(status=status).summary()
    assert "stalled 1 (no step gains any more: as good as converged)" in text


def test_files_of_former_versions(tmp_path: Any) -> None:
    """Where the penalty was called norm."""
    make().save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as stored:
        former = {
            name.replace("penalty", "norm"): stored[name] for name in stored.files if name != "norm"
        }
    assert str(former["norm"]) == '"l2"'
    np.savez_compressed(tmp_path / "former.npz", **former)
    loaded = Result.load(tmp_path / "former.npz")
    assert loaded.penalty == "l2"
    np.testing.assert_array_equal(loaded.adversarial, make().adversarial)
    assert loaded.norm == "l2"


def test_pickles_of_former_versions() -> None:
    loaded = pickle.loads(pickle.dumps(make()))
    assert (loaded.penalty, loaded.loss) == ("l2", "margin")
    state = dict(vars(make()))
    former = Result.__new__(Result)
    former.__dict__ = {**state, "norm": state["penalty"]}
    del former.__dict__["penalty"]
    loaded = pickle.loads(pickle.dumps(former))
    assert vars(loaded).keys() == vars(make()).keys() - {"norm"}
    assert (loaded.penalty, loaded.norm) == ("l2", "l2")


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
        with pytest.raises(ValueError, match=rf"{name}: not a stored result: "):
            Result.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path / "absent.npz")


def test_damaged_results_end_in_one_line(tmp_path: Any) -> None:
    path = tmp_path / "r.npz"
    make().save(path)
    whole = path.read_bytes()
    copies = [*damaged(whole, 150), *damaged_members(whole, 150)]
    texts = refusals(lambda path: Result.load(path).summary(), path, copies)
    assert len(texts) > 250
    for text in texts:
        assert text.startswith(f"{path}: not a stored result: ")
        assert "\n" not in text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"success": np.ones(4, bool)}, r"adversarial has shape \(5, 2, 3\) for \(4,\) im"),
        ({"adversarial": np.zeros(5, np.float32)}, r"adversarial has shape \(5,\) for"),
        ({"adversarial": np.zeros((4, 6), np.float32)}, r"adversarial has shape \(4, 6\) for"),
        ({"distortion": np.zeros((5, 1), np.float32)}, r"distortion has shape \(5, 1\) for"),
        ({"success": np.zeros((), bool)}, r"adversarial has shape \(5, 2, 3\) for \(\) im"),
        ({"status": np.full(5, 99, np.int8)}, r"status holds \[99\], which are no values of"),
        ({"status": np.full(5, np.nan)}, "status holds float64"),
        ({"success": np.ones(5)}, "success holds float64"),
        ({"prediction": np.ones(5)}, "prediction holds float64"),
        ({"penalty_distortion": np.ones(5, int)}, "penalty_distortion holds int64"),
        ({"seconds": np.nan}, "seconds must be finite and >= 0, got nan"),
        ({"seconds": np.zeros(2)}, r"seconds must be a number, got float64 of shape \(2,\)"),
        ({"penalty": np.array('["l2"]')}, r"penalty must be a text, got \['l2'\]"),
        (
            {"engine": np.array('{"path": ["native"]}')},
            "engine must map names to texts and numbers",
        ),
        ({"engine": np.array("[" * 100_000)}, "engine is not JSON"),
        ({"loss": np.array("margin")}, "loss is not JSON"),
    ],
)
def test_fields_that_do_not_fit_are_named(
    tmp_path: Any, changes: dict[str, Any], text: str
) -> None:
    make(penalty_distortion=np.ones(5, np.float32)).save(tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as stored:
        values = {name: stored[name] for name in stored.files}
    np.savez(tmp_path / "r.npz", **(values | changes))
    with pytest.raises(ValueError, match=rf"r\.npz: not a stored result: {text}"):
        Result.load(tmp_path / "r.npz")


def npy(header: str, content: bytes = b"") -> bytes:
    """Return a .npy file with this header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (10**12,)}", "malformed|Cannot parse"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
            "needs 4000000000000 bytes, there are 4",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "has a negative extent"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", "it holds object, expected num"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,", "EOF|Cannot parse"),
        ("{" * 9000, "EOF|parse|nested|parentheses|memory"),
    ],
)
def test_members_are_checked_before_they_are_read(tmp_path: Any, header: str, text: str) -> None:
    make().save(tmp_path / "r.npz")
    with zipfile.ZipFile(tmp_path / "r.npz") as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    members["margin.npy"] = npy(header, bytes(4))
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=rf"not a stored result: member 'margin': .*({text})"):
        Result.load(tmp_path / "r.npz")


def test_members_that_no_result_has_are_not_read(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().save(tmp_path / "r.npz")
    with zipfile.ZipFile(tmp_path / "r.npz", "a") as archive:
        archive.writestr("more.npy", b"")

    def opened(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(zipfile.ZipFile, "open", opened)
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['more'\]"):
        Result.load(tmp_path / "r.npz")


def test_arrays_come_back_in_their_order_and_may_be_written_to(tmp_path: Any) -> None:
    adversarial = np.asfortranarray(np.arange(30, dtype=np.float32).reshape(5, 6))
    make(adversarial=adversarial).save(tmp_path / "r.npz")
    loaded = Result.load(tmp_path / "r.npz").adversarial
    np.testing.assert_array_equal(loaded, adversarial)
    assert loaded.flags.f_contiguous
    loaded[0] = 1
