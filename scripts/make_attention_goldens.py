#!/usr/bin/env python3
"""Makes the tiny models with attention under tests/goldens/models and what they must compute.

    python scripts/make_attention_goldens.py [CASE...] [--out tests/goldens]

As scripts/make_goldens.py does for the others. GPT-NeoX: Transformers in float64 and the formulas of
scripts/goldens/attention.py must agree to 1e-7, in logits, keys and values, in one forward and step by step on its
cache. Hybrids, which Transformers does not have: the formulas, as mamba_ssm's modules state them.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

from goldens import configs, layouts  # noqa: E402
from goldens.attention import AttentionModel, random_parameters  # noqa: E402
from goldens.hf import Float64  # noqa: E402
from goldens.weights import random_weights  # noqa: E402

GREEDY, MARGIN, SAME = 24, 1e-3, 1e-7
STATES = (0, 3)


@dataclass(frozen=True)
class Case:
    name: str
    layout: str  # hf | original
    config: dict
    note: str
    dtype: str = "f32"
    shards: int = 1
    prompt: int = 37

    @property
    def vocab(self) -> int:
        return self.config["vocab_size"]


def neox(**changes) -> dict:
    base = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 48, "hidden_size": 16}
    base |= {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "hidden_act": "gelu"}
    return base | {"bos_token_id": 0, "eos_token_id": 0} | changes


def hybrid(ssm=None, attn=None, **changes) -> dict:
    base = {"d_model": 16, "n_layer": 3, "vocab_size": 45, "ssm_cfg": ssm or {}, "rms_norm": True}
    base |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 16, "tie_embeddings": True}
    return base | {"attn_cfg": {"causal": True} | (attn or {})} | changes


MAMBA2 = {"layer": "Mamba2", "d_state": 8, "headdim": 8}
AS_PUBLISHED = {"d_conv": 4, "head_dim": 12, "num_heads": 3, "out_proj_bias": False, "qkv_proj_bias": False}
CASES = [
    Case("neox-default", "hf", neox(rotary_pct=0.25, rotary_emb_base=10000), "as Pythia's files are"),
    Case(
        "neox-serial",
        "hf",
        neox(use_parallel_residual=False, rotary_pct=1.0, tie_word_embeddings=True, attention_bias=False),
        "one after the other, all of a head turned, tied, no biases of attention",
        "bf16",
    ),
    Case(
        "neox-rope-parameters",
        "hf",
        neox(
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            layer_norm_eps=1e-3,
        ),
        "positions as Transformers 5 writes them, base 500, epsilon 1e-3; three shards",
        "f16",
        3,
    ),
    Case(
        "neox-long",
        "hf",
        neox(num_attention_heads=4, rotary_pct=0.5, num_hidden_layers=1, vocab_size=24),
        "150 tokens",
        prompt=150,
    ),
    Case(
        "hybrid-attn",
        "original",
        hybrid(MAMBA2, AS_PUBLISHED | {"rotary_emb_dim": 6}, attn_layer_idx=[1], d_intermediate=0),
        "mamba2attn's settings: a convolution, wide heads half of which are turned",
    ),
    Case(
        "hybrid-mlp",
        "original",
        hybrid(
            {"d_state": 6},
            {"num_heads": 4, "num_heads_kv": 2, "rotary_emb_base": 500.0, "rotary_emb_dim": 4},
            attn_layer_idx=[0, 2],
            d_intermediate=100,
        ),
        "Mamba-1 between layers of grouped attention with biases; an MLP of 100, rounded up to 128, in each",
        "bf16",
    ),
    Case(
        "hybrid-transformer",
        "original",
        hybrid(
            MAMBA2,
            {"num_heads": 2, "head_dim": 8, "out_proj_bias": False, "qkv_proj_bias": False, "rotary_emb_dim": 4},
            attn_layer_idx=[0, 1],
            n_layer=2,
            d_intermediate=128,
            tie_embeddings=False,
        ),
        "transformerpp's settings: nothing but attention and MLPs; untied",
        "f16",
    ),
]


class Sample:
    def __init__(self, case: Case, seed: int):
        rng = np.random.default_rng([seed, *case.name.encode()])
        weights = random_parameters(case.layout, case.config, rng)
        if case.layout == "original":
            weights = hybrid_weights(case.config, weights, rng)
        self.case, self.tensors = case, layouts.to_tensors(weights, case.dtype)
        model = AttentionModel(case.layout, case.config, {n: t.double().numpy() for n, t in self.tensors.items()})
        self.prompt = rng.integers(0, case.vocab, case.prompt)
        self.greedy = []
        for _ in range(GREEDY):
            logits, _ = model.run([*self.prompt, *self.greedy])
            self.greedy.append(int(np.argmax(logits[-1])))
        self.logits, self.states = model.run([*self.prompt, *self.greedy])
        self.at = {s: model.run([*self.prompt, *self.greedy[:s]])[1] for s in STATES}

    def is_good(self) -> bool:
        best = np.sort(self.logits, axis=1)[:, -2:]
        return bool(
            (best[:, 1] - best[:, 0]).min() > MARGIN
            and self.logits.argmax(axis=1).max() < self.case.vocab
            and not {0, 2} & set(self.greedy)
            and len(set(self.greedy)) >= 6
            and np.std(self.logits) > 1.0
        )


def hybrid_weights(config: dict, attention: dict, rng) -> dict:
    """Those of a Mamba of the same sizes, but for the layers that attend."""
    base = random_weights(configs.from_original(config), rng, 1.5 / np.sqrt(config["d_model"]), 2.0)
    attending = tuple(f"backbone.layers.{i}.mixer." for i in config.get("attn_layer_idx", []))
    return {n: w for n, w in base.items() if not n.startswith(attending)} | attention


def check_against_transformers(sample: Sample, folder: Path) -> str:
    """In float64, in one forward and then step by step on its cache; returns how far float32 is away."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    ids = torch.tensor([[*map(int, sample.prompt), *sample.greedy]])
    with torch.no_grad():
        single = load(folder, dtype=torch.float32, attn_implementation="eager").eval()(ids).logits[0].numpy()
        model = load(folder, dtype=torch.float32, attn_implementation="eager").eval().double()
        rope = model.config.rope_parameters
        size = model.config.hidden_size // model.config.num_attention_heads
        dim = int(size * rope["partial_rotary_factor"])
        exact = rope["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        model.gpt_neox.rotary_emb.inv_freq = exact  # float32 otherwise
        with Float64():
            whole = model(ids).logits[0].numpy()
            out = model(ids[:, : sample.case.prompt], use_cache=True)
            rows = [out.logits[0]]
            for i in range(sample.case.prompt, ids.shape[1]):
                out = model(ids[:, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
                rows.append(out.logits[0])
    assert np.abs(whole - sample.logits).max() < SAME, (sample.case.name, np.abs(whole - sample.logits).max())
    assert np.abs(torch.cat(rows).numpy() - sample.logits).max() < SAME, (sample.case.name, "steps")
    for layer, mine in zip(out.past_key_values.layers, sample.states, strict=True):
        for theirs, own in ((layer.keys, mine["keys"]), (layer.values, mine["values"])):
            assert np.abs(theirs[0].transpose(0, 1).numpy() - own).max() < SAME, (sample.case.name, "cache")
    return f"{np.abs(single - sample.logits).max():.1e}"


def make(case: Case, out: Path) -> None:
    sample = next(s for s in (Sample(case, seed) for seed in range(2000)) if s.is_good())
    folder = out / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layouts.write_json(folder / "config.json", case.config)
    facts = {"oracle": "reference", "why": "Transformers has no such model"}
    if case.layout == "original":
        layouts.write_original(folder, sample.tensors, case.config["tie_embeddings"])
    else:
        layouts.write_safetensors(folder, sample.tensors, case.shards)
        facts = {"oracle": "transformers", "why": "Transformers' torch path and the formulas agree"}
        facts["max_difference_float32"] = check_against_transformers(sample, folder)
    arrays = {"tokens": sample.prompt.astype(np.int64), "logits": sample.logits[: case.prompt]}
    arrays["greedy"] = np.array(sample.greedy)
    for step, states in sample.at.items():
        for i, state in enumerate(states):
            arrays |= {f"state.{step}.layer.{i}.{name}": value for name, value in state.items()}
    arrays = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
    metadata = facts | {"case": case.note, "layout": case.layout, "stored": case.dtype}
    metadata["computed_in"] = "float64, from the weights as stored; rounded to float32 at the end"
    metadata["versions"] = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    layouts.write_golden(folder / "golden.safetensors", arrays, metadata)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name:24} {facts['oracle']:12} {size / 1e3:6.1f} kB  {facts.get('max_difference_float32', '')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names; none means all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "goldens")
    arguments = parser.parse_args()
    for case in CASES:
        if not arguments.cases or case.name in arguments.cases:
            make(case, arguments.out / "models")


if __name__ == "__main__":
    main()
