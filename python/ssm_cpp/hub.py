"""What a model name stands for: a folder, the bundled model, or a model in the Hugging Face cache."""

import pathlib

from . import _core

BUNDLED = "tale-8m"


def resolve(name, revision=None) -> str:
    """The folder of `name`. Raises Error with what was looked for."""
    if name is None or str(name) == BUNDLED and not pathlib.Path(name).exists():
        folder = pathlib.Path(__file__).parent / "models" / BUNDLED
        if folder.is_dir():
            return str(folder)
        raise _core.Error(f"the bundled model {BUNDLED} is not in this package")
    name = str(name)
    if pathlib.Path(name).exists():
        return name
    wanted = f"{name}@{revision}" if revision else name
    found = _core.find_cached_model(wanted)
    if found is None:
        raise _core.Error(f"{wanted}: no such folder, and not in the model cache {_core.cache_folder()}")
    return found
