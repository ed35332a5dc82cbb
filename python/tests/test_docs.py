"""Every Python block of the README and of docs/, run as it stands, in a folder that has the clone's models/."""

import importlib.util
import re

import pytest

from conftest import ROOT


def blocks() -> list:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for i, match in enumerate(re.finditer(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)):
            found.append(pytest.param(match.group(1), id=f"{path.stem}-{i}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_block(code, cache, tmp_path, monkeypatch):
    for name in ("torch", "lm_eval"):
        if re.search(rf"^import {name}\b", code, re.M) and importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    exec(compile(code, "block", "exec"), {})
