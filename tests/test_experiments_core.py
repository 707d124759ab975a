"""What all experiments stand on: tables, kept steps and networks, the report, the command."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("joblib")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("typer")

import torch
from matplotlib.figure import Figure as Drawing
from typer.testing import CliRunner, Result

from advcore import experiments, reproduce_command
from advcore.experiments import networks, report
from advcore.experiments.digits import Digits, gaussian_noise
from advcore.experiments.networks import Recipe
from advcore.experiments.run import Run, digest
from advcore.experiments.tables import Cell, Figure, Outcome, Table

SMALL = Recipe("fc10", (1e-4,), "embedded", 0, 1, 100, 0.1, "sgd")


def new_run(folder: Path, **options: Any) -> Run:
    return Run(folder, scale="tiny", dataset="embedded", **{"seeds": 1, **options})


def small_table() -> Table:
    table = Table("errors", "Errors", "In percent.", "model", {"": ".1f", "|r|": ".3f"})
    table.add("A", "test", [1.0, 2.0, 4.0], 1.64)
    table.add("A", "|r|", [0.0625], 0.06)
    table.add("B", "test", 3)
    return table


def small_outcome(name: str = "table1", *, figure: bool = True) -> Outcome:
    figures = []
    if figure:
        drawing = Drawing(figsize=(2, 1))
        drawing.subplots().plot([0, 1], [1, 0])
        figures = [Figure("line", "A line", drawing, "It *falls*.")]
    return Outcome(
        name,
        f"Title of {name}",
        "Is `a < b`?",
        tables=[small_table()],
        figures=figures,
        remarks=[
            "- First **remark**.",
            "See [there](https://example.org) <script>alert(1)</script>",
        ],
        headline=("errors", "A", "test"),
        settings={"images": 3, "radii": [1, 2], "options": {"loss": "margin"}},
    )


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


def counted(values: list[Any]) -> Callable[[], dict[str, Any]]:
    """A step that notes its calls in `values` and gives their number."""

    def make() -> dict[str, Any]:
        values.append(None)
        return {"number": len(values), "half": np.float32([0.5]), "name": "text"}

    return make


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
    real = networks.train

    def train(wanted: Recipe) -> Any:
        calls.append(wanted.seed)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return real(wanted)

    monkeypatch.setattr(networks, "train", train)
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


# --- reproduce, the report, the command


class Fake:
    """Stands for an experiment's module; raises what `error` says after its one step."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Any] = []
        self.error: BaseException | None = None

    def run(self, run: Run) -> Outcome:
        run.step(f"step_{self.name}", {}, counted(self.calls))
        if self.error is not None:
            raise self.error
        return small_outcome(self.name, figure=self.name == "table1")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    """Takes the place of every experiment."""
    made = {name: Fake(name) for name in experiments.EXPERIMENTS}
    for name, fake in made.items():
        module = ModuleType(name)
        module.run = fake.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"advcore.experiments.{name}", module)
    return made


def command(*arguments: object) -> Result:
    return CliRunner().invoke(
        reproduce_command.app, ["reproduce", *(str(argument) for argument in arguments)]
    )


@pytest.mark.usefixtures("fakes")
def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("table1", "--quick", "--out", out, "--dataset", "embedded")
    assert done.exit_code == 0, done.output
    for text in ("Title of table1", "2.3 ± 1.5", "(1.64)", "0.062", "First remark", "in paren"):
        assert text in done.stdout
    assert done.stderr == "[1/1] table1\n"
    stored = json.loads((out / "table1" / "table1.json").read_text("utf-8"))
    line = f"advcore reproduce table1 --quick --seeds 1 --out {out} --dataset embedded"
    assert stored["origin"]["command"] == line
    assert stored["origin"]["versions"]["torch"] == torch.__version__
    assert stored["origin"]["cpus"] >= 1
    assert stored["seconds"] >= 0
    command("table2", "--quick", "--out", out, "--dataset", "embedded")
    page = (out / "report.html").read_text("utf-8")
    assert page.index("Title of table1") < page.index("Title of table2")
    assert [entry["finished"] for entry in report.invocations(out)] == [["table1"], ["table2"]]


def test_all_goes_on_after_a_failure(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    fakes["table3"].error = RuntimeError("no\nluck")
    done = command("all", "--quick", "--out", tmp_path, "--dataset", "embedded")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 1 of 10 experiments failed: table3 (RuntimeError: no luck)")
    assert "RuntimeError: no\nluck" in (tmp_path / "table3" / "error.txt").read_text("utf-8")
    written = {path.parent.name for path in tmp_path.glob("*/*.json")}
    assert written == set(experiments.EXPERIMENTS) - {"table3"}
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "broke off" in page
    fakes["table3"].error = None
    again = command("all", "--quick", "--out", tmp_path, "--dataset", "embedded")
    assert again.exit_code == 0, again.output
    assert all(len(fake.calls) == 1 for fake in fakes.values())
    assert not (tmp_path / "table3" / "error.txt").exists()
    assert "broke off" not in (tmp_path / "report.html").read_text("utf-8")


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    fakes["table2"].error = KeyboardInterrupt()
    arguments = ("table1", "table2", "--quick", "--out", tmp_path, "--dataset", "embedded")
    done = command(*arguments)
    assert done.exit_code == 130
    last = f"error: interrupted (what is finished is kept in {tmp_path}; the same command goes on)"
    assert done.stderr.splitlines()[-1] == last
    assert report.invocations(tmp_path)[0]["finished"] == ["table1"]
    assert "Title of table1" in (tmp_path / "report.html").read_text("utf-8")
    fakes["table2"].error = None
    assert command(*arguments).exit_code == 0
    assert len(fakes["table2"].calls) == 1


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "unknown experiment 'table9'; there are all, table1, table2"),
        (["table1", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["table1", "--dataset", "cifar"], 'dataset must be "mnist" or "embedded", got \'cifar\''),
        (["table1"], "put MNIST's four files in $ADVCORE_DATA/mnist, or take the 1,000 digits"),
        (["table1", "--dataset", "embedded", "--out", "file"], "File exists: 'file'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVCORE_DATA", str(tmp_path / "nowhere"))
    Digits.load.cache_clear()
    (tmp_path / "file").touch()
    done = command(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("module", experiments.NEEDED)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = command("table1", "--out", tmp_path, "--dataset", "embedded")
    assert done.exit_code == 2
    assert 'pip install "advcore[experiments]"' in done.stderr
    assert module in done.stderr


def test_the_same_name_twice_runs_once(tmp_path: Path, fakes: dict[str, Fake]) -> None:
    outcomes = experiments.reproduce(
        ["table1", "table1"], tmp_path, scale="tiny", seeds=1, dataset="embedded"
    )
    assert [outcome.name for outcome in outcomes] == ["table1"]
    assert outcomes[0].origin["command"].startswith("advcore.experiments.reproduce(['table1'], ")
    assert experiments.reproduce("table2", tmp_path, scale="tiny", dataset="embedded")


class Page(HTMLParser):
    """Tags with their attributes, and the text of every cell."""

    VOID = ("meta", "link", "img", "br", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.mark.usefixtures("fakes")
def test_the_report_is_one_file_with_every_number(tmp_path: Path) -> None:
    experiments.reproduce(["table1", "units"], tmp_path, scale="tiny", seeds=3, dataset="embedded")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "iframe"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is not None and tag != "a":
                assert value.startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert '<a href="https://example.org">there</a>' in text
    assert [" ".join(cell.split()) for cell in page.cells].count("2.3 ± 1.5 published 1.64") == 2
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    inside = {
        value[1:]
        for tag, attributes in page.tags
        if tag == "a" and (value := attributes["href"] or "").startswith("#")
    }
    assert inside == {"summary", "table1", "units", "runs"} <= anchors
    (drawing,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert (drawing["src"] or "").startswith("data:image/svg+xml;base64,")
    assert drawing["width"] == "192"  # two inches


def test_pictures_go_into_the_report_as_png(tmp_path: Path) -> None:
    drawing = Drawing(figsize=(3, 3))
    drawing.subplots().imshow(np.eye(4))
    Figure("grid", "Pictures", drawing).write(tmp_path)
    shown = report.image(tmp_path, "grid")
    assert shown["src"].startswith("data:image/png;base64,")
    assert shown["width"] == 288


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.6, "59.6 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_bars_on_a_terminal_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, progress=True)
    with run.bar("outer", None), run.bar("inner", 2) as advance:
        advance()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    with run.bar("outer", None), run.bar("inner", 2) as advance:
        advance()
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "inner" in shown
    assert run._shown is None
