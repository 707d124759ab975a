"""The page of a result: its figures, hostile names, missing packages, and a real browser."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.results import RECORD, labelled, make

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from advcore.report.page import visible

CLEAN = np.arange(5 * 16, dtype=np.float32).reshape(5, 4, 4) / 160
HOSTILE = [
    "<script>document.title='owned'</script>",
    "\"quotes\" & 'more' <img src=x onerror=\"document.title='owned'\">",
    "\u202eright to left\u2066",
    "\x1b[31mred\x1b[0m\x07",
    "$x_2$ {{ 7 * 7 }} {% raw %}",
    "half \udcff",
    "</bdi></style></svg><script>document.title='owned'</script>",
    "&lt;b&gt;",
]


class Text(HTMLParser):
    """The text of a page without style, its tags, and the attributes of the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._hidden = tag in ("style", "svg")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("style", "svg"):
            self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


def pictured(**changes: Any) -> Any:
    """A result of `CLEAN`: image 3 is changed most, image 1 least."""
    changed = CLEAN.copy()
    changed[1, 0, 0] += 0.1
    changed[2, 0, 0] += 0.2
    changed[3, 0, 0] += 0.4
    return labelled(adversarial=changed, **changes)


def written(result: Any, path: Path, *arguments: Any, **options: Any) -> tuple[str, Text]:
    result.report(path, *arguments, **options)
    page = path.read_text()
    return page, Text(page)


def table(page: str, name: str) -> list[list[str]]:
    """The cells of a table of the page, row by row."""
    found = re.search(rf'aria-label="{re.escape(name)}">(.*?)</table>', page, re.DOTALL)
    assert found
    rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.DOTALL)
    return [[Text(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_figures_are_on_the_page(tmp_path: Path) -> None:
    page, shown = written(pictured(), tmp_path / "r.html", CLEAN, eps=[1, 3])
    for text in (
        "4 of 5 images (80.0%)", "mean 1.7500, median 1.5000", "without them mean 2.3333",
        "converged 2, already_adversarial 1", "1 images have no adversarial example",
        "1 images used up their budget", "effort", "0123456789abcdef",
    ):  # fmt: skip
        assert text in shown.text, text
    assert table(page, "robust accuracy")[1:] == [["1", "60.0%"], ["3", "40.0%"]]
    assert table(page, "each class")[1:] == [
        ["0", "2", "2", "1", "1", "1", "5.5"], ["1", "3", "2", "0", "3", "3", "53.3"],
    ]  # fmt: skip
    assert table(page, "cost")[1] == ["evaluations", "171", "34.2", "20", "97.6", "100"]
    assert table(page, "cost")[-1][:3] == ["time", "500 ms", "100 ms"]
    assert table(page, "most frequent")[1] == ["0", "1", "1"]
    assert page.count("<svg") == 2
    assert "data:image/png;base64," in page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page, shown = written(pictured(), tmp_path / "r.html", CLEAN)
    addresses = [value for name, value in shown.attributes if name in ("src", "href", "xlink:href")]
    assert addresses
    assert all(value.startswith(("data:", "#")) for value in addresses)
    assert "script" not in shown.tags
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_nearest_images_come_first(tmp_path: Path) -> None:
    many = pictured()[np.ones(20, int)]
    many.distortion[:] = np.linspace(4, 0.5, 20)
    page, _ = written(many, tmp_path / "r.html", np.repeat(CLEAN[1:2], 20, 0))
    numbers = [int(number) for number in re.findall(r"image (\d+), converged", page)]
    assert numbers == [19, 18, 17, 16, 15, 14, 0, 1, 2, 3, 4, 5]
    assert page.count("<figcaption>difference ×") == 12


def test_originals_that_are_missing_or_of_another_run_are_told(tmp_path: Path) -> None:
    _, shown = written(pictured(), tmp_path / "r.html")
    assert "The originals are not part of a result: give images=" in shown.text
    known = {**RECORD, "input": {**RECORD["input"], "images_sha256": "0" * 64}}
    _, shown = written(pictured(record=known), tmp_path / "r.html", CLEAN)
    assert "The originals are not the images of the run" in shown.text
    for name, values in (("images", CLEAN[:4]), ("image_names", ["a"])):
        with pytest.raises(ValueError, match=f"{name} must be those of the 5 images"):
            pictured().report(tmp_path / "r.html", **{name: values})


def test_results_without_labels_pictures_or_images(tmp_path: Path) -> None:
    _, shown = written(make(), tmp_path / "r.html")
    assert "class reached" not in shown.text
    assert "holds no record" in shown.text
    flat = make(adversarial=np.zeros((5, 7), np.float32))
    _, shown = written(flat, tmp_path / "r.html")
    assert "There are no pictures: a picture of flat images needs a square number" in shown.text
    _, shown = written(make()[[]], tmp_path / "r.html")
    assert "0 of 0 images" in shown.text
    _, shown = written(labelled(success=np.zeros(5, bool)), tmp_path / "r.html")
    assert "0 of 5 images" in shown.text
    predicted = {**RECORD, "input": {"labels": "predicted"}}
    _, shown = written(labelled(record=predicted), tmp_path / "r.html")
    assert "There are no true labels" in shown.text


def test_labels_can_be_given_later(tmp_path: Path) -> None:
    page, _ = written(make(target=np.full(5, -1)), tmp_path / "r.html", labels=[0, 0, 1, 1, 1])
    assert table(page, "each class")[1][:3] == ["0", "2", "2"]
    assert table(page, "robust accuracy")
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\)"):
        make().report(tmp_path / "r.html", labels=[0, 1])


def hostile() -> tuple[Any, dict[str, Any]]:
    """A result, and arguments of its page that would break it if they were not escaped."""
    record = {
        **RECORD,
        "model": {"name": HOSTILE[0]},
        "options": {HOSTILE[1]: HOSTILE[2]},
        "run": {"command": HOSTILE[6], "warnings": HOSTILE[3]},
    }
    result = pictured(record=record, engine={"path": HOSTILE[1], "reason": HOSTILE[6]})
    names = {"class_names": HOSTILE, "image_names": HOSTILE[:5], "warnings": HOSTILE}
    return result, names


def test_hostile_names_are_text(tmp_path: Path) -> None:
    result, names = hostile()
    page, shown = written(result, tmp_path / "r.html", CLEAN, **names)
    assert not {"script", "b"} & set(shown.tags)
    assert not any(name.startswith("on") for name, _ in shown.attributes)
    assert {value for name, value in shown.attributes if name == "src"} <= set(
        re.findall(r'data:image/png;base64,[^"]*', page)
    )
    for name in HOSTILE:
        assert visible(name) in shown.text, name
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2066]", page)
    svg = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg


def test_what_would_be_obeyed_is_made_visible() -> None:
    assert visible("a\x1b[1m\u202eb\x85\udcff\n") == "a\u241b[1m<U+202E>b\ufffd\ufffd\n"
    assert visible("שלום, ñ, 漢字") == "שלום, ñ, 漢字"
    assert visible(3) == 3


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "advcore.report.page", raising=False)
    with pytest.raises(ImportError, match=rf'report needs {package}: pip install "advcore\[report'):
        labelled().report(tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, that of playwright or of the system."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        options: dict[str, Any] = {"args": ["--no-sandbox"]}
        if not Path(playwright.chromium.executable_path).exists():
            found = shutil.which("chromium") or shutil.which("google-chrome")
            if found is None:
                pytest.skip("needs Chromium: playwright install chromium")
            options["executable_path"] = found
        running = playwright.chromium.launch(**options)
        yield running
        running.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, width: int, scheme: Any) -> None:
    result, names = hostile()
    result.report(tmp_path / "r.html", CLEAN, **names)
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    tab, heard = context.new_page(), []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("dialog", lambda dialog: heard.append(dialog.message))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.goto((tmp_path / "r.html").as_uri())
    assert heard == []
    assert tab.title() == f"Adversarial examples: {HOSTILE[0]}"
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth == 4)")
    paper, ink = tab.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (paper, ink)]
    assert (light[0] > light[1]) == (scheme == "light")
    line = tab.evaluate("getComputedStyle(document.querySelector('.curve svg text')).fill")
    assert line == ink
    sizes = tab.locator(".curve svg text").evaluate_all(
        "texts => texts.map(text => text.getBoundingClientRect().height)"
    )
    assert min(size for size in sizes if size) > 8
    context.close()
