"""The fenced blocks of the README and of docs/. A comment in front of one, <!-- not run: REASON -->, has whoever runs
blocks leave it out."""

import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    line: int  # of its fence
    language: str
    reason: str | None  # not to run it
    lines: list[str]


def blocks(page: pathlib.Path, *languages: str) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        fence = re.match(r"```(\w+)$", lines[at])
        if not fence:
            at += 1
            continue
        end = lines.index("```", at)
        before = next((line for line in reversed(lines[:at]) if line.strip()), "")
        skipped = re.fullmatch(r"<!-- not run: (.*) -->", before)
        if fence[1] in languages:
            yield Block(at + 1, fence[1], skipped and skipped[1], lines[at + 1 : end])
        at = end + 1
