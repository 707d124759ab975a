"""Parts of all experiments: tables, kept steps and networks."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import torch
from support.small_experiments import SMALL, counted, new_run, small_outcome, small_table

from advcore.experiments.parts import make, networks
from advcore.experiments.parts.digits import Digits, gaussian_noise
from advcore.experiments.parts.files import digest
from advcore.experiments.parts.networks import Recipe
from advcore.experiments.parts.run import Run
from advcore.experiments.parts.tables import Cell, Figure, Outcome

# --- tables


def test_statistics_of_a_cell() -> None:
    cell = Cell("A", "test", (1.0, 2.0, 4.0))
    assert cell.mean == pytest.approx(np.mean([1, 2, 4]))
    assert cell.deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert Cell("A", "test", (1.0,)).deviation is None


def test_markdown_of_a_table() -> None:
    assert small_table().markdown() == (
        "| model | test | \\|r\\| |\n"
        "| --- | ---: | ---: |\n"
        "| A | 2.3 ± 1.5 (1.64) | 0.062 (0.06) |\n"
        "| B | 3.0 |  |"
    )


def test_csv_of_a_table() -> None:
    rows = list(csv.reader(io.StringIO(small_table().csv())))
    assert rows == [
        ["row", "column", "mean", "standard_deviation", "published", "values"],
        ["A", "test", "2.33333", "1.52753", "1.64", "1 2 4"],
        ["A", "|r|", "0.0625", "", "0.06", "0.0625"],
        ["B", "test", "3", "", "", "3"],
    ]


@pytest.mark.parametrize("values", [[1.0, np.inf], -np.inf, []])
def test_numbers_that_are_none_are_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        small_table().add("C", "test", values)


def test_seeds_with_nothing_to_measure_are_told() -> None:
    table = small_table()
    table.add("C", "test", [1.0, np.nan, 3.0])
    table.add("C", "|r|", [np.nan])
    cell = table.cell("C", "test")
    assert cell is not None
    assert cell.values == (1.0, None, 3.0)
    assert cell.mean == 2
    assert table.measured(cell).endswith(" (2 of 3 seeds)")
    nothing = table.cell("C", "|r|")
    assert nothing is not None
    assert np.isnan(nothing.mean)
    assert table.measured(nothing) == "–"
    assert "C,|r|,,,,\n" in table.csv()


def test_a_cell_is_added_once_and_takes_arrays() -> None:
    table = small_table()
    with pytest.raises(ValueError, match="there is such a cell"):
        table.add("A", "test", 1.0)
    table.add("C", "test", np.array([1, 3]))
    cell = table.cell("C", "test")
    assert cell is not None
    assert cell.values == (1.0, 3.0)


def test_an_outcome_comes_back_from_its_json(tmp_path: Path) -> None:
    outcome = small_outcome()
    outcome.write(tmp_path)
    back = Outcome.read(tmp_path / "table1.json")
    drawn = {**asdict(back.figures[0]), "drawing": outcome.figures[0].drawing}
    assert back.figures[0].drawing is None
    back.figures = [Figure(**drawn)]
    assert back == outcome
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "line.svg").read_bytes()
    assert (tmp_path / "errors.csv").read_text("utf-8") == small_table().csv()
    assert small_table().markdown() in (tmp_path / "table1.md").read_text("utf-8")
    assert not list(tmp_path.glob("*.part"))


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        small_outcome().write(tmp_path / folder)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["errors.csv", "line.png", "line.svg", "table1.json", "table1.md"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_headline_must_name_a_cell(tmp_path: Path) -> None:
    outcome = small_outcome()
    outcome.headline = ("errors", "A", "absent")
    with pytest.raises(ValueError, match="there is no cell"):
        outcome.write(tmp_path)
    assert not list(tmp_path.iterdir())


# --- kept steps


def test_a_step_is_computed_once(tmp_path: Path) -> None:
    calls: list[Any] = []
    run = new_run(tmp_path)
    first = run.step("count", {"images": 3}, counted(calls))
    assert first["number"] == 1
    assert first["half"].dtype == np.float32
    assert str(first["name"]) == "text"
    took = run.seconds
    for again in (run, new_run(tmp_path)):
        assert again.step("count", {"images": 3}, counted(calls))["number"] == 1
        assert again.seconds == took > 0
    assert len(calls) == 1


def test_a_changed_setting_is_another_step(tmp_path: Path) -> None:
    calls: list[Any] = []
    other = Run(tmp_path, scale="tiny", dataset="mnist")
    for run, name, depends in (
        (new_run(tmp_path), "count", {"images": 3}),
        (new_run(tmp_path), "count", {"images": 4}),
        (new_run(tmp_path), "count", {"images": 3, "effort": "fast"}),
        (new_run(tmp_path), "other", {"images": 3}),
        (other, "count", {"images": 3}),
    ):
        run.step(name, depends, counted(calls))
    assert len(calls) == 5


def test_a_step_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path)

    def broken() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.step("count", {}, broken)

    def half_written(file: Any, **_: Any) -> None:
        file.write(b"PK half of a file")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half_written)
        with pytest.raises(OSError, match="disk full"):
            run.step("count", {}, counted([]))
    steps = tmp_path / "cache" / "steps"
    assert not list(steps.iterdir())
    (steps / f"count-{digest({'dataset': 'embedded'})}.npz.123.part").write_bytes(b"PK half")
    assert run.step("count", {}, counted([]))["number"] == 1
    assert run.spent.keys() == {f"count-{digest({'dataset': 'embedded'})}"}


def test_what_is_no_array_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'nothing' is not an array"):
        new_run(tmp_path).step("count", {}, lambda: {"nothing": None})
    assert not list((tmp_path / "cache" / "steps").iterdir())


# --- networks


def weights(run: Run, recipes: list[Recipe]) -> list[dict[str, Any]]:
    return [one.model.state_dict() for one in run.trained(recipes)]


def test_networks_trained_side_by_side_are_those_of_one_process(tmp_path: Path) -> None:
    recipes = [replace(SMALL, seed=seed) for seed in range(2)]
    torch.set_num_threads(2)
    one = weights(new_run(tmp_path / "one", workers=1), recipes)
    assert torch.get_num_threads() == 2
    assert float(torch.tensor(1e-40) * 1) != 0  # denormals are not flushed in the caller
    two = weights(new_run(tmp_path / "two", workers=2), recipes)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(one[0]["1.weight"], one[1]["1.weight"])


def test_networks_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [replace(SMALL, seed=seed) for seed in range(3)]
    calls: list[int] = []
    real = make.train

    def train(wanted: Recipe) -> Any:
        calls.append(wanted.seed)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return real(wanted)

    monkeypatch.setattr(make, "train", train)
    with pytest.raises(KeyboardInterrupt):
        new_run(tmp_path, workers=1).trained(recipes)
    run = new_run(tmp_path, workers=1)
    trained = run.trained([*recipes, recipes[0]])
    assert calls == [0, 1, 1, 2]
    assert [one.recipe.seed for one in trained] == [0, 1, 2, 0]
    assert trained[0] is trained[3]
    assert run.seconds == sum(one.seconds for one in trained[:3])
    assert not any(weight.requires_grad for weight in trained[0].model.parameters())
    digits = Digits.load("embedded")
    logits = trained[1].model(torch.from_numpy(digits.test_images))
    wrong = (logits.argmax(1).numpy() != digits.test_labels).mean()
    assert trained[1].test_error == pytest.approx(100 * wrong)


def test_every_field_of_a_recipe_is_in_its_key() -> None:
    changed: dict[str, Any] = {
        "model": "fc100_100_10",
        "decay": (1e-3,),
        "dataset": "mnist",
        "seed": 1,
        "epochs": 2,
        "batch_size": 50,
        "learning_rate": 0.2,
        "optimizer": "adam",
        "half": 1,
        "split": 1,
        "codes_epochs": 1,
        "dropout": (0.5,),
        "feedback": (("layers", (0, 1)),),
        "validation": 10,
    }
    assert changed.keys() == asdict(SMALL).keys()
    recipes = [SMALL, *(replace(SMALL, **{key: value}) for key, value in changed.items())]
    keys = {digest(networks.content(recipe)) for recipe in recipes}
    assert len(keys) == len(recipes)
    assert digest(networks.content(replace(SMALL))) in keys


# --- digits


def sorted_rows(*images: Any) -> Any:
    rows = np.concatenate(images)
    return rows[np.lexsort(rows.T)]


def test_halves_of_the_training_set() -> None:
    digits = Digits.load("embedded")
    images, labels = digits.training_part(0, 0)
    assert len(np.unique(images, axis=0)) == len(images) == 800
    (first, first_labels), (second, second_labels) = (
        digits.training_part(half, 7) for half in (1, 2)
    )
    assert len(first) == len(second) == 400
    np.testing.assert_array_equal(sorted_rows(first, second), sorted_rows(images))
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part, truth in ((first, first_labels), (second, second_labels)):
        assert [known[image.tobytes()] for image in part] == list(truth)
    np.testing.assert_array_equal(first, digits.training_part(1, 7)[0])
    assert not np.array_equal(first, digits.training_part(1, 8)[0])


def test_the_sample_is_drawn_once() -> None:
    digits = Digits.load("embedded")
    many, labels = digits.sample("test", 50)
    few, _ = digits.sample("test", 20)
    np.testing.assert_array_equal(few, many[:20])
    known = {
        image.tobytes(): y for image, y in zip(digits.test_images, digits.test_labels, strict=True)
    }
    assert [known[image.tobytes()] for image in many] == list(labels)
    assert not np.array_equal(many, digits.test_images[:50])
    assert len(digits.sample("train", 10_000)[0]) == 800


def test_gaussian_noise_has_its_deviation() -> None:
    images = np.full((500, 784), 0.5, np.float32)
    noise = gaussian_noise(images, 0.3, seed=1) - images
    assert float(noise.std()) == pytest.approx(0.3, rel=5e-3)
    assert abs(float(noise.mean())) < 3e-3
    clipped = gaussian_noise(images, 0.3, seed=1, clip=True)
    np.testing.assert_array_equal(clipped, np.clip(images + noise, 0, 1))
    assert not np.array_equal(noise, gaussian_noise(images, 0.3, seed=2) - images)
