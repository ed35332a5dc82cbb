#!/usr/bin/env python3
"""Runs every `ssm` command that README.md and docs/ show in a block of sh or console, page by page.

A page's commands run in one folder, in order, with a home of its own. There the models and texts that pages speak of
stand ready, small; training takes two steps. Output that a page shows must come, numbers within a thousandth. Commands
of the source tree (scripts/, cmake) are what CI itself is made of and are not run again.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from doc_blocks import PAGES, ROOT, blocks

SSM = ROOT / "build/release/bin/ssm"
OURS = r"(^|[|;&] *)ssm "
HUB_MODEL = "models--state-spaces--mamba-130m-hf"
SHORT = {"--steps": "2", "--batch": "2", "--length": "32"}
TINY = "--family mamba --layers 2 --width 64"


def commands(language: str, lines: list[str]):
    """(offset, command, lines of output or None)."""
    at = 0
    while at < len(lines):
        first, line = at, lines[at]
        at += 1
        if language == "console" and not line.startswith("$ "):
            raise SystemExit(f"a console block begins with {line!r}, not with a command")
        while line.endswith("\\") and at < len(lines):
            line = line[:-1] + lines[at].strip()
            at += 1
        shown = None
        if language == "console":
            shown = []
            while at < len(lines) and not lines[at].startswith("$ "):
                shown.append(lines[at])
                at += 1
            while shown and not shown[-1]:
                shown.pop()
        yield first, line.removeprefix("$ "), shown or None


def same(shown: str, came: str) -> bool:
    number = r"-?\d+\.\d+"
    if re.sub(number, "#", shown) != re.sub(number, "#", came):
        return False
    pairs = zip(re.findall(number, shown), re.findall(number, came), strict=True)
    return all(abs(float(a) - float(b)) <= 1e-3 * max(1.0, abs(float(a))) for a, b in pairs)


def shell(command: str, folder: pathlib.Path, environment: dict) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )


def environment_of(folder: pathlib.Path) -> dict:
    path = f"{SSM.parent}:{os.environ['PATH']}"
    environment = os.environ | {"HOME": str(folder), "PATH": path, "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    return environment


def prepare(folder: pathlib.Path) -> None:
    """What pages speak of: texts, a Mamba with a tokenizer under the names used, a hub's cache that holds it."""
    sentences = [f"The old king looked out of the window for the {n}th time." for n in range(60)]
    (folder / "notes").mkdir()
    for name in ("book.txt", "other.txt", "stories.txt", "notes/a.txt"):
        (folder / name).write_text("\n".join(sentences) + "\n")
    (folder / "quotes.csv").write_text("quote,author\n" + "".join(f'"{s}",nobody\n' for s in sentences))
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": said}) + "\n")
    (folder / "models").symlink_to(ROOT / "models")
    made = shell(shortened(f"ssm train book.txt --out made {TINY}"), folder, environment_of(folder))
    if made.returncode:
        raise SystemExit(f"the models for the pages were not made: {made.stderr}")
    hub = folder / ".cache/huggingface/hub" / HUB_MODEL
    revision = "0" * 40
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text(revision)
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for target in (hub / "snapshots" / revision, folder / "my-model", folder / "mamba-130m-hf"):
        target.mkdir(parents=True)
        for name in files:
            if (folder / "made" / name).exists():
                shutil.copy(folder / "made" / name, target)


def shortened(command: str) -> str:
    """Training takes two steps; a folder that a page makes must not exist yet."""
    command = re.sub(r" --epochs \S+", "", command)
    flags = " ".join(f"{flag} {value}" for flag, value in SHORT.items() if flag not in command)
    command = re.sub(r"\bssm (train|finetune) ", rf"ssm \1 {flags} ", command)
    out = re.search(r"ssm train .*--out (\S+)", command)
    prefix = f"rm -rf {out[1]}; " if out and "--resume" not in command else ""
    return prefix + command


def run_page(page: pathlib.Path, folder: pathlib.Path) -> tuple[int, int]:
    """How many commands ran, and how many of them did not do what the page shows."""
    ran = failed = 0
    environment = environment_of(folder)
    for line, language, reason, lines in blocks(page, "sh", "console"):
        if reason:
            print(f"test-docs: {page.relative_to(ROOT)}:{line}: not run: {reason}")
            continue
        for offset, command, shown in commands(language, lines):
            if not re.search(OURS, command.split("#")[0]):
                continue
            run = shell(shortened(command), folder, environment)
            ran += 1
            problem = None
            if run.returncode:
                problem = f"exit status {run.returncode}: {run.stderr.strip()[-400:]}"
            elif shown and not same("\n".join(shown).strip(), run.stdout.strip()):
                problem = "\n".join(["printed", run.stdout.strip(), "where the page shows", *shown])
            if problem:
                failed += 1
                print(f"test-docs: {page.relative_to(ROOT)}:{line + 1 + offset}: {command}\n{problem}")
    return ran, failed


def main() -> None:
    ran = failed = 0
    with tempfile.TemporaryDirectory(prefix="ssm-docs-") as name:
        first = pathlib.Path(name) / "first"
        first.mkdir()
        prepare(first)
        for page in PAGES:
            folder = shutil.copytree(first, pathlib.Path(name) / page.stem, symlinks=True)
            counts = run_page(page, folder)
            ran, failed = ran + counts[0], failed + counts[1]
            shutil.rmtree(folder)
    print(f"test-docs: {ran} commands, {failed} not as shown")
    sys.exit(1 if failed or not ran else 0)


if __name__ == "__main__":
    main()
