"""What a model name stands for: a folder, the bundled model, or a model of the Hugging Face hub, which is pulled into
the cache where it is not there."""

import pathlib
import sys
import time

from . import _core

BUNDLED = "tale-10m"


def resolve(name, revision=None, *, weights=True, local_files_only=False, token=None, subfolder=None) -> str:
    """The folder of `name`. `weights`: False for who only wants config and tokenizer. HF_HUB_OFFLINE and
    local_files_only ask for no network. Raises Error with what was looked for."""
    folder = _folder(name, revision, weights, local_files_only, token)
    if subfolder:
        folder = str(pathlib.Path(folder) / subfolder)
        if not pathlib.Path(folder).is_dir():
            raise _core.Error(f"{folder}: no such folder")
    return folder


def _folder(name, revision, weights, local_files_only, token) -> str:
    if name is None or str(name) == BUNDLED and not pathlib.Path(name).exists():
        folder = pathlib.Path(__file__).parent / "models" / BUNDLED
        if folder.is_dir():
            return str(folder)
        raise _core.Error(f"the bundled model {BUNDLED} is not in this package")
    name = str(name)
    if pathlib.Path(name).exists():
        return name
    wanted = f"{name}@{revision}" if revision else name
    token = token if isinstance(token, str) else None  # True: the one that is logged in with, as without it
    return _core.find_or_pull(wanted, weights, local_files_only, token, _Progress())


class _Progress:
    """A line on a terminal's standard error for each file that takes time."""

    def __init__(self):
        self.last, self.shown = 0.0, None

    def __call__(self, file, done, size):
        if not sys.stderr.isatty() or (time.monotonic() - self.last < 0.2 and (done < size or self.shown != file)):
            return
        self.last, self.shown = time.monotonic(), file
        line = f"{file}: {done / 1e6:.1f} of {size / 1e6:.1f} MB"
        print(f"\r{line:<70}", end="\n" if done >= size else "", file=sys.stderr, flush=True)
