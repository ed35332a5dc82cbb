#!/usr/bin/env python3
"""GGUF against llama.cpp, through llama-cpp-python: what ssm writes, llama.cpp loads and continues with the same
tokens; what llama.cpp writes, ssm loads. Run by scripts/test-gguf.

usage: test_gguf.py SSM [--llama-source FOLDER]

SSM is the command. FOLDER is llama.cpp's source, whose vocabularies have texts and ids beside them.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "goldens" / "models"
TALE = ROOT / "models" / "tale-10m"
PROMPTS = ["Once upon a time", "The little dog was very", "\n\nTom and Anna", "  It's 3 o'clock, they've"]
# llama.cpp takes an expansion of 2 only, and FalconMamba's norms with another epsilon.
DENSE = [
    "mamba-default",
    "mamba-minimal",
    "mamba-conv3",
    "mamba-conv2",
    "mamba-state5",
    "mamba-rank3",
    "mamba-untied",
    "mamba-eps",
    "mamba-sharded",
    "mamba-bf16",
    "mamba-f16",
    "mamba2-default",
    "mamba2-head12",
    "mamba2-groups2",
    "mamba2-groups4",
    "mamba2-chunk16",
    "mamba2-bin",
    "mamba2-f16",
    "original-mamba",
    "original-mamba-untied",
    "original-mamba2",
    "mistral-tiny",
    "mistral-codestral-sizes",
    "neox-default",
    "neox-long",
    "neox-rope-parameters",
]
GELU = 1e-2  # llama.cpp's is the approximation by tanh, from a table of 16 bits
QUANTIZED = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"]


class Llama:
    """One model in llama.cpp, on the CPU."""

    def __init__(self, path, threads=2):
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise AssertionError(f"llama.cpp does not load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text):
        raw = text.encode()
        room = len(raw) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), ids, room, False, True)
        return list(ids[:count])

    def logits(self, tokens):
        """[T, V]: after each of these tokens, from the beginning."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0
        return self.feed(tokens)

    def feed(self, tokens):
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = self.position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 1
        self.position += len(tokens)
        assert llama_cpp.llama_decode(self.context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.size,)).copy()
            for i in range(len(tokens))
        ]
        llama_cpp.llama_batch_free(batch)
        return np.stack(rows)

    def greedy(self, tokens, count, usable=None):
        row, out = self.logits(tokens)[-1], []
        for _ in range(count):
            out.append(int(np.argmax(row[:usable])))
            row = self.feed(out[-1:])[-1]
        return out


def quantize(source, target, name):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + name)
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) != 0:
        raise AssertionError(f"llama.cpp does not quantize {source}")


def read_safetensors(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    types = {"F32": np.float32, "I64": np.int64}
    out = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] in types:
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            out[name] = np.frombuffer(raw[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return out


class Job:
    def __init__(self, ssm, folder):
        self.program, self.folder, self.checks = ssm, Path(folder), 0

    def ssm(self, *arguments, text=None):
        run = subprocess.run([self.program, *map(str, arguments)], input=text, capture_output=True, timeout=600)
        if run.returncode != 0:
            raise AssertionError(f"ssm {' '.join(map(str, arguments))}: {run.stderr.decode().strip()}")
        return run.stdout

    def convert(self, source, name, *flags):
        target = self.folder / name
        self.ssm("convert", source, target, *flags)
        return target

    def tokens(self, model, prompt, count):
        out = self.ssm(
            "generate",
            model,
            "--tokens",
            ",".join(map(str, prompt)),
            "--max-new-tokens",
            count,
            "--temperature",
            "0",
            "--ignore-eos",
            "--dtype",
            "f32",
            "--json",
        )
        return json.loads(out)["tokens"]

    def check(self, what, good, detail=""):
        if not good:
            raise AssertionError(f"{what}: {detail}")
        self.checks += 1
        print("ok ", what, flush=True)

    def dense_goldens(self):
        """Every golden model that GGUF can say and llama.cpp runs: our file, its greedy tokens."""
        for name in DENSE:
            golden = read_safetensors(MODELS / name / "golden.safetensors")
            prompt, greedy = golden["tokens"].tolist(), golden["greedy"].tolist()
            path = self.convert(MODELS / name, name + ".gguf", "--dtype", "f32")
            with Llama(path) as llama:
                wanted = golden["logits"]
                error = np.abs(llama.logits(prompt) - wanted).max() / np.abs(wanted).max()
                bound = GELU if name.startswith("neox") else 2e-4
                self.check(f"{name}: logits in llama.cpp", error < bound, f"off by {error:.1e} of the largest")
                self.check(f"{name}: greedy tokens in llama.cpp", llama.greedy(prompt, len(greedy)) == greedy)
            self.check(f"{name}: greedy tokens here", self.tokens(path, prompt, len(greedy)) == greedy)

    def as_stored(self):
        """16-bit models keep their type; llama.cpp rounds activations to it, so only the file is looked at."""
        for name in ("mamba-f16", "mamba2-bin-sharded", "falcon-bf16", "falcon-default"):
            with Llama(self.convert(MODELS / name, name + "-stored.gguf")) as llama:
                prompt = read_safetensors(MODELS / name / "golden.safetensors")["tokens"].tolist()
                self.check(f"{name}: loads in llama.cpp", np.isfinite(llama.logits(prompt)).all())

    def bundled(self, texts):
        """The bundled model with its tokenizer: the same ids of nasty texts, the same greedy text."""
        path = self.convert(TALE, "tale.gguf", "--dtype", "f32")
        with Llama(path) as llama:
            for text in texts:
                ours = json.loads(self.ssm("tokenize", path, "--json", text=text.encode()))["ids"]
                self.check(f"ids of {text[:24]!r}", llama.tokenize(text) == ours, f"{llama.tokenize(text)} {ours}")
            for prompt in PROMPTS:
                ids = llama.tokenize(prompt)
                theirs = llama.greedy(ids, 48)
                self.check(f"greedy text of {prompt!r}", self.tokens(path, ids, 48) == theirs)
                self.check(f"the same from the folder, {prompt!r}", self.tokens(TALE, ids, 48) == theirs)
        return path

    def quantized(self, source, names, what):
        """llama.cpp's quantizer writes, we read: as good as its own dequantized weights."""
        for name in names:
            path = self.folder / f"{what}-{name}.gguf"
            quantize(source, path, name)
            dense = self.convert(path, f"{what}-{name}-dense.gguf", "--dtype", "f32")
            with Llama(dense) as llama:
                ids = llama.tokenize(PROMPTS[0]) if what == "tale" else list(range(1, 25))
                theirs = llama.greedy(ids, 32)
            self.check(f"{what} {name}: unpacked, greedy tokens", self.tokens(dense, ids, 32) == theirs)
            self.check(f"{what} {name}: packed, greedy tokens", self.tokens(path, ids, 32) == theirs)

    def vocabularies(self, source):
        """llama.cpp's test vocabularies, against the ids of the original tokenizers that lie beside them."""
        for name in ("gpt-2", "mpt", "falcon", "starcoder", "llama-bpe", "qwen2", "llama-spm"):
            path = source / "models" / f"ggml-vocab-{name}.gguf"
            texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
            wanted = path.with_suffix(".gguf.out").read_text().split("\n")
            for text, ids in zip(texts, wanted, strict=False):
                ours = json.loads(self.ssm("tokenize", "--tokenizer", path, "--json", text=text.encode()))["ids"]
                assert ours == [int(i) for i in ids.split()], f"{name}: {text!r}: {ours}, not {ids}"
            self.check(f"vocabulary {name}: {len(texts)} texts", True)


def wide_model(folder, family):
    """Random, with rows of whole super-blocks, so that the quantizer uses each type and not what stands in for it."""
    rng = np.random.default_rng(5)
    hidden, state, rank, head_dim, vocab = 256, 16, 32, 64, 64
    inner = 2 * hidden
    heads = inner // head_dim
    mamba2 = family == "mamba2"
    config = {
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "state_size": state,
        "tie_word_embeddings": True,
        "eos_token_id": None,
    }
    config |= {"num_heads": heads, "head_dim": head_dim, "n_groups": 1} if mamba2 else {"time_step_rank": rank}
    channels = inner + 2 * state if mamba2 else inner
    tensors = {
        "backbone.embeddings.weight": rng.normal(0, 0.3, (vocab, hidden)),
        "backbone.norm_f.weight": np.ones(hidden),
    }
    for i in range(2):
        layer, mixer = f"backbone.layers.{i}.", f"backbone.layers.{i}.mixer."
        tensors[layer + "norm.weight"] = rng.normal(1, 0.1, hidden)
        tensors[mixer + "in_proj.weight"] = rng.normal(
            0, 0.06, (inner + channels + heads if mamba2 else 2 * inner, hidden)
        )
        tensors[mixer + "conv1d.weight"] = rng.normal(0, 0.5, (channels, 1, 4))
        tensors[mixer + "conv1d.bias"] = rng.normal(0, 0.1, channels)
        tensors[mixer + "out_proj.weight"] = rng.normal(0, 0.04, (hidden, inner))
        if mamba2:
            tensors[mixer + "dt_bias"] = rng.normal(-2, 1, heads)
            tensors[mixer + "A_log"] = np.log(rng.uniform(1, 8, heads))
            tensors[mixer + "D"] = np.ones(heads)
            tensors[mixer + "norm.weight"] = np.ones(inner)
        else:
            tensors[mixer + "x_proj.weight"] = rng.normal(0, 0.04, (rank + 2 * state, inner))
            tensors[mixer + "dt_proj.weight"] = rng.normal(0, 0.1, (inner, rank))
            tensors[mixer + "dt_proj.bias"] = rng.normal(-2, 1, inner)
            tensors[mixer + "A_log"] = np.log(np.tile(np.arange(1.0, state + 1), (inner, 1)))
            tensors[mixer + "D"] = np.ones(inner)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header, data = {}, b""
    for name, value in tensors.items():
        raw = value.astype(np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("ssm")
    parser.add_argument("--llama-source", type=Path)
    arguments = parser.parse_args()
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    golden = json.loads((ROOT / "tests/goldens/tokenizers/bundled.json").read_text())
    # llama.cpp reads no text with a NUL, and its Unicode tables are its own.
    texts = [t for t in golden["texts"] if t and "\0" not in t]
    with tempfile.TemporaryDirectory() as folder:
        job = Job(arguments.ssm, folder)
        job.dense_goldens()
        job.as_stored()
        tale = job.bundled(texts)
        job.quantized(tale, QUANTIZED, "tale")
        for family in ("mamba", "mamba2"):
            wide = wide_model(Path(folder) / family, family)
            job.quantized(job.convert(wide, f"{family}.gguf"), QUANTIZED, family)
        if arguments.llama_source:
            job.vocabularies(arguments.llama_source)
        print(f"{job.checks} checks passed")


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        print(f"test-gguf: {error}", file=sys.stderr)
        os._exit(1)
