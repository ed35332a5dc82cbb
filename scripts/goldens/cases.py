"""The list of models: family x layout x the configs that readers get wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

CLAMP = (
    "Transformers {version} clamps dt to time_step_limit in prefill only, its single-step path does not; the reference "
    "clamps in both. Prefill of the prompt and of every longer prefix agrees with it."
)
BEYOND = "Transformers has no option for {what}; the reference follows mamba_ssm's modules/mamba2.py"

ALL = (0, 1, 2, 3)


@dataclass(frozen=True)
class Case:
    name: str
    layout: str  # hf | original | mistral
    config: dict
    note: str
    dtype: str = "f32"
    shards: int = 1
    file: str = "safetensors"  # hf only: safetensors | bin
    style: str = ""  # original: views | cuda; mistral: two (names with a prefix)
    reference_because: str = ""
    prompt: int = 37
    prefixes: tuple[int, ...] = ()
    state_steps: tuple[int, ...] = (0, 3)
    dims: dict = field(default_factory=dict)  # mistral: sizes that only the tensors tell
    embed_scale: float = 0.0  # 0: 1.5/sqrt(hidden) when tied, 0.3 when not
    x_scale: float = 2.0


def mamba(**changes) -> dict:
    base = {"model_type": "mamba", "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2}
    return base | {"state_size": 8, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | changes


def falcon(**changes) -> dict:
    base = mamba(architectures=["FalconMambaForCausalLM"], expand=16, intermediate_size=32, time_step_rank=3)
    return base | {"model_type": "falcon_mamba", "eos_token_id": 11, "pad_token_id": 11} | changes


def mamba2(**changes) -> dict:
    base = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "vocab_size": 48, "hidden_size": 16}
    base |= {"num_hidden_layers": 2, "state_size": 8, "expand": 2, "head_dim": 8, "num_heads": 4, "n_groups": 1}
    return base | {"chunk_size": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0} | changes


def original(ssm=None, **changes) -> dict:
    base = {"d_model": 16, "n_layer": 2, "vocab_size": 45, "ssm_cfg": ssm or {}, "rms_norm": True}
    return base | {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8} | changes


def original2(ssm=None, **changes) -> dict:
    ssm = {"layer": "Mamba2", "d_state": 8, "headdim": 8} | (ssm or {})
    base = original(ssm, pad_vocab_size_multiple=16, d_intermediate=0, attn_layer_idx=[], attn_cfg={})
    return base | {"tie_embeddings": True} | changes


def mistral(**changes) -> dict:
    base = {"dim": 24, "n_layers": 2, "vocab_size": 48, "n_groups": 2, "rms_norm": True, "residual_in_fp32": True}
    base |= {"fused_add_norm": True, "pad_vocab_size_multiple": 1, "tie_embeddings": False, "model_type": "mamba"}
    return base | changes


HF_MAMBA_AS_PUBLISHED = {  # the keys of the published mamba-*-hf files: both layouts' names at once
    "architectures": ["MambaForCausalLM"],
    "d_model": 16,
    "d_inner": 32,
    "n_layer": 2,
    "ssm_cfg": {},
    "rms_norm": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "conv_kernel": 4,
    "expand": 2,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "intermediate_size": 32,
    "layer_norm_epsilon": 1e-05,
    "residual_in_fp32": True,
    "state_size": 16,
    "time_step_rank": 1,
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
}

MAMBA = [
    Case(
        "mamba-default",
        "hf",
        mamba(**HF_MAMBA_AS_PUBLISHED),
        "published key set, tied",
        prefixes=(2,),
        state_steps=ALL,
    ),
    Case("mamba-minimal", "hf", mamba(), "no key beyond sizes and ids: every other one is its default", "f16"),
    Case("mamba-bias", "hf", mamba(use_bias=True, use_conv_bias=False), "linear biases, no conv bias", "mixed"),
    Case("mamba-conv3", "hf", mamba(conv_kernel=3), "kernel 3", "bf16"),
    Case("mamba-conv2", "hf", mamba(conv_kernel=2, tie_word_embeddings=False), "kernel 2, untied", "mixed"),
    Case("mamba-state5", "hf", mamba(state_size=5), "odd state", "f16"),
    Case("mamba-rank3", "hf", mamba(hidden_size=18, time_step_rank=3), "odd rank, hidden 18", "bf16"),
    Case(
        "mamba-inner",
        "hf",
        mamba(hidden_size=20, intermediate_size=28, time_step_rank="auto"),
        'intermediate_size 28 overrides expand; "auto" rank is 2 at hidden 20',
        "f16",
    ),
    Case("mamba-untied", "hf", mamba(tie_word_embeddings=False), "own head", "mixed"),
    Case(
        "mamba-eps",
        "hf",
        mamba(layer_norm_epsilon=1e-3, tie_word_embeddings=False),
        "epsilon 1e-3, small embeddings",
        "mixed",
        embed_scale=0.1,
    ),
    Case("mamba-sharded", "hf", mamba(tie_word_embeddings=False), "three shards and an index", "f16", 3),
    Case("mamba-bf16", "hf", mamba(), "every tensor bf16", dtype="bf16"),
    Case("mamba-f16", "hf", mamba(), "every tensor f16", dtype="f16"),
]

FALCON = [
    Case(
        "falcon-default",
        "hf",
        falcon(tie_word_embeddings=False),
        "untied, expand 16 is wrong",
        x_scale=0.02,
        state_steps=ALL,
    ),
    Case("falcon-eps", "hf", falcon(mixer_rms_eps=1e-3), "mixer_rms_eps 1e-3, tied", "mixed", x_scale=0.1),
    Case("falcon-bf16", "hf", falcon(tie_word_embeddings=False), "every tensor bf16", dtype="bf16", x_scale=0.02),
]

LIMIT = mamba2(time_step_limit=[0.01, 0.1])
MAMBA2 = [
    Case(
        "mamba2-default",
        "hf",
        mamba2(chunk_size=256, time_step_limit=[0.0, math.inf], tie_word_embeddings=True, state_size=16),
        "bare Infinity, tied",
        state_steps=ALL,
        prefixes=(2,),
    ),
    Case(
        "mamba2-head12",
        "hf",
        mamba2(hidden_size=18, head_dim=12, num_heads=3),
        "odd head size and count, untied",
        "bf16",
    ),
    Case("mamba2-state9", "hf", mamba2(state_size=9, use_conv_bias=False), "odd state, no conv bias", "f16"),
    Case("mamba2-groups2", "hf", mamba2(n_groups=2), "gated norm over 2 groups", state_steps=ALL),
    Case("mamba2-groups4", "hf", mamba2(n_groups=4, tie_word_embeddings=True), "gated norm over 4 groups", "bf16"),
    Case("mamba2-bias", "hf", mamba2(use_bias=True, conv_kernel=3), "linear biases, kernel 3", "mixed"),
    Case("mamba2-limit", "hf", LIMIT, "dt in [0.01, 0.1]", reference_because=CLAMP, state_steps=ALL),
    Case(
        "mamba2-eps",
        "hf",
        mamba2(layer_norm_epsilon=1e-3),
        "epsilon 1e-3, also the gated norm's",
        "mixed",
        embed_scale=0.1,
    ),
    Case("mamba2-chunk4", "hf", mamba2(chunk_size=4), "chunk 4", "mixed", prefixes=(3, 4, 5)),
    Case("mamba2-chunk16", "hf", mamba2(n_groups=2), "chunk 16", "bf16", prefixes=(15, 16, 17, 32)),
    Case(
        "mamba2-chunk256",
        "hf",
        mamba2(chunk_size=256, vocab_size=24),
        "chunk 256, 257 tokens",
        "bf16",
        prompt=257,
        prefixes=(255, 256),
        state_steps=(0, 1),
    ),
    Case("mamba2-bin", "hf", mamba2(tie_word_embeddings=True), "pytorch_model.bin, HF names", "mixed", file="bin"),
    Case("mamba2-bin-sharded", "hf", mamba2(), "two .bin shards, an index", dtype="bf16", file="bin", shards=2),
    Case("mamba2-mixed", "hf", mamba2(), "some tensors in f32", dtype="mixed"),
    Case("mamba2-f16", "hf", mamba2(n_groups=2), "every tensor f16", dtype="f16"),
    Case(
        "mamba2-no-architectures",
        "hf",
        {k: v for k, v in mamba2().items() if k not in ("architectures", "eos_token_id")},
        "no `architectures`, no eos: the family comes from model_type",
        "bf16",
    ),
]

OLD = {k: v for k, v in original().items() if k not in ("fused_add_norm", "residual_in_fp32", "ssm_cfg")}
VARIANT = {"layer": "Mamba2", "d_state": 8, "headdim": 8}
ORIGINAL = [
    Case("original-mamba", "original", original(), "vocabulary 45 padded to 48, tied head in one storage"),
    Case("original-mamba-old", "original", OLD, "keys missing, no ssm_cfg; saved from cuda:0", "f16", style="cuda"),
    Case(
        "original-mamba-cfg",
        "original",
        original({"d_state": 6, "d_conv": 3, "expand": 3, "dt_rank": 5, "bias": True, "conv_bias": False}),
        "every ssm_cfg override",
        "bf16",
    ),
    Case("original-mamba-untied", "original", original(tie_embeddings=False), "own head", dtype="f16"),
    Case(
        "original-mamba-views", "original", original(), "tensors are views with offset or stride", "bf16", style="views"
    ),
    Case("original-mamba2", "original", original2(), "vocabulary 45 padded to 48", dtype="bf16"),
    Case(
        "original-mamba2-cfg",
        "original",
        original2({"d_state": 9, "d_conv": 3, "expand": 3, "headdim": 6, "ngroups": 2, "chunk_size": 8, "bias": True}),
        "every plain ssm_cfg override",
        "mixed",
    ),
    Case(
        "original-mamba2-hdim",
        "original",
        original2({"D_has_hdim": True, "conv_bias": False}),
        "D per channel",
        reference_because=BEYOND.format(what="D_has_hdim"),
    ),
    Case(
        "original-mamba2-limit",
        "original",
        original2({"dt_limit": [0.01, 0.1], "ngroups": 2}),
        "dt_limit",
        "bf16",
        reference_because=CLAMP,
    ),
    Case(
        "original-mamba2-norm-first",
        "original",
        original2({"norm_before_gate": True, "ngroups": 2}),
        "norm_before_gate: RMS(y)*silu(z)",
        "bf16",
        reference_because=BEYOND.format(what="norm_before_gate"),
    ),
    Case(
        "original-mamba2-no-norm",
        "original",
        original2({"rmsnorm": False}),
        "rmsnorm false: y*silu(z)",
        "bf16",
        reference_because=BEYOND.format(what="rmsnorm"),
    ),
    Case(
        "original-mamba2-mlp",
        "original",
        original2({"d_ssm": 24}),
        "d_ssm 24 of 32: the rest is a gated MLP",
        "bf16",
        reference_because=BEYOND.format(what="d_ssm"),
    ),
]

TINY = {"state": 8, "head_dim": 12}
MISTRAL = [
    Case(
        "mistral-tiny", "mistral", mistral(), "prefix on all names; N 8, P 12 known from the tensors", "f16", dims=TINY
    ),
    Case("mistral-two-prefixes", "mistral", mistral(), "prefix on two names", "bf16", style="two", dims=TINY),
    Case(
        "mistral-codestral-sizes",
        "mistral",
        mistral(dim=64, n_layers=1, vocab_size=32),
        "the implied N 128, P 64; one layer",
        dtype="bf16",
        prompt=11,
        state_steps=(0,),
    ),
]

CASES = MAMBA + FALCON + MAMBA2 + ORIGINAL + MISTRAL
