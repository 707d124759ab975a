"""The programs on forms of a network and on architectures, on small cases."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
bench_forms = importlib.import_module("bench_forms")
bench_single = importlib.import_module("bench_single")
survey = importlib.import_module("survey_architectures")
machine = importlib.import_module("harness.machine")
networks = importlib.import_module("harness.networks")
make_pages = importlib.import_module("make_pages")
architectures_page = importlib.import_module("pages.architectures")
single_page = importlib.import_module("pages.single")
forms_page = importlib.import_module("pages.forms")


@pytest.fixture
def residual() -> Any:
    torch.manual_seed(0)
    block = networks.Block(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Identity())
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), block, nn.Flatten(), nn.Linear(144, 4)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    return tmp_path


NEED = {name: package for name, (_, package) in bench_forms.FORMS.items()}


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("name", [name for name in NEED if name != "torch.compile"])
def test_every_form_has_the_logits_of_the_module(name: str, residual: Any) -> None:
    """The compiler takes long; `tests/oracles` has it."""
    if NEED[name]:
        pytest.importorskip(NEED[name])
    x = torch.rand(3, 3, 8, 8)
    form = bench_forms.FORMS[name][0](residual, x)
    logits = residual(x).detach().numpy()
    others = form(x).detach().numpy() if callable(form) else form.predict(x.numpy())
    np.testing.assert_allclose(others, logits, rtol=1e-4, atol=1e-5)


def test_a_form_is_measured(residual: Any, stored: Path) -> None:
    images = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    with torch.no_grad():
        classes = (residual(torch.from_numpy(images)).argmax(1).numpy() + 1) % 4
    case = networks.Case("small", residual, images, classes, targeted=True)
    figures = bench_forms.measure(residual.forward, case, "fast")
    same = bench_forms.measure(residual, case, "fast")
    assert figures["success"] == same["success"] == 1
    assert figures["evaluations"] == same["evaluations"]
    assert figures["distortion"] == same["distortion"]
    assert "bound method" in figures["engine"]["reason"]
    page = forms_page.forms_table({"module": figures})
    assert f"{figures['evaluations']:.1f}" in page


class Gated(nn.Module):
    """A branch, a gate and an activation of each family."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        h = self.stem(x)
        h = h * torch.sigmoid(self.gate(h)) + h
        return self.head(h.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Branching(nn.Module):
    """Control flow that depends on values: there is no graph of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 5)

    def forward(self, x: Any) -> Any:
        logits = self.linear(x.flatten(1))
        return logits if float(logits.detach().sum()) > 1e9 else 2 * logits


@pytest.mark.parametrize("kind", [Gated, Attention, Branching])
def test_the_survey_of_small_architectures(kind: Any) -> None:
    torch.manual_seed(0)
    module = survey.prepare(kind(), (3, 8, 8))
    row = survey.survey(module, (3, 8, 8))
    assert not row["wrong"]
    assert max(row["search"].values()) <= 1e-5
    if kind is Branching:
        assert isinstance(row["graph"], str)
    else:
        assert max(row["graph"].values()) <= 1e-5
    page = architectures_page.architectures_table({"own: small": row})
    assert "own small" in page
    assert architectures_page.summary({"own: small": row}).endswith("| 0 |")


def test_a_wrong_reading_is_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    module = survey.prepare(Gated(), (3, 8, 8))
    wrong = survey.by_autograd(lambda x: 1.01 * module(x))
    monkeypatch.setattr(survey, "by_search", lambda backend, shape: wrong)
    assert survey.survey(module, (3, 8, 8))["wrong"]


def test_stored_figures_have_no_wrong_reading() -> None:
    figures = json.loads(Path(machine.figures_file("survey_architectures")).read_text())["rows"]
    assert len(figures) >= 50
    assert not [name for name, row in figures.items() if row["wrong"]]


def test_the_cost_of_calls_is_measured(residual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).random((3, 3, 8, 8), dtype=np.float32)
    case = networks.Case("small", residual, images, np.zeros(3, np.int64), targeted=True)
    monkeypatch.setattr(networks, "case", lambda *args, **options: case)
    figures = bench_single.measure("small", 3)
    assert set(figures) == {"first", "again", "training", "check", "evaluation"}
    assert 0 < figures["again"] < figures["first"]
    assert f"{figures['again']:.2f}" in single_page.single_table({"small": figures})
