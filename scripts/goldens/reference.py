"""Mamba-1, FalconMamba and Mamba-2 as plain float64 recurrences, one token at a time.

Written from the papers (Mamba: arXiv 2312.00752, algorithm 2; Mamba-2: arXiv 2405.21060, section 7) and the published
parameter layouts. No chunks, no batch, no tricks: slow and easy to check by eye. Parameter names are those of the
Transformers layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Config:
    family: str  # mamba | falcon_mamba | mamba2
    vocab: int
    hidden: int
    layers: int
    inner: int
    state: int
    kernel: int = 4
    eps: float = 1e-5
    bias: bool = False
    conv_bias: bool = True
    tied: bool = True
    # Mamba-1 and FalconMamba
    rank: int = 0
    mixer_eps: float = 1e-6
    # Mamba-2
    head_dim: int = 0
    groups: int = 1
    gate_eps: float = 1e-5
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    d_ssm: int = 0  # inner channels that go through the SSM; the others are a gated MLP
    gated_norm: bool = True
    norm_before_gate: bool = False
    d_has_hdim: bool = False
    chunk: int = 256  # means nothing here, chunking changes no result

    @property
    def ssm_width(self) -> int:
        return self.d_ssm or self.inner

    @property
    def heads(self) -> int:
        return self.ssm_width // self.head_dim

    @property
    def conv_width(self) -> int:
        return self.ssm_width + 2 * self.groups * self.state if self.family == "mamba2" else self.inner


def silu(x):
    return x / (1.0 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0.0, x)


def rms(x, eps):
    """x over its root mean square along the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


class Model:
    """`weights`: name -> array. A state is a list over layers of [conv (C,K) newest last, ssm (E,N) or (H,P,N)]."""

    def __init__(self, config: Config, weights: dict):
        self.c = config
        self.w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        self.mixer = self.mamba2 if config.family == "mamba2" else self.mamba1

    def initial_state(self):
        c = self.c
        ssm = (c.heads, c.head_dim, c.state) if c.family == "mamba2" else (c.inner, c.state)
        return [[np.zeros((c.conv_width, c.kernel)), np.zeros(ssm)] for _ in range(c.layers)]

    def run(self, tokens, state=None):
        """Logits (T,V) for `tokens`, and the state after the last of them."""
        state = self.initial_state() if state is None else [list(layer) for layer in state]
        logits = [self.step(int(token), state) for token in tokens]
        return np.array(logits), state

    def step(self, token, state):
        w, c = self.w, self.c
        h = w["backbone.embeddings.weight"][token]  # (M)
        for i in range(c.layers):
            prefix = f"backbone.layers.{i}."
            x = rms(h, c.eps) * w[prefix + "norm.weight"]
            h = h + self.mixer(x, prefix + "mixer.", state[i])
        h = rms(h, c.eps) * w["backbone.norm_f.weight"]
        head = w["backbone.embeddings.weight"] if c.tied else w["lm_head.weight"]
        return head @ h  # (V)

    def linear(self, name, x):
        bias = self.w.get(name + ".bias")
        y = self.w[name + ".weight"] @ x
        return y if bias is None else y + bias

    def conv(self, prefix, x, state):
        """Causal depthwise convolution and SiLU; the window moves one column to the left."""
        window = np.concatenate([state[0][:, 1:], x[:, None]], axis=1)  # (C,K)
        state[0] = window
        y = np.sum(window * self.w[prefix + "conv1d.weight"][:, 0, :], axis=1)
        if self.c.conv_bias:
            y = y + self.w[prefix + "conv1d.bias"]
        return silu(y)

    def mamba1(self, h, prefix, state):
        w, c = self.w, self.c
        x, z = np.split(self.linear(prefix + "in_proj", h), [c.inner])  # (E), (E)
        x = self.conv(prefix, x, state)
        dt, b, cc = np.split(w[prefix + "x_proj.weight"] @ x, [c.rank, c.rank + c.state])  # (R), (N), (N)
        if c.family == "falcon_mamba":
            dt, b, cc = rms(dt, c.mixer_eps), rms(b, c.mixer_eps), rms(cc, c.mixer_eps)
        dt = softplus(w[prefix + "dt_proj.weight"] @ dt + w[prefix + "dt_proj.bias"])  # (E)
        a = -np.exp(w[prefix + "A_log"])  # (E,N)
        state[1] = np.exp(dt[:, None] * a) * state[1] + (dt * x)[:, None] * b[None, :]
        y = state[1] @ cc + w[prefix + "D"] * x
        return self.linear(prefix + "out_proj", y * silu(z))

    def mamba2(self, h, prefix, state):
        w, c = self.w, self.c
        s, gn, mlp = c.ssm_width, c.groups * c.state, c.inner - c.ssm_width
        sizes = np.cumsum([mlp, mlp, s, s + 2 * gn])
        z0, x0, z, xbc, dt = np.split(self.linear(prefix + "in_proj", h), sizes)
        x, b, cc = np.split(self.conv(prefix, xbc, state), [s, s + gn])
        x = x.reshape(c.heads, c.head_dim)  # (H,P)
        b = np.repeat(b.reshape(c.groups, c.state), c.heads // c.groups, axis=0)  # (H,N)
        cc = np.repeat(cc.reshape(c.groups, c.state), c.heads // c.groups, axis=0)
        dt = np.clip(softplus(dt + w[prefix + "dt_bias"]), *c.dt_limit)  # (H)
        decay = np.exp(-np.exp(w[prefix + "A_log"]) * dt)  # (H)
        state[1] = decay[:, None, None] * state[1] + (dt[:, None] * x)[:, :, None] * b[:, None, :]
        d = w[prefix + "D"].reshape(c.heads, -1)  # (H,1) or (H,P)
        y = (np.einsum("hpn,hn->hp", state[1], cc) + d * x).reshape(s)
        y = self.gated_norm(y, z, prefix)
        if mlp:
            y = np.concatenate([silu(z0) * x0, y])
        return self.linear(prefix + "out_proj", y)

    def gated_norm(self, y, z, prefix):
        c = self.c
        if not c.gated_norm:
            return y * silu(z)
        y = y if c.norm_before_gate else y * silu(z)
        y = rms(y.reshape(c.groups, -1), c.gate_eps).reshape(-1) * self.w[prefix + "norm.weight"]
        return y * silu(z) if c.norm_before_gate else y
