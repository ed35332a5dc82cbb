"""What models return: fields by name, by index and unpacked, those that are None left out."""

import dataclasses


class ModelOutput:
    def to_tuple(self) -> tuple:
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return tuple(v for v in values if v is not None)

    def __getitem__(self, key):
        if isinstance(key, str):
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self):
        return iter(self.to_tuple())

    def __len__(self):
        return len(self.to_tuple())

    def keys(self):
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]


@dataclasses.dataclass
class BaseModelOutput(ModelOutput):
    last_hidden_state: object = None
    cache_params: object = None
    hidden_states: tuple | None = None


@dataclasses.dataclass
class CausalLMOutput(ModelOutput):
    loss: object = None
    logits: object = None
    cache_params: object = None
    hidden_states: tuple | None = None


@dataclasses.dataclass
class GenerateOutput(ModelOutput):
    sequences: object = None
    stop_reasons: list | None = None
    texts: list | None = None
    cache_params: object = None
