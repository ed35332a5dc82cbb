"""Between a loaded model and what Transformers calls its config."""

import json
import os

from .config import SHAPE_FIELDS, PretrainedConfig


def checked_config(given, own) -> PretrainedConfig:
    """`given` where there is one: it may say how the model is used, not another shape than the file's."""
    if given is None:
        return own
    if not isinstance(given, PretrainedConfig):  # Transformers' own class
        given = PretrainedConfig.from_dict(given.to_dict())
    for name, value in vars(own).items():
        if name in SHAPE_FIELDS and getattr(given, name, value) != value:
            raise ValueError(f"config: {name} is {getattr(given, name)}, the model's {value}")
    return given


def config_text(config) -> str:
    return config.to_json_string() if isinstance(config, PretrainedConfig) else json.dumps(config.to_dict())


def config_of(loaded) -> PretrainedConfig:
    """What the folder's config.json says, with what the library made of it (layout, defaults)."""
    fields = json.loads(loaded.config)
    path = os.path.join(loaded.folder, "config.json")
    if loaded.layout == "transformers" and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            fields = {**json.load(file), **fields}
    return PretrainedConfig.from_dict(fields)
