#!/usr/bin/env python3
"""Writes tests/goldens/gguf/: tiny models as llama.cpp's converter and quantizer write them.

usage: make_gguf_goldens.py SOURCE BIN

SOURCE is llama.cpp's source (with the converter and gguf-py), BIN the folder of its built llama-quantize.

The dense ones are models of tests/goldens/models, whose golden.safetensors then says what they compute. The packed
ones are new, a matrix of every packed type between them; what they compute is the reference recurrence on the
weights that gguf-py unpacks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SOURCE, BIN = Path(sys.argv[1]), Path(sys.argv[2])
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]

import gguf  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from conversion import mamba as converter  # noqa: E402

from goldens import configs, layouts  # noqa: E402
from goldens.reference import Config, Model  # noqa: E402
from goldens.weights import random_weights  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MODELS, OUT = ROOT / "tests" / "goldens" / "models", ROOT / "tests" / "goldens" / "gguf"
DENSE = {
    "mamba-default": "f32",
    "mamba-untied": "bf16",
    "mamba-f16": "f16",
    "falcon-default": "f32",
    "mamba2-default": "f32",
    "mamba2-groups2": "f32",
    "mamba2-head12": "bf16",
}
WIDE = {"vocab": 64, "hidden": 256, "layers": 1, "inner": 512, "state": 16, "tied": False}
PACKED = {
    "packed-mamba": (
        Config(family="mamba", rank=32, **WIDE),
        {
            "token_embd": "q5_0",
            "output": "q4_0",
            "ssm_in": "q4_k",
            "ssm_x": "q5_k",
            "ssm_dt": "q5_1",
            "ssm_out": "q6_k",
        },
    ),
    "packed-mamba2": (
        Config(family="mamba2", head_dim=64, **WIDE),
        {"token_embd": "q8_0", "output": "q4_1", "ssm_in": "q2_k", "ssm_out": "q3_k"},
    ),
}
GREEDY, MARGIN = 16, 1e-3
FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}


def no_vocabulary(model):
    """The tiny models have no tokenizer; the converter would give them GPT-NeoX's, cut off."""
    model.gguf_writer.add_tokenizer_model("none")
    model.gguf_writer.add_vocab_size(model.hparams["vocab_size"])


def convert(folder: Path, target: Path, dtype: str, mamba2: bool) -> None:
    kind = converter.Mamba2Model if mamba2 else converter.MambaModel
    kind.set_vocab = no_vocabulary
    hparams = json.loads((folder / "config.json").read_text())
    hparams.setdefault("architectures", ["Mamba2ForCausalLM" if mamba2 else "MambaForCausalLM"])
    with torch.inference_mode():
        kind(folder, gguf.LlamaFileType[FILE_TYPES[dtype]], target, hparams=hparams).write()


def quantize(source: Path, target: Path, types: dict[str, str]) -> None:
    options = []
    for tensor, kind in types.items():
        if tensor == "token_embd":
            options += ["--token-embedding-type", kind]
        elif tensor == "output":
            options += ["--output-tensor-type", kind]
        else:
            options += ["--tensor-type", f"{tensor}={kind}"]
    command = [BIN / "llama-quantize", *options, source, target, "Q8_0", "1"]
    subprocess.run(command, check=True, capture_output=True)


def weights_in(path: Path, config: Config) -> dict[str, np.ndarray]:
    """Transformers' names, the weights that the file's bytes stand for."""
    names = {
        "token_embd.weight": "backbone.embeddings.weight",
        "output_norm.weight": "backbone.norm_f.weight",
        "output.weight": "lm_head.weight",
        "attn_norm.weight": "norm.weight",
        "ssm_in.weight": "mixer.in_proj.weight",
        "ssm_conv1d.weight": "mixer.conv1d.weight",
        "ssm_conv1d.bias": "mixer.conv1d.bias",
        "ssm_x.weight": "mixer.x_proj.weight",
        "ssm_dt.weight": "mixer.dt_proj.weight",
        "ssm_dt.bias": "mixer.dt_bias" if config.family == "mamba2" else "mixer.dt_proj.bias",
        "ssm_a": "mixer.A_log",
        "ssm_d": "mixer.D",
        "ssm_norm.weight": "mixer.norm.weight",
        "ssm_out.weight": "mixer.out_proj.weight",
    }
    out = {}
    for tensor in gguf.GGUFReader(path).tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        *layer, rest = tensor.name.split(".", 2) if tensor.name.startswith("blk.") else [tensor.name]
        name = (f"backbone.layers.{layer[1]}." if layer else "") + names[rest]
        if rest == "ssm_a":
            value = np.log(-value)
        if rest == "ssm_conv1d.weight":
            value = value[:, None, :]
        elif config.family == "mamba2" and rest in ("ssm_a", "ssm_d", "ssm_norm.weight"):
            value = value.reshape(-1)
        out[name] = value
    return out


def answers(config: Config, weights: dict[str, np.ndarray], seed: int):
    """Prompt, logits and greedy tokens; nothing where two best logits are near each other."""
    prompt = np.random.default_rng(seed).integers(0, config.vocab, 20)
    model = Model(config, weights)
    logits, state = model.run(prompt)
    rows, greedy = [logits[-1]], []
    for _ in range(GREEDY):
        greedy.append(int(np.argmax(rows[-1])))
        more, state = model.run(greedy[-1:], state)
        rows.append(more[0])
    best = np.sort(np.stack(rows), axis=1)[:, -2:]
    good = (best[:, 1] - best[:, 0]).min() > MARGIN and len(set(greedy)) >= 6
    return (prompt, logits, np.array(greedy)) if good else None


def packed(name: str, folder: Path) -> None:
    config, types = PACKED[name]
    tensors = layouts.to_tensors(random_weights(config, np.random.default_rng(7), 0.3, 2.0), "f32")
    model = folder / name
    model.mkdir()
    layouts.write_json(model / "config.json", {"model_type": config.family} | configs.to_hf(config))
    layouts.write_safetensors(model, tensors)
    convert(model, folder / "dense.gguf", "f32", config.family == "mamba2")
    quantize(folder / "dense.gguf", OUT / f"{name}.gguf", types)
    kinds = {t.tensor_type.name.lower() for t in gguf.GGUFReader(OUT / f"{name}.gguf").tensors}
    assert kinds == set(types.values()) | {"f32"}, kinds
    weights = weights_in(OUT / f"{name}.gguf", config)
    prompt, logits, greedy = next(filter(None, (answers(config, weights, seed) for seed in range(100))))
    arrays = {"tokens": prompt, "logits": logits.astype(np.float32), "greedy": greedy}
    layouts.write_golden(OUT / f"{name}.safetensors", arrays, {"oracle": "reference"})


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, dtype in DENSE.items():
        convert(MODELS / name, OUT / f"{name}.gguf", dtype, name.startswith("mamba2"))
    with tempfile.TemporaryDirectory() as folder:
        for name in PACKED:
            packed(name, Path(folder))
    for path in sorted(OUT.iterdir()):
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
