"""Result: accuracies, figures of classes, labels and record, and tables."""

from __future__ import annotations

import csv
import json
import sys
from typing import Any

import numpy as np
import pytest
from support.results import RECORD, labelled, make, same

from advcore.result import Result


def test_accuracies_are_those_of_the_labels() -> None:
    lines = labelled().summary([1, 2.5]).splitlines()
    assert lines[1:3] == [
        "clean accuracy: 80.0%",
        "robust accuracy: 60.0% at ||r|| <= 1, 40.0% at ||r|| <= 2.5",
    ]
    assert "clean accuracy" in labelled().summary()
    assert "robust" not in labelled().summary()
    predicted = {**RECORD, "input": {"labels": "predicted"}}
    assert "predictions unchanged: 60.0% at" in labelled(record=predicted).summary(1)
    assert "accuracy" not in labelled(record=predicted).summary(1)
    assert "not taken for the target: 60.0% at" in make(record=RECORD).summary(1)
    assert "accuracy" not in make(record=RECORD).summary(1)
    assert "withstood: 60.0% at" in labelled(record={}).summary(1)
    with pytest.raises(ValueError, match="eps must not be NaN"):
        labelled().summary([1, np.nan])


def test_statistics_are_numbers() -> None:
    figures = labelled().statistics(1)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["clean_accuracy"] == 0.8
    assert figures["withstood"] == [{"eps": 1.0, "share": 0.6}]
    assert figures["distortion"] == {"mean": 1.75, "median": 1.5}
    assert figures["distortion_of_changed"] == {"mean": pytest.approx(7 / 3), "median": 2.0}
    assert figures["status"] == {
        "converged": 2, "already_adversarial": 1, "budget": 1, "not_found": 1,
    }  # fmt: skip
    assert make(record=RECORD).statistics()["clean_accuracy"] is None
    nothing = labelled()[[]].statistics(1)
    assert nothing["distortion"] == {"mean": None, "median": None}
    assert nothing["withstood"] == [{"eps": 1.0, "share": None}]


def test_classes_have_figures_of_their_own() -> None:
    first, second = labelled().per_class([0, 2])
    assert (first.label, first.images, first.adversarial, first.already_adversarial) == (0, 2, 2, 1)
    assert (first.mean, first.median, first.evaluations, first.accuracy) == (1, 1, 5.5, (0.5, 0))
    assert (second.label, second.images, second.adversarial) == (1, 3, 2)
    assert (second.mean, second.median, second.accuracy) == (3, 3, (1, 2 / 3))
    classes, counts = labelled().class_counts()
    assert classes.tolist() == [0, 1, 2, 3]
    assert counts.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0], [0] * 4, [0] * 4]
    for ask in (make().per_class, make().class_counts):
        with pytest.raises(ValueError, match="the result has no labels: give labels="):
            ask()


def test_rows_and_joined_results_keep_labels_and_record() -> None:
    part = labelled()[[4, 0]]
    assert part.label.tolist() == [1, 0]
    assert part.record == RECORD
    same(Result.concatenate([labelled()[:2], labelled()[2:]]), labelled())
    other = {**RECORD, "options": {**RECORD["options"], "seed": 1}, "run": {"command": "x"}}
    joined = Result.concatenate([labelled(), labelled(record=other)])
    assert joined.record["options"] == {**RECORD["options"], "seed": "0, 1"}
    assert joined.record["run"] == {"command": "x"}
    assert Result.concatenate([make(), labelled()]).label.tolist() == [-1] * 5 + [0, 0, 1, 1, 1]


def test_tables_have_a_row_for_each_image(tmp_path: Any) -> None:
    labelled(distortion=np.array([0, 0.1, 2, 4, np.inf], np.float32)).to_csv(tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == list("01234")
    assert [row["distortion"] for row in rows] == ["0.0", "0.1", "2.0", "4.0", "inf"]
    assert [row["label"] for row in rows] == list("00111")
    assert {row["target"] for row in rows} == {""}
    assert rows[0]["c"] == ""
    assert rows[3]["status"] == "budget"
    labelled().to_json(tmp_path / "r.json", eps=[1])
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["format"] == "advcore.result.1"
    assert content["record"] == RECORD
    assert content["statistics"] == labelled().statistics(1)
    assert [entry["mean"] for entry in content["classes"]] == [1, 3]
    assert content["images"][4]["distortion"] is None
    assert content["images"][2]["evaluations"] == 20
    make().to_json(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["classes"] == []


def test_data_frames(tmp_path: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = labelled(penalty_distortion=np.ones(5, np.float32)).to_dataframe()
    assert frame.index.name == "image"
    assert frame.distortion.tolist() == [0, 1, 2, 4, np.inf]
    assert frame.target.isna().all()
    assert frame.groupby("label").evaluations.mean().tolist() == [5.5, pytest.approx(160 / 3)]
    assert frame.status.tolist()[-1] == "not_found"
    assert frame.penalty_distortion.tolist() == [1] * 5
    assert frame.attrs["record"] == RECORD
    labelled().to_csv(tmp_path / "r.csv")
    read = pandas.read_csv(tmp_path / "r.csv", index_col="image")
    assert read.distortion.tolist() == frame.distortion.tolist()


def test_a_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'to_dataframe needs pandas: pip install "advcore\[pan'):
        make().to_dataframe()


def test_files_keep_labels_and_record(tmp_path: Any) -> None:
    labelled().save(tmp_path / "r.npz")
    same(Result.load(tmp_path / "r.npz"), labelled())
    with np.load(tmp_path / "r.npz") as stored:
        values = {name: stored[name] for name in stored.files}
    assert int(values["format"]) == 2
    first = {name: values[name] for name in values if name not in ("format", "label", "record")}
    np.savez(tmp_path / "first.npz", **first)  # the format before labels and a record
    loaded = Result.load(tmp_path / "first.npz")
    assert loaded.label.tolist() == [-1] * 5
    assert loaded.record == {}
    np.savez(tmp_path / "later.npz", **(values | {"format": np.array(3)}))
    with pytest.raises(ValueError, match="format is 3, this version of advcore reads up to 2"):
        Result.load(tmp_path / "later.npz")
    np.savez(tmp_path / "later.npz", **values, more=np.array(3))
    with pytest.raises(ValueError, match=r"unknown \['more'\]; a later version may have written"):
        Result.load(tmp_path / "later.npz")
    for text in ('{"a": 1}', "[]", '{"a": {"b": []}}'):
        np.savez(tmp_path / "bad.npz", **(values | {"record": np.array(text)}))
        with pytest.raises(ValueError, match="record must map names to names and values"):
            Result.load(tmp_path / "bad.npz")


def test_curves_of_several_results() -> None:
    pytest.importorskip("matplotlib")
    from advcore.report import curve_figure, curve_points

    eps, shares = curve_points(labelled())
    assert eps.tolist() == [0, 1, 2, 4]
    assert shares.tolist() == [0.8, 0.6, 0.4, 0.2]
    axes = curve_figure(labelled()).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("distortion ||r||", "robust accuracy")
    assert axes.get_legend() is None
    [line] = axes.lines
    assert line.get_xdata().tolist() == eps.tolist()
    assert line.get_ydata().tolist() == shares.tolist()
    both = curve_figure({"ours": labelled(), "theirs": make()}).axes[0]
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["ours", "theirs"]
    for wrong in ({}, {"a": make()[[]]}, {"a": make(), "b": make(norm="l1")}):
        with pytest.raises(ValueError, match="results must have images and one norm, got "):
            curve_figure(wrong)
