"""Tokenizers with Transformers' habits over the library's own."""

import json
import pathlib
import shutil

import numpy as np

from . import _core, _options, hub
from ._arrays import is_torch, to_numpy

_FIELDS = (
    "add_bos_token",
    "add_eos_token",
    "bos_token",
    "chat_template",
    "eos_token",
    "model_max_length",
    "pad_token",
    "padding_side",
    "truncation_side",
    "unk_token",
)
_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_CALL_DEFAULTS = {
    "is_split_into_words": False,
    "return_length": False,
    "return_offsets_mapping": False,
    "return_overflowing_tokens": False,
    "return_special_tokens_mask": False,
    "return_token_type_ids": False,
    "stride": 0,
    "text_pair": None,
}


class BatchEncoding(dict):
    """What a tokenizer gives: fields by key or by attribute."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device=None, **options) -> "BatchEncoding":
        """Tensors of torch to a device. Ids are read on the host whatever the model's: this changes nothing else."""
        moved = {k: v.to(device, **options) if is_torch(v) else v for k, v in self.items()}
        return BatchEncoding(moved)


class Tokenizer:
    """Made by from_pretrained. `pad_token` is what padding is made of; padding is never computed."""

    def __init__(self, core, folder=None):
        self._core = core
        config = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            path = pathlib.Path(folder or "/nonexistent") / name
            if path.is_file():
                config = {**json.loads(path.read_text()), **config}
        self._folder = pathlib.Path(folder) if folder else None
        self._specials = None
        self.padding_side = config.get("padding_side", "right")
        self.truncation_side = config.get("truncation_side", "right")
        self.model_max_length = int(min(config.get("model_max_length") or 1e30, 1e30))
        self.add_bos_token = bool(config.get("add_bos_token", False))
        self.add_eos_token = bool(config.get("add_eos_token", False))
        self.chat_template = config.get("chat_template")
        self.bos_token = _text(config.get("bos_token")) or self._spelled(core.bos)
        self.eos_token = _text(config.get("eos_token")) or self._spelled(core.eos)
        self.unk_token = _text(config.get("unk_token"))
        self.pad_token = _text(config.get("pad_token"))

    @classmethod
    def from_pretrained(
        cls, name=None, revision=None, local_files_only=False, token=None, subfolder=None, **fields
    ) -> "Tokenizer":
        """`name` as for models, or a tokenizer's own file. Options of Transformers that choose between its
        implementations (use_fast, from_slow, legacy, trust_remote_code) change nothing here; `fields` are those
        of tokenizer_config.json that are read here."""
        own = {k: fields.pop(k) for k in list(fields) if k in _FIELDS}
        _options.check("from_pretrained", fields, _options.LOADING, _options.LOADING_DEFAULTS)
        where = {"local_files_only": local_files_only, "token": token, "subfolder": subfolder}
        path = pathlib.Path(hub.resolve(name, revision, weights=False, **where))
        tokenizer = cls(_core.Tokenizer.open(str(path)), path if path.is_dir() else path.parent)
        for field, value in own.items():
            if value is not None:
                setattr(tokenizer, field, value)
        return tokenizer

    def save_pretrained(self, folder) -> tuple:
        """The files it was read from, and what was changed since in tokenizer_config.json."""
        if self._folder is None:
            raise ValueError("save_pretrained: this tokenizer was not read from a folder")
        target = pathlib.Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            source = self._folder / name
            if source.is_file() and not (target / name).exists():
                shutil.copyfile(source, target / name)
        path = target / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        config.update({name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not None})
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return tuple(str(target / name) for name in _FILES if (target / name).exists())

    def _spelled(self, token_id):
        return None if token_id is None else self._core.bytes_of(token_id).decode("utf-8", "replace") or None

    def _id(self, token, core_id=None):
        found = self._core.find(token) if token else None
        return core_id if found is None else found

    @property
    def bos_token_id(self):
        return self._id(self.bos_token, self._core.bos)

    @property
    def eos_token_id(self):
        return self._id(self.eos_token, self._core.eos)

    @property
    def unk_token_id(self):
        return self._id(self.unk_token)

    @property
    def pad_token_id(self):
        return self._id(self.pad_token)

    @property
    def vocab_size(self) -> int:
        return self._core.size

    def __len__(self) -> int:
        return self._core.size

    @property
    def all_special_ids(self) -> list:
        if self._specials is None:
            ids = {self.bos_token_id, self.eos_token_id, self.unk_token_id}
            path = self._folder / "tokenizer.json" if self._folder else None
            if path is not None and path.is_file():
                added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
                ids |= {token["id"] for token in added if token.get("special")}
            self._specials = ids - {None}
        return sorted(self._specials | ({self.pad_token_id} - {None}))

    def encode(self, text: str, add_special_tokens: bool = True, return_tensors=None, **options):
        if return_tensors or options:
            return self(text, add_special_tokens=add_special_tokens, return_tensors=return_tensors, **options)[
                "input_ids"
            ]
        ids = self._core.encode(text)
        if add_special_tokens and self.add_bos_token and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        if add_special_tokens and self.add_eos_token and self.eos_token_id is not None:
            ids.append(self.eos_token_id)
        return ids

    def __call__(
        self,
        text,
        padding=False,
        truncation=False,
        max_length=None,
        return_tensors=None,
        add_special_tokens=True,
        return_attention_mask=True,
        padding_side=None,
        pad_to_multiple_of=None,
        **options,
    ) -> BatchEncoding:
        _options.check("tokenizer", options, {"verbose"}, _CALL_DEFAULTS)
        single = isinstance(text, str)
        rows = [self.encode(t, add_special_tokens) for t in ([text] if single else text)]
        longest = max_length if max_length is not None else self.model_max_length
        if truncation and truncation != "do_not_truncate":
            rows = [_cut(ids, longest, self.truncation_side) for ids in rows]
        masks = [[1] * len(ids) for ids in rows]
        if padding and padding != "do_not_pad":
            width = longest if padding == "max_length" else max(map(len, rows), default=0)
            width = _multiple(width, pad_to_multiple_of)
            rows, masks = self._pad(rows, masks, width, padding_side or self.padding_side)
        fields = {"input_ids": rows, "attention_mask": masks}
        if not return_attention_mask:
            del fields["attention_mask"]
        if return_tensors is not None:
            return BatchEncoding({k: _tensor(v, return_tensors) for k, v in fields.items()})
        return BatchEncoding({k: v[0] if single else v for k, v in fields.items()})

    def _pad(self, rows, masks, width, side):
        pad = self.pad_token_id
        if pad is None:
            raise ValueError("padding needs a pad token: set tokenizer.pad_token = tokenizer.eos_token, say")
        padded, padded_masks = [], []
        for ids, mask in zip(rows, masks, strict=True):
            fill = max(width - len(ids), 0)
            left, right = (fill, 0) if side == "left" else (0, fill)
            padded.append([pad] * left + ids + [pad] * right)
            padded_masks.append([0] * left + mask + [0] * right)
        return padded, padded_masks

    def pad(
        self, encoded, padding=True, max_length=None, pad_to_multiple_of=None, padding_side=None, return_tensors=None
    ) -> BatchEncoding:
        """`encoded`: what a call gave, or a list of such."""
        if not isinstance(encoded, dict):
            encoded = {key: [row[key] for row in encoded] for key in encoded[0]}
        rows = [list(ids) for ids in encoded["input_ids"]]
        masks = [list(m) for m in encoded.get("attention_mask") or [[1] * len(r) for r in rows]]
        if padding and padding != "do_not_pad":
            width = max_length if padding == "max_length" and max_length else max(map(len, rows))
            width = _multiple(width, pad_to_multiple_of)
            rows, masks = self._pad(rows, masks, width, padding_side or self.padding_side)
        fields = {"input_ids": rows, "attention_mask": masks}
        if return_tensors is not None:
            fields = {k: _tensor(v, return_tensors) for k, v in fields.items()}
        return BatchEncoding(fields)

    def decode(self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False) -> str:
        if clean_up_tokenization_spaces:
            raise ValueError("decode: clean_up_tokenization_spaces is not supported: text comes back as it was")
        ids = np.atleast_1d(to_numpy(token_ids)).reshape(-1).tolist()
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [i for i in ids if i not in special]
        return self._core.decode(ids).decode("utf-8", "replace")

    def batch_decode(self, sequences, skip_special_tokens: bool = False, clean_up_tokenization_spaces=False) -> list:
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_tokens_to_ids(self, tokens):
        if isinstance(tokens, str):
            found = self._core.find(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(t) for t in tokens]

    def __repr__(self):
        return f"Tokenizer({self.vocab_size} tokens, eos {self.eos_token!r}, padding_side {self.padding_side!r})"


AutoTokenizer = Tokenizer


def _text(token):
    return token.get("content") if isinstance(token, dict) else token


def _cut(ids, longest, side):
    return ids if len(ids) <= longest else ids[-longest:] if side == "left" else ids[:longest]


def _multiple(width, of):
    return width if not of else -(-width // of) * of


def _tensor(rows, kind):
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows of unequal length make no tensor: give padding=True")
    array = np.array(rows, dtype=np.int64).reshape(len(rows), -1)
    if kind == "np":
        return array
    if kind == "pt":
        import torch

        return torch.from_numpy(array)
    raise ValueError(f"return_tensors {kind!r}: expected 'np' or 'pt'")
