#!/usr/bin/env python3
"""Checks that an adapter computes in Python what it computes here.

    python scripts/check_adapter.py MODEL ADAPTER [--ssm build/release/bin/ssm] [--tokens 1,2,3]

MODEL is a folder in Transformers' layout. Where the peft package accepts the adapter's targets it loads the folder and
computes unmerged; otherwise (out_proj, dt_proj of Mamba-1, tensors trained whole) NumPy merges the file into the
model's weights, and Transformers computes with those. The log-probabilities of the tokens must be those of
`ssm score --adapter`, and those of the model that `ssm merge` writes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import peft  # noqa: E402
import safetensors.numpy  # noqa: E402
import torch  # noqa: E402

from goldens import hf  # noqa: E402

BOUND = 2e-3  # nats; float32 here, float64 there
PREFIX = "base_model.model."


def with_peft(folder: Path, adapter: Path):
    return peft.PeftModel.from_pretrained(hf.load(folder), adapter)


def merged(folder: Path, adapter: Path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    model = hf.load(folder).double()
    names = model.state_dict()
    if config.get("alpha_pattern") or config.get("rank_pattern"):
        raise SystemExit(f"{adapter}: patterns are not read here")
    file = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    file = {name.removeprefix(PREFIX).replace(".base_layer.", "."): array.astype(float) for name, array in file.items()}
    # One side of a tied matrix.
    if any(name.startswith(("backbone.embeddings.", "lm_head.")) for name in file):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    state = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}
    for name, array in file.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            state[module + ".weight"] += scale * file[module + ".lora_B.weight"] @ array
        elif name.endswith(".lora_embedding_A"):
            module = name.removesuffix(".lora_embedding_A")
            state[module + ".weight"] += scale * (file[module + ".lora_embedding_B"] @ array).T
        elif "lora_" not in name:
            assert name in names, name
            state[name] = array
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    return model


def logprobs(model, tokens: list[int]) -> np.ndarray:
    with torch.no_grad(), hf.Float64():
        logits = model.double()(torch.tensor([tokens]), use_cache=False).logits[0]
    rows = torch.log_softmax(logits, -1)[:-1]
    return rows.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


def score(ssm: str, *arguments: str) -> np.ndarray:
    command = [ssm, "score", *arguments, "--dtype", "f32", "--device", "cpu", "--json"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.array(json.loads(out)["logprobs"][1:])


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--ssm", default=str(root / "build/release/bin/ssm"))
    parser.add_argument("--tokens", default="5,17,3,40,22,8,31,2,11,29,7,19")
    a = parser.parse_args()
    tokens = [int(token) for token in a.tokens.split(",")]
    config = json.loads((a.adapter / "adapter_config.json").read_text())
    # Transformers' Mamba-1 multiplies by dt_proj.weight itself and never calls the module.
    beyond = {"out_proj", "dt_proj", "conv1d"} & set(config["target_modules"]) or config.get("modules_to_save")
    oracle = "NumPy" if beyond else f"peft {peft.__version__}"
    expected = logprobs((merged if beyond else with_peft)(a.model, a.adapter), tokens)
    plain = np.abs(logprobs(hf.load(a.model), tokens) - expected).max()
    attached = np.abs(score(a.ssm, str(a.model), "--adapter", str(a.adapter), "--tokens", a.tokens) - expected).max()
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "merged")
        subprocess.run([a.ssm, "merge", str(a.model), str(a.adapter), out, "--dtype", "f32"], check=True)
        whole = np.abs(score(a.ssm, out, "--tokens", a.tokens) - expected).max()
    good = attached < BOUND and whole < BOUND and plain > 10 * max(attached, whole)
    print(f"{oracle}: attached {attached:.1e}, merged {whole:.1e} nats apart; the adapter changes {plain:.1e}")
    print("equal" if good else "DIFFERENT")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
