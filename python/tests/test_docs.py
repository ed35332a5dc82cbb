"""Every Python block of the README and of docs/, and every notebook, run as they stand in a folder that has the clone's
models/."""

import importlib.util
import json
import re

import pytest

from conftest import ROOT
from doc_blocks import PAGES, blocks


def python_blocks() -> list:
    found = []
    for path in PAGES:
        for i, block in enumerate(blocks(path, "python")):
            marks = [pytest.mark.skip(reason=block.reason)] if block.reason else []
            found.append(pytest.param("\n".join(block.lines), id=f"{path.stem}-{i}", marks=marks))
    return found


@pytest.fixture
def place(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")


def missing(code: str) -> list:
    names = re.findall(r"^(?:import|from) (\w+)", code, re.M)
    return [name for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("code", python_blocks())
def test_block(code, place):
    if missing(code):
        pytest.skip(f"{', '.join(missing(code))} is not installed")
    exec(compile(code, "block", "exec"), {})


@pytest.mark.parametrize("path", sorted((ROOT / "examples/notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook(path, place, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names, left_out = {}, []
    for cell in json.loads(path.read_text())["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        left_out += missing(code)
        if not missing(code):
            exec(compile(code, f"{path.stem}: {cell['id']}", "exec"), names)
    if left_out:
        pytest.skip(f"ran, but for the cells that need {', '.join(left_out)}")
