"""Every block of docs/recipes.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.native_build import ROOT

PAGE = ROOT / "docs" / "recipes.md"

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


@pytest.mark.skipif(not PAGE.exists(), reason="needs the source folder")
@pytest.mark.filterwarnings("default")
def test_recipes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, Any] = {}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)
        if "result =" in block:
            assert names["result"].success.all()
            assert np.isfinite(names["result"].distortion).all()
    assert (tmp_path / "result.html").exists()
    assert (tmp_path / "curves.svg").exists()
