"""Tokenizers with Transformers' habits over the library's own."""

import json
import pathlib

import numpy as np

from . import _core, hub
from ._arrays import to_numpy


class BatchEncoding(dict):
    """What a tokenizer gives: fields by key or by attribute."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *args, **kwargs) -> "BatchEncoding":
        """Ids are read on the host whatever the model's device: they stay."""
        return self


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
    def from_pretrained(cls, name, revision=None, padding_side=None, **fields) -> "Tokenizer":
        """`name` as for models, or a tokenizer's own file. Options of Transformers that choose between its
        implementations (use_fast, from_slow, legacy, trust_remote_code) change nothing here."""
        path = pathlib.Path(hub.resolve(name, revision))
        tokenizer = cls(_core.Tokenizer.open(str(path)), path if path.is_dir() else path.parent)
        if padding_side is not None:
            tokenizer.padding_side = padding_side
        for field in ("pad_token", "bos_token", "eos_token", "add_bos_token", "model_max_length"):
            if field in fields:
                setattr(tokenizer, field, fields[field])
        return tokenizer

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
        **_,
    ) -> BatchEncoding:
        single = isinstance(text, str)
        rows = [self.encode(t, add_special_tokens) for t in ([text] if single else text)]
        longest = max_length if max_length is not None else self.model_max_length
        if truncation:
            rows = [_cut(ids, longest, self.truncation_side) for ids in rows]
        masks = [[1] * len(ids) for ids in rows]
        if padding and padding != "do_not_pad":
            width = longest if padding == "max_length" else max(map(len, rows), default=0)
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

    def pad(self, encoded, padding=True, return_tensors=None, **options) -> BatchEncoding:
        if not isinstance(encoded, dict):
            encoded = {"input_ids": [row["input_ids"] for row in encoded]}
        rows = [list(ids) for ids in encoded["input_ids"]]
        rows, masks = self._pad(rows, [[1] * len(r) for r in rows], max(map(len, rows)), self.padding_side)
        fields = {"input_ids": rows, "attention_mask": masks}
        if return_tensors is not None:
            fields = {k: _tensor(v, return_tensors) for k, v in fields.items()}
        return BatchEncoding(fields)

    def decode(self, token_ids, skip_special_tokens: bool = False, **_) -> str:
        ids = np.atleast_1d(to_numpy(token_ids)).reshape(-1).tolist()
        if skip_special_tokens:
            special = set(self.all_special_ids)
            ids = [i for i in ids if i not in special]
        return self._core.decode(ids).decode("utf-8", "replace")

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **_) -> list:
        return [self.decode(row, skip_special_tokens) for row in sequences]

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
