"""Models with attention in float64, written from their formulas: GPT-NeoX, and mamba_ssm's hybrids (modules/mha.py,
mlp.py and block.py), whose Mamba layers are reference.Model's. The whole text at once, no cache, no tricks."""

from __future__ import annotations

import math

import numpy as np

from goldens import configs
from goldens.reference import Model, rms, silu

MLP_MULTIPLE = 128


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def rotated(x, dim, base):
    """x (T,H,D): each pair (i, i + dim / 2) turned by position times base^(-2 i / dim)."""
    if dim == 0:
        return x
    angle = np.arange(len(x))[:, None] * base ** (-np.arange(0, dim, 2) / dim)  # (T, dim / 2)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b, rest = x[..., : dim // 2], x[..., dim // 2 : dim], x[..., dim:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def attention(q, k, v):
    """q (T,H,D), k and v (T,Hk,D) -> (T, H D), each token seeing itself and what came before."""
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("thd,shd->hts", q, np.repeat(k, group, 1)) / math.sqrt(q.shape[-1])
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hts,shd->thd", weights, np.repeat(v, group, 1)).reshape(len(q), -1)


class AttentionModel:
    """`layout`: hf (GPT-NeoX) | original. run() gives logits (T,V) and a dictionary of states for each layer:
    keys and values (T,Hk,D), conv (C,K) newest last, ssm (E,N) or (H,P,N)."""

    def __init__(self, layout: str, config: dict, weights: dict):
        self.c, self.neox = config, layout == "hf"
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.mamba = None if self.neox else Model(configs.from_original(config), self.w)

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)

    def run(self, tokens):
        return self.run_neox(tokens) if self.neox else self.run_hybrid(tokens)

    def run_neox(self, tokens):
        c, w, eps = self.c, self.w, self.c.get("layer_norm_eps", 1e-5)
        rope = c.get("rope_parameters", {})
        heads, size = c["num_attention_heads"], c["hidden_size"] // c["num_attention_heads"]
        dim = int(size * rope.get("partial_rotary_factor", c.get("rotary_pct", 0.25)))
        base = rope.get("rope_theta", c.get("rotary_emb_base", 10000))
        h, states = w["gpt_neox.embed_in.weight"][tokens], []

        def norm(x, name):
            return layer_norm(x, w[name + ".weight"], w[name + ".bias"], eps)

        for i in range(c["num_hidden_layers"]):
            p = f"gpt_neox.layers.{i}."
            qkv = self.linear(p + "attention.query_key_value", norm(h, p + "input_layernorm"))
            q, k, v = np.split(qkv.reshape(len(h), heads, 3 * size), 3, axis=-1)
            q, k = rotated(q, dim, base), rotated(k, dim, base)
            states.append({"keys": k, "values": v})
            mixed = self.linear(p + "attention.dense", attention(q, k, v))
            inside = h if c.get("use_parallel_residual", True) else h + mixed
            inner = gelu(self.linear(p + "mlp.dense_h_to_4h", norm(inside, p + "post_attention_layernorm")))
            h = h + mixed + self.linear(p + "mlp.dense_4h_to_h", inner)
        h = norm(h, "gpt_neox.final_layer_norm")
        tied = c.get("tie_word_embeddings", False)
        return h @ w["gpt_neox.embed_in.weight" if tied else "embed_out.weight"].T, states

    def run_hybrid(self, tokens):
        c, w = self.c, self.w
        h, states = w["backbone.embeddings.weight"][tokens], []
        for i in range(c["n_layer"]):
            p = f"backbone.layers.{i}."
            x, state = rms(h, 1e-5) * w[p + "norm.weight"], {}
            attends = i in c.get("attn_layer_idx", [])
            h = h + (self.mha if attends else self.mamba_layer)(x, p + "mixer.", state)
            if c.get("d_intermediate", 0) > 0:
                up, gate = np.split(self.linear(p + "mlp.fc1", rms(h, 1e-5) * w[p + "norm2.weight"]), 2, axis=-1)
                h = h + self.linear(p + "mlp.fc2", up * silu(gate))
            states.append(state)
        h = rms(h, 1e-5) * w["backbone.norm_f.weight"]
        tied = c.get("tie_embeddings", True)
        return h @ w["backbone.embeddings.weight" if tied else "lm_head.weight"].T, states

    def mamba_layer(self, x, prefix, state):
        own = self.mamba.initial_state()[0]
        y = np.array([self.mamba.mixer(row, prefix, own) for row in x])
        state["conv"], state["ssm"] = own
        return y

    def mha(self, x, prefix, state):
        a = self.c["attn_cfg"]
        heads, kv = a["num_heads"], a.get("num_heads_kv") or a["num_heads"]
        size = a.get("head_dim") or self.c["d_model"] // heads
        qkv, width = self.linear(prefix + "in_proj", x), a.get("d_conv", 0)
        if width:
            past = np.concatenate([np.zeros((width, qkv.shape[1])), qkv])  # (K + T, C)
            state["conv"] = past[len(past) - width :].T
            kernel = self.w[prefix + "conv1d.weight"][:, 0]  # (C,K)
            qkv = sum(past[1 + k : 1 + k + len(x)] * kernel[:, k] for k in range(width))
            qkv = qkv + self.w[prefix + "conv1d.bias"]
        q, k, v = np.split(qkv, [heads * size, (heads + kv) * size], axis=1)
        q, k, v = (part.reshape(len(x), -1, size) for part in (q, k, v))
        dim, base = a.get("rotary_emb_dim", 0), a.get("rotary_emb_base", 10000.0)
        q, k = rotated(q, dim, base), rotated(k, dim, base)
        state["keys"], state["values"] = k, v
        return self.linear(prefix + "out_proj", attention(q, k, v))


def shapes(layout: str, c: dict) -> dict[str, tuple[int, ...]]:
    """The parameters beside those of Mamba layers."""
    if layout == "hf":
        m, v, f = c["hidden_size"], c["vocab_size"], c["intermediate_size"]
        out = {"gpt_neox.embed_in.weight": (v, m)}
        bias = c.get("attention_bias", True)
        for i in range(c["num_hidden_layers"]):
            p = f"gpt_neox.layers.{i}."
            for norm in ("input_layernorm", "post_attention_layernorm"):
                out |= {p + norm + ".weight": (m,), p + norm + ".bias": (m,)}
            for name, rows, columns, has_bias in (
                ("attention.query_key_value", 3 * m, m, bias),
                ("attention.dense", m, m, bias),
                ("mlp.dense_h_to_4h", f, m, True),
                ("mlp.dense_4h_to_h", m, f, True),
            ):
                out[p + name + ".weight"] = (rows, columns)
                if has_bias:
                    out[p + name + ".bias"] = (rows,)
        out |= {"gpt_neox.final_layer_norm.weight": (m,), "gpt_neox.final_layer_norm.bias": (m,)}
        return out if c.get("tie_word_embeddings", False) else out | {"embed_out.weight": (v, m)}
    m, a, out = c["d_model"], c.get("attn_cfg", {}), {}
    f = math.ceil(c.get("d_intermediate", 0) / MLP_MULTIPLE) * MLP_MULTIPLE
    for i in range(c["n_layer"]):
        p = f"backbone.layers.{i}."
        if i in c.get("attn_layer_idx", []):
            heads, size = a["num_heads"], a.get("head_dim") or m // a["num_heads"]
            width = (heads + 2 * (a.get("num_heads_kv") or heads)) * size
            out[p + "mixer.in_proj.weight"] = (width, m)
            out[p + "mixer.out_proj.weight"] = (m, heads * size)
            if a.get("qkv_proj_bias", True):
                out[p + "mixer.in_proj.bias"] = (width,)
            if a.get("out_proj_bias", True):
                out[p + "mixer.out_proj.bias"] = (m,)
            if a.get("d_conv", 0):
                out |= {p + "mixer.conv1d.weight": (width, 1, a["d_conv"]), p + "mixer.conv1d.bias": (width,)}
        if f:
            out |= {p + "norm2.weight": (m,), p + "mlp.fc1.weight": (2 * f, m), p + "mlp.fc2.weight": (m, f)}
    return out


def random_parameters(layout: str, c: dict, rng) -> dict[str, np.ndarray]:
    """Activations stay near one; scores of attention are large enough that it matters whom a token looks at."""
    out = {}
    for name, shape in shapes(layout, c).items():
        if len(shape) == 1:
            norm = "norm" in name and name.endswith(".weight")
            out[name] = (1.0 if norm else 0.0) + rng.normal(0.0, 0.3, shape)
        elif name.endswith("conv1d.weight"):
            out[name] = rng.normal(0.0, 1.3 / math.sqrt(shape[-1]), shape)
        else:
            scale = 0.3 if name.endswith("embed_in.weight") else 2.0 / math.sqrt(shape[1])
            out[name] = rng.normal(0.0, scale, shape)
    return out
