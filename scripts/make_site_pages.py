#!/usr/bin/env python3
"""The site's pages from docs/ and the README, in a folder: python3 scripts/make_site_pages.py FOLDER

Links between pages stay; links to files of the repository that are no pages become the file's name.
"""

import pathlib
import re
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def page(text: str, here: pathlib.Path, pages: set) -> str:
    def link(match: re.Match) -> str:
        image, label, target, anchor = match.groups()
        if not target or "://" in target:
            return match.group(0)
        path = (here / target).resolve()
        if not path.exists():
            raise SystemExit(f"{here}: {target} leads nowhere")
        if path in pages:
            return f"{image}[{label}]({path.name}{anchor or ''})"
        if image:
            return label
        name = path.relative_to(ROOT)
        return f"`{name}`" if str(name) in label else f"{label} (`{name}`)"

    return LINK.sub(link, text)


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    docs = sorted((ROOT / "docs").glob("*.md"))
    for source in docs:
        (folder / source.name).write_text(page(source.read_text(), source.parent, set(docs)))
    (folder / "index.md").write_text(page((ROOT / "README.md").read_text(), ROOT, set(docs)))


if __name__ == "__main__":
    main()
