"""Every layout's config file -> reference.Config, and back to the arguments of a Transformers config class."""

from __future__ import annotations

import math

from goldens.reference import Config


def from_hf(config: dict) -> Config:
    hidden, kind = config["hidden_size"], config["model_type"]
    expand, eps = config.get("expand", 2), config.get("layer_norm_epsilon", 1e-5)
    common = {
        "family": kind,
        "hidden": hidden,
        "vocab": config["vocab_size"],
        "layers": config["num_hidden_layers"],
        "kernel": config.get("conv_kernel", 4),
        "eps": eps,
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
    }
    if kind == "mamba2":
        return Config(
            **common,
            tied=config.get("tie_word_embeddings", False),
            inner=expand * hidden,
            state=config.get("state_size", 128),
            head_dim=config.get("head_dim", 64),
            groups=config.get("n_groups", 8),
            gate_eps=eps,
            dt_limit=tuple(config.get("time_step_limit", (0.0, math.inf))),
            chunk=config.get("chunk_size", 256),
        )
    rank = config.get("time_step_rank", "auto")
    return Config(
        **common,
        tied=config.get("tie_word_embeddings", True),
        inner=config.get("intermediate_size", expand * hidden),
        state=config.get("state_size", 16),
        rank=math.ceil(hidden / 16) if rank == "auto" else rank,
        mixer_eps=config.get("mixer_rms_eps", 1e-6),
    )


def from_original(config: dict) -> Config:
    ssm, hidden = config.get("ssm_cfg", {}), config["d_model"]
    multiple = config.get("pad_vocab_size_multiple", 8)
    two = ssm.get("layer", "Mamba1") == "Mamba2"
    inner = ssm.get("expand", 2) * hidden
    common = {
        "family": "mamba2" if two else "mamba",
        "hidden": hidden,
        "vocab": math.ceil(config["vocab_size"] / multiple) * multiple,
        "layers": config["n_layer"],
        "inner": inner,
        "state": ssm.get("d_state", 128 if two else 16),
        "kernel": ssm.get("d_conv", 4),
        "bias": ssm.get("bias", False),
        "conv_bias": ssm.get("conv_bias", True),
        "tied": config.get("tie_embeddings", True),
    }
    if not two:
        rank = ssm.get("dt_rank", "auto")
        return Config(**common, rank=math.ceil(hidden / 16) if rank == "auto" else rank)
    return Config(
        **common,
        head_dim=ssm.get("headdim", 64),
        groups=ssm.get("ngroups", 1),
        dt_limit=tuple(ssm.get("dt_limit", (0.0, math.inf))),
        d_ssm=ssm.get("d_ssm") or 0,
        gated_norm=ssm.get("rmsnorm", True),
        norm_before_gate=ssm.get("norm_before_gate", False),
        d_has_hdim=ssm.get("D_has_hdim", False),
        chunk=ssm.get("chunk_size", 256),
    )


def from_mistral(params: dict, state: int = 128, head_dim: int = 64) -> Config:
    """`params.json` says nothing of the state and head sizes: they are mamba_ssm's defaults, or the tensors' shapes."""
    return Config(
        family="mamba2",
        hidden=params["dim"],
        vocab=params["vocab_size"],
        layers=params["n_layers"],
        inner=2 * params["dim"],
        state=state,
        head_dim=head_dim,
        groups=params["n_groups"],
        tied=params["tie_embeddings"],
    )


def to_hf(c: Config) -> dict:
    """What Transformers needs to build the same model; raises where it has no words for it."""
    own_gate_eps = c.family == "mamba2" and c.gate_eps != c.eps
    if c.d_has_hdim or c.norm_before_gate or not c.gated_norm or c.ssm_width != c.inner or own_gate_eps:
        raise ValueError("not expressible in Transformers")
    common = {
        "hidden_size": c.hidden,
        "vocab_size": c.vocab,
        "num_hidden_layers": c.layers,
        "state_size": c.state,
        "conv_kernel": c.kernel,
        "layer_norm_epsilon": c.eps,
        "use_bias": c.bias,
        "use_conv_bias": c.conv_bias,
        "tie_word_embeddings": c.tied,
    }
    if c.family != "mamba2":
        extra = {"mixer_rms_eps": c.mixer_eps} if c.family == "falcon_mamba" else {}
        return common | extra | {"intermediate_size": c.inner, "time_step_rank": c.rank}
    return common | {
        "expand": c.inner // c.hidden,
        "head_dim": c.head_dim,
        "num_heads": c.heads,
        "n_groups": c.groups,
        "time_step_limit": list(c.dt_limit),
        "chunk_size": c.chunk,
    }
