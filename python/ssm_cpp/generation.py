"""How text is generated: options by Transformers' names, and streamers."""

import dataclasses
import json
import pathlib
import queue
import warnings

import numpy as np

from . import _options

# What changes no token, and what is not there but may be given with the value that says so.
_HARMLESS = {"use_cache", "synced_gpus", "token_type_ids", "cache_implementation", "bos_token_id"}
_DEFAULTS = {
    "assistant_model": None,
    "early_stopping": False,
    "length_penalty": 1.0,
    "logits_processor": [],
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "penalty_alpha": 0.0,
    "stopping_criteria": [],
    "typical_p": 1.0,
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_NOTES = {"transformers_version", "_from_model_config", "_commit_hash"}


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

    @classmethod
    def of(cls, other) -> "GenerationConfig":
        """Of Transformers' class too, or a dict."""
        if isinstance(other, cls):
            return other
        fields = other if isinstance(other, dict) else other.to_diff_dict()
        return cls().updated(**{k: v for k, v in fields.items() if k not in _NOTES})

    def updated(self, **options) -> "GenerationConfig":
        known = {f.name for f in dataclasses.fields(self)}
        other = {k: options.pop(k) for k in list(options) if k not in known}
        _options.check("generate", other, _HARMLESS, _DEFAULTS)
        new = dataclasses.replace(self, **{k: v for k, v in options.items() if v is not None})
        idle = [k for k in _SAMPLING if options.get(k) is not None and not new.do_sample]
        if idle:
            warnings.warn(f"generate: {', '.join(idle)} has no effect without do_sample=True", stacklevel=3)
        return new

    @classmethod
    def from_folder(cls, folder) -> "GenerationConfig":
        """generation_config.json's fields that are known here."""
        path = pathlib.Path(folder) / "generation_config.json"
        fields = json.loads(path.read_text()) if path.is_file() else {}
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in fields.items() if k in known and v is not None})


class TextStreamer:
    """Prints text as it is generated, never half a character, and never the token that ends it."""

    def __init__(self, tokenizer=None, skip_prompt: bool = False, **decode_options):
        _options.check("TextStreamer", decode_options, {"skip_special_tokens"}, {"clean_up_tokenization_spaces": False})
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


def new_tokens(g, prompt_length: int) -> int:
    if g.max_new_tokens is not None:
        return g.max_new_tokens
    if g.max_length is None:
        return 20
    if g.max_length <= prompt_length:
        raise ValueError(f"generate: max_length is {g.max_length}, the prompt has {prompt_length} tokens already")
    return g.max_length - prompt_length


def joined(prompts, new, pad):
    width = max(map(len, new))
    out = np.full((len(new), prompts.shape[1] + width), pad, np.int64)
    out[:, : prompts.shape[1]] = prompts
    for row, ids in enumerate(new):
        out[row, prompts.shape[1] : prompts.shape[1] + len(ids)] = ids
    return out


def stream_to(streamer, ids, tokenizer):
    if hasattr(streamer, "on_text"):
        if tokenizer is not None:
            streamer.prompt(tokenizer.decode(ids[0], **streamer.decode_options))
        return lambda _, __, text: streamer.on_text(text)
    streamer.put(ids)  # Transformers' streamers take ids
    return lambda _, token, __: token < 0 or streamer.put(np.array([token])) is not False
