"""Random weights in which every branch of the model matters, and the check that it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from goldens.reference import Config, Model


def dt_bias(rng, n):
    """Inverse softplus of exp(U(log 1e-3, log 0.1)): mamba_ssm's own initialisation."""
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), n))
    return dt + np.log(-np.expm1(-dt))


def random_weights(c: Config, rng, embed_scale: float, x_scale: float) -> dict[str, np.ndarray]:
    """Linear weights keep activations near one; `x_scale` sizes x_proj's outputs, `embed_scale` the embedding."""

    def normal(*shape, scale=1.0):
        return rng.normal(0.0, scale, shape)

    def norm_weight(n):
        return 1.0 + normal(n, scale=0.2)

    w = {"backbone.embeddings.weight": normal(c.vocab, c.hidden, scale=embed_scale)}
    for i in range(c.layers):
        p, two = f"backbone.layers.{i}.", c.family == "mamba2"
        m = p + "mixer."
        rows = 2 * c.inner + (2 * c.groups * c.state + c.heads if two else 0)
        w[p + "norm.weight"] = norm_weight(c.hidden)
        w[m + "in_proj.weight"] = normal(rows, c.hidden, scale=1.3 / np.sqrt(c.hidden))
        w[m + "conv1d.weight"] = normal(c.conv_width, 1, c.kernel, scale=1.3 / np.sqrt(c.kernel))
        if c.conv_bias:
            w[m + "conv1d.bias"] = rng.uniform(-0.5, 0.5, c.conv_width)
        if two:
            w[m + "dt_bias"] = dt_bias(rng, c.heads)
            w[m + "A_log"] = np.log(np.arange(1, c.heads + 1)) + normal(c.heads, scale=0.2)
            w[m + "D"] = 1.0 + normal(c.ssm_width if c.d_has_hdim else c.heads, scale=0.3)
            if c.gated_norm:
                w[m + "norm.weight"] = norm_weight(c.ssm_width)
        else:
            w[m + "x_proj.weight"] = normal(c.rank + 2 * c.state, c.inner, scale=x_scale / np.sqrt(c.inner))
            w[m + "dt_proj.weight"] = normal(c.inner, c.rank, scale=c.rank**-0.5)
            w[m + "dt_proj.bias"] = dt_bias(rng, c.inner)
            w[m + "A_log"] = np.log(np.arange(1, c.state + 1)) + normal(c.inner, c.state, scale=0.1)
            w[m + "D"] = 1.0 + normal(c.inner, scale=0.3)
        w[m + "out_proj.weight"] = normal(c.hidden, c.inner, scale=2.0 / np.sqrt(c.inner))
        if c.bias:
            w[m + "in_proj.bias"] = rng.uniform(-0.4, 0.4, rows)
            w[m + "out_proj.bias"] = rng.uniform(-0.4, 0.4, c.hidden)
    w["backbone.norm_f.weight"] = norm_weight(c.hidden)
    if not c.tied:
        w["lm_head.weight"] = normal(c.vocab, c.hidden, scale=1.5 / np.sqrt(c.hidden))
    return w


def wrong_configs(c: Config):
    """Mistakes a reader could make with this config: name -> the config it would then run."""
    if c.eps != 1e-5:
        yield "layer_norm_epsilon ignored", replace(c, eps=1e-5, gate_eps=1e-5)
    if c.family == "falcon_mamba":
        yield "mixer_rms_eps wrong", replace(c, mixer_eps=1e-5)
        yield "B, C, dt not normalised", replace(c, family="mamba")
    if c.family == "mamba2":
        if c.dt_limit[1] < np.inf:
            yield "dt not clamped", replace(c, dt_limit=(0.0, np.inf))
            yield "lower dt limit ignored", replace(c, dt_limit=(0.0, c.dt_limit[1]))
        if c.gated_norm:
            yield "gate and norm swapped", replace(c, norm_before_gate=not c.norm_before_gate)
            yield "no gated norm", replace(c, gated_norm=False)


def wrong_weights(c: Config, w: dict):
    """Mistakes with one tensor: name -> the weights it would then run with."""
    for name, value in w.items():
        parts = name.split(".")
        if parts[1] == "layers" and int(parts[2]) not in (0, c.layers - 1):
            continue
        neutral = np.ones_like if name.endswith(("norm.weight", "norm_f.weight", ".D")) else np.zeros_like
        yield f"{name} ignored", w | {name: neutral(value)}
        if name.endswith("conv1d.weight"):
            yield f"{name} reversed", w | {name: value[:, :, ::-1]}
        if name.endswith("x_proj.weight"):
            dt, b, cc = np.split(value, [c.rank, c.rank + c.state])
            yield f"{name} with B and C swapped", w | {name: np.concatenate([dt, cc, b])}
        if name.endswith("in_proj.weight"):
            z, x, rest = np.split(value, [c.inner, 2 * c.inner])
            yield f"{name} with x and z swapped", w | {name: np.concatenate([x, z, rest])}


def weakest_mistake(c: Config, w: dict, tokens, logits) -> tuple[float, str]:
    """The smallest change of any logit row's maximum that one mistake makes, and which mistake that is."""
    changes = [(np.abs(Model(wrong, w).run(tokens)[0] - logits).max(), name) for name, wrong in wrong_configs(c)]
    changes += [(np.abs(Model(c, wrong).run(tokens)[0] - logits).max(), name) for name, wrong in wrong_weights(c, w)]
    if c.family == "mamba2" and c.groups > 1 and c.gated_norm:
        changes.append((np.abs(Ungrouped(c, w).run(tokens)[0] - logits).max(), "gated norm over all groups at once"))
    return min(changes)


class Ungrouped(Model):
    """Mamba-2 whose gated norm forgets the groups."""

    def gated_norm(self, y, z, prefix):
        whole = Model.__new__(Model)
        whole.c, whole.w = replace(self.c, groups=1), self.w
        return whole.gated_norm(y, z, prefix)
