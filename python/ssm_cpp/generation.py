"""How text is generated: options by Transformers' names, and streamers."""

import dataclasses
import json
import pathlib
import queue


@dataclasses.dataclass
class GenerationConfig:
    max_new_tokens: int | None = None
    max_length: int | None = None  # prompt and new tokens together
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_return_sequences: int = 1
    eos_token_id: int | list | None = None
    pad_token_id: int | None = None
    stop_strings: str | list | None = None
    seed: int | None = None
    return_dict_in_generate: bool = False

    def updated(self, **options) -> "GenerationConfig":
        known = {f.name for f in dataclasses.fields(self)}
        unknown = sorted(k for k in options if k not in known)
        if unknown:
            raise ValueError(f"generate: unknown option {', '.join(unknown)}")
        return dataclasses.replace(self, **{k: v for k, v in options.items() if v is not None})

    @classmethod
    def from_folder(cls, folder) -> "GenerationConfig":
        """generation_config.json's fields that are known here."""
        path = pathlib.Path(folder) / "generation_config.json"
        fields = json.loads(path.read_text()) if path.is_file() else {}
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in fields.items() if k in known and v is not None})


class TextStreamer:
    """Prints text as it is generated, never half a character."""

    def __init__(self, tokenizer=None, skip_prompt: bool = False, **decode_options):
        self.tokenizer, self.skip_prompt, self.decode_options = tokenizer, skip_prompt, decode_options

    def prompt(self, text: str):
        if not self.skip_prompt:
            self.on_text(text)

    def on_text(self, text: str):
        print(text, end="", flush=True)

    def end(self):
        print(flush=True)


class TextIteratorStreamer(TextStreamer):
    """Gives the pieces of text to whoever iterates, in another thread."""

    def __init__(self, tokenizer=None, skip_prompt: bool = False, timeout: float | None = None, **decode_options):
        super().__init__(tokenizer, skip_prompt, **decode_options)
        self.timeout, self._pieces = timeout, queue.Queue()

    def on_text(self, text: str):
        self._pieces.put(text)

    def end(self):
        self._pieces.put(None)

    def __iter__(self):
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
