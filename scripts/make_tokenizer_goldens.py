#!/usr/bin/env python3
"""Writes tests/goldens/tokenizers/: ids from the Python packages `tokenizers` and `sentencepiece`.

usage: make_tokenizer_goldens.py [FOLDER]

FOLDER holds gpt-neox-20b/tokenizer.json and codestral-mamba/tokenizer.model.v3, of which only ids of the
texts below are written. Without it these two files are left as they are.
"""

import copy
import json
import random
import re
import sys
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "goldens" / "tokenizers"

# No character here is newer than Unicode 15, so that every ICU from 72 on sees what the packages see.
TEXTS = [
    "",
    " ",
    "  ",
    "   \n\t \n\n  \r\n x",
    "Hello, world! It's a don't-we'll-I'd-they've-you're-I'm day. 'S 'LL 'sometimes'",
    "  leading and trailing   ",
    "tabs\tand\t\ttabs\n\n\n\nnewlines \n \n",
    "a" * 300,
    " " * 200,
    "ab" * 150 + " " * 37 + "0" * 100,
    "0123456789 3.14159 1,000,000 12:34:56",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u00bd\u00b2\u2167\u3007\u4e09 \U0001d7d8\U0001d7ff",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "e\u0301 \u00e9 a\u0323\u0302 a\u0302\u0323 \u1112\u1161\u11ab \u212b \ufb01 \u2126 q\u0307\u0323 \u0958",
    "x" + "\u0301\u0323" * 50 + "y",
    "\u0301 starts with a mark; \u0345\u0301\u0334 a\u1e132",
    "\ufeffBOM \u200b\u200c\u200d\u2060 \u00ad soft \u00a0nbsp\u3000wide\u2028line\u2029para\x85next",
    "\x00\x01\x02\x1b[0m\x7f \x1c\x1d\x1e\x1f",
    "\ud7ff\ue000\ufffd\uffff \U00010000\U0010ffff",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    "\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u10d2\u10d0",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # comment\n\n\nclass A:\n\tpass\n",
    "<|endoftext|>a<|endoftext|> b <|endoftext|>\n<|padding|><|endoftext|",
    "<s>[INST] Hi [/INST] Hello</s>[INST][INST]<unk>[TOOL_CALLS] [/INST",
    "<0x0A> \u2581 \u2581\u2581a <extra> MASK a MASK. xMASKx MASK\n  MASK",
    "caf\u00e9 na\u00efve \u0130stanbul stra\u00dfe \u01c5 \u1e9e",
    "http://example.com/a_b-c?d=e&f=%20#g @user #tag $5 50% a/b\\c ~!@#$%^&*()_+{}|:<>?`-=[];',./",
    "\u2018quoted\u2019 \u201ctext\u201d \u2014 dash\u2026 \u061d \u2e5d \u166d",
]


def dump(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def base_tokenizer():
    """A small byte-level BPE tokenizer trained on a sentence or two."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tok.train_from_iterator(
        [t for t in TEXTS if len(t) < 200 and "MASK" not in t] + ["the day and the night and the end 1000 2000"] * 4,
        trainer,
    )
    return json.loads(tok.to_str())


def char_tokenizer():
    """A small BPE tokenizer over characters with byte tokens, in the way of Llama's."""
    chars = sorted(set("abcdefghijklmnopqrstuvwxyzHIW.,'\u2581\u00e9"))
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + chars
    merges = [
        ("\u2581", "a"),
        ("\u2581", "t"),
        ("h", "e"),
        ("l", "l"),
        ("\u2581t", "he"),
        ("a", "a"),
        ("aa", "aa"),
        ("\u2581", "\u2581"),
        ("i", "n"),
        ("a", "n"),
        ("an", "d"),
        ("\u2581", "and"),
    ]
    pieces += ["".join(m) for m in merges]
    vocab = {p: i for i, p in enumerate(pieces)}
    special = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(id=i, content=pieces[i], **special) for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [" ".join(m) for m in merges],
        },
    }


def byte_level(**kw):
    return dict(dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True), **kw)


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def added(content, id, **flags):
    token = dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    token.update(flags)
    return token


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BEHAVIORS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


def configurations():
    """(name, which base, what replaces the base's fields)"""
    yield "plain", "bytes", {}
    for form in ["NFC", "NFD", "NFKC", "NFKD"]:
        yield form, "bytes", {"normalizer": {"type": form}}
    yield (
        "NFD then NFC",
        "bytes",
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "NFC"}]}},
    )
    yield "prefix space", "bytes", {"pre_tokenizer": byte_level(add_prefix_space=True)}
    yield "no regex", "bytes", {"pre_tokenizer": byte_level(use_regex=False)}
    yield (
        "use_regex absent",
        "bytes",
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}},
    )
    yield (
        "FalconMamba",
        "bytes",
        {
            "pre_tokenizer": sequence(
                {"type": "Punctuation", "behavior": "Contiguous"},
                byte_level(),
                {"type": "Digits", "individual_digits": False},
                split("[0-9][0-9][0-9]"),
            )
        },
    )
    for behavior in BEHAVIORS:
        yield (
            f"Punctuation {behavior}",
            "bytes",
            {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": behavior}, byte_level(use_regex=False))},
        )
        for invert in [False, True]:
            yield (
                f"Split e {behavior} {invert}",
                "bytes",
                {"pre_tokenizer": sequence(split("e", behavior, invert, "String"), byte_level(use_regex=False))},
            )
            yield (
                f"Split regex {behavior} {invert}",
                "bytes",
                {"pre_tokenizer": sequence(split(r"\s+|[\S&&[^\w]]", behavior, invert), byte_level(use_regex=False))},
            )
    yield "Punctuation default", "bytes", {"pre_tokenizer": sequence({"type": "Punctuation"}, byte_level())}
    for single in [False, True]:
        yield (
            f"Digits {single}",
            "bytes",
            {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": single}, byte_level())},
        )
    yield "Split GPT-2", "bytes", {"pre_tokenizer": sequence(split(GPT2), byte_level(use_regex=False))}
    yield (
        "Split GPT-2 removed",
        "bytes",
        {"pre_tokenizer": sequence(split(GPT2, "Removed", True), byte_level(use_regex=False))},
    )
    yield "Split Llama 3", "bytes", {"pre_tokenizer": sequence(split(LLAMA3), byte_level(use_regex=False))}
    yield "Split lines", "bytes", {"pre_tokenizer": sequence(split(r"^.|\d{2}|\W$|\h{3}"), byte_level(use_regex=False))}
    yield (
        "Split after ByteLevel",
        "bytes",
        {
            "pre_tokenizer": sequence(
                byte_level(), split("\u0120", "MergedWithNext", False, "String"), split(r"[\u0120\u00e2]", "Isolated")
            )
        },
    )
    yield "ignore_merges", "bytes", {"model.ignore_merges": True}
    yield (
        "ignore_merges, no regex",
        "bytes",
        {"model.ignore_merges": True, "pre_tokenizer": byte_level(use_regex=False)},
    )

    def tokens(**flags):
        return [
            added("<|endoftext|>", 330, special=True, **flags),
            added("MASK", 331, **flags),
            added("  ", 332, **flags),
            added("    ", 333, **flags),
            added("f\u00e9", 334, **flags),
        ]

    for flag in ["none", "single_word", "lstrip", "rstrip", "normalized"]:
        patch = {"added_tokens": tokens(**({} if flag == "none" else {flag: True}))}
        yield f"added {flag}", "bytes", patch
        yield f"added {flag} NFD", "bytes", dict(patch, normalizer={"type": "NFD"})
    mixed = tokens(lstrip=True, rstrip=True, normalized=True)
    mixed[1].update(single_word=True, normalized=False)
    yield "added mixed", "bytes", {"added_tokens": mixed, "normalizer": {"type": "NFC"}}
    yield "char", "chars", {}
    yield "char, no byte fallback", "chars", {"model.byte_fallback": False}
    yield "char, no fuse", "chars", {"model.byte_fallback": False, "model.fuse_unk": False}
    yield "char, no unk", "chars", {"model.byte_fallback": False, "model.unk_token": None}
    for scheme in ["always", "first", "never"]:
        for cut in [True, False]:
            metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}
            yield (
                f"Metaspace {scheme} {cut}",
                "chars",
                {"normalizer": None, "pre_tokenizer": metaspace, "decoder": metaspace},
            )


def patched(base, patch):
    out = copy.deepcopy(base)
    for key, value in patch.items():
        target = out
        *path, last = key.split(".")
        for part in path:
            target = target[part]
        target[last] = value
    return out


def synthetic():
    bases = {"bytes": base_tokenizer(), "chars": char_tokenizer()}
    texts = [t[:56] for t in TEXTS if t.strip()]
    configs = []
    for name, base, patch in configurations():
        tok = Tokenizer.from_str(json.dumps(patched(bases[base], patch)))
        ids = [tok.encode(t, add_special_tokens=False).ids for t in texts]
        configs.append({"name": name, "base": base, "patch": patch, "ids": ids})
    dump("synthetic.json", {"bases": bases, "texts": texts, "configurations": configs})


def of_tokenizer_json(path):
    tok = Tokenizer.from_file(str(path))
    return {"texts": TEXTS, "ids": [tok.encode(t, add_special_tokens=False).ids for t in TEXTS]}


LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def named_pre_tokenizers():
    """What GGUF's names for pre-tokenizers stand for (the tokenizer.json files of the models they are named
    after), around the bundled vocabulary."""
    nfc, gpt2 = {"type": "NFC"}, byte_level()
    digits = sequence({"type": "Digits", "individual_digits": True}, byte_level())
    falcon = sequence(
        {"type": "Punctuation", "behavior": "Contiguous"},
        byte_level(),
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    )
    rest = byte_level(use_regex=False)
    parts = {
        "gpt-2": (None, gpt2),
        "olmo": (nfc, gpt2),
        "mpt": (nfc, gpt2),
        "falcon": (None, falcon),
        "starcoder": (None, digits),
        "smollm": (None, digits),
        "llama-bpe": (None, sequence(split(LLAMA3_SPLIT % "{1,3}"), rest)),
        "qwen2": (nfc, sequence(split(LLAMA3_SPLIT % ""), rest)),
    }
    base = json.loads((ROOT / "models" / "tale-10m" / "tokenizer.json").read_text())
    ids = {}
    for name, (normalizer, pre_tokenizer) in parts.items():
        patch = {
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "model.ignore_merges": name == "llama-bpe",
        }
        tok = Tokenizer.from_str(json.dumps(patched(base, patch)))
        ids[name] = [tok.encode(t, add_special_tokens=False).ids for t in TEXTS]
    dump("pre_tokenizers.json", {"texts": TEXTS, "ids": ids})


def of_sentencepiece(path):
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    special = [sp.IdToPiece(i) for i in range(len(sp)) if sp.IsControl(i) or sp.IsUnknown(i)]
    pattern = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")

    def encode(text):  # the package alone does not see control pieces in a text
        parts = [p for p in pattern.split(text) if p]
        return sum(([sp.PieceToId(p)] if p in special else sp.encode(p) for p in parts), [])

    return {"texts": TEXTS, "ids": [encode(t) for t in TEXTS]}


def small_sentencepiece(kind):
    """A model of a few hundred pieces; a trainer's floats may differ in the last place from machine to machine."""
    path = OUT / f"sentencepiece-{kind}.model"
    sentences = ["the cat and the dog sat on the mat", "a cat and a hat and the rat in the house"] * 8
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=file,
            model_type=kind,
            vocab_size=300,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=["[UD]"],
            control_symbols=["[INST]", "[/INST]"],
            num_threads=1,
            minloglevel=2,
        )
    dump(f"sentencepiece-{kind}.json", of_sentencepiece(path))


def trained_bpe(texts, vocab_size, min_frequency, special_tokens, probe):
    """What BpeTrainer learns: merges in order, ids of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    by_id = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "texts": texts,
        "vocab_size": vocab_size,
        "min_frequency": min_frequency,
        "special_tokens": special_tokens,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "last_tokens": by_id[-20:],
        "ids": tokenizer.encode(probe).ids,
    }


def bpe_trainer():
    chance = random.Random(1)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 9))) for _ in range(60)]
    prose = [" ".join(chance.choices(words, weights=range(1, 61), k=40)) + ".\n" for _ in range(30)]
    letters = ["".join(chance.choices("ab", k=60)) for _ in range(30)]
    runs = ["-" * n + " " * n + "=" * (2 * n) + "\n" for n in range(1, 40)]
    probe = "the -------- data, caf\u00e9 abababba <|x|>   don't\n\n==="
    end = ["<|endoftext|>"]
    cases = [
        (TEXTS, 400, 1, end),
        (TEXTS * 3, 350, 3, end),
        (prose, 700, 2, end),
        (prose, 5000, 1, []),
        (letters, 330, 1, end),
        (runs, 330, 1, end),
        (["a<|x|> <|x|> <|x|>b"] * 5 + runs, 300, 2, ["<|x|>", "<|endoftext|>"]),
    ]
    dump("bpe_trainer.json", {"probe": probe, "cases": [trained_bpe(*case, probe) for case in cases]})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    print("tokenizers", tokenizers.__version__, "sentencepiece", sentencepiece.__version__)
    synthetic()
    named_pre_tokenizers()
    bpe_trainer()
    small_sentencepiece("bpe")
    small_sentencepiece("unigram")
    dump("bundled.json", of_tokenizer_json(ROOT / "models" / "tale-10m" / "tokenizer.json"))
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        dump("gpt-neox-20b.json", of_tokenizer_json(folder / "gpt-neox-20b" / "tokenizer.json"))
        dump("codestral-mamba.json", of_sentencepiece(folder / "codestral-mamba" / "tokenizer.model.v3"))


if __name__ == "__main__":
    main()
