"""Mamba-2 over long sequences in torch: chunked SSD with a carried state, for texts the recurrence is too slow for.

Arithmetic in float32 or float64; n_groups 1 and time_step_limit [0, inf) only, which is what the bundled model has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from goldens.reference import Config


class ChunkedMamba2:
    def __init__(self, config: Config, weights: dict, dtype=torch.float32, chunk: int = 64):
        assert config.family == "mamba2" and config.groups == 1 and config.tied
        assert config.dt_limit == (0.0, float("inf")) and not config.bias
        self.c, self.dtype, self.chunk = config, dtype, chunk
        self.w = {name: value.to(dtype) for name, value in weights.items()}

    def initial_state(self):
        c = self.c
        return [
            [torch.zeros(c.kernel - 1, c.conv_width, dtype=self.dtype), self.ssm_zeros()] for _ in range(self.c.layers)
        ]

    def ssm_zeros(self):
        return torch.zeros(self.c.heads, self.c.head_dim, self.c.state, dtype=self.dtype)

    def rms(self, x, eps, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def forward(self, tokens, state):
        """Hidden rows before the head (T,M); `state` moves on in place."""
        h = self.w["backbone.embeddings.weight"][tokens]
        for i in range(self.c.layers):
            p = f"backbone.layers.{i}."
            h = h + self.mixer(self.rms(h, self.c.eps, self.w[p + "norm.weight"]), p + "mixer.", state[i])
        return self.rms(h, self.c.eps, self.w["backbone.norm_f.weight"])

    def mixer(self, h, p, state):
        c, w = self.c, self.w
        z, xbc, dt = (h @ w[p + "in_proj.weight"].T).split([c.inner, c.conv_width, c.heads], dim=-1)
        xbc = torch.cat([state[0], xbc])
        state[0] = xbc[1 - c.kernel :].clone()
        xbc = F.silu(F.conv1d(xbc.T[None], w[p + "conv1d.weight"], w[p + "conv1d.bias"], groups=c.conv_width)[0].T)
        x, b, cc = xbc.split([c.inner, c.state, c.state], dim=-1)
        dt = F.softplus(dt + w[p + "dt_bias"])  # (T,H)
        log_decay = -dt * w[p + "A_log"].exp()
        x = x.view(-1, c.heads, c.head_dim)  # (T,H,P)
        rows = [
            self.scan(*part, state)
            for part in zip(*(v.split(self.chunk) for v in (x * dt[..., None], log_decay, b, cc)), strict=True)
        ]
        y = (torch.cat(rows) + w[p + "D"][:, None] * x).reshape(-1, c.inner)
        return self.rms(y * F.silu(z), c.gate_eps, w[p + "norm.weight"]) @ w[p + "out_proj.weight"].T

    def scan(self, x, log_decay, b, cc, state):
        """One chunk: the quadratic form inside it, the carried state from before it."""
        total = log_decay.cumsum(0)  # (L,H): log of the decay from the chunk's start through each row
        mask = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        decay = (total.T[:, :, None] - total.T[:, None]).masked_fill(~mask, -torch.inf).exp()  # (H,L,S)
        y = ((cc @ b.T) * decay) @ x.transpose(0, 1)  # (H,L,P)
        y = y + (cc @ state[1].transpose(1, 2)) * total.T.exp()[..., None]
        tail = (x * (total[-1] - total).exp()[..., None]).permute(1, 2, 0)  # (H,P,S)
        state[1] = total[-1].exp()[:, None, None] * state[1] + tail @ b
        return y.transpose(0, 1)

    @torch.no_grad()
    def nll(self, tokens, state=None, segment: int = 4096):
        """-log p of tokens[1:] each after all before it; constant memory but for the result."""
        state, head = state or self.initial_state(), self.w["backbone.embeddings.weight"]
        out, previous = [], None
        for start in range(0, len(tokens), segment):
            part = tokens[start : start + segment]
            hidden = self.forward(part, state)
            rows = hidden[:-1] if previous is None else torch.cat([previous, hidden[:-1]])
            targets = part[1:] if previous is None else part
            out.append(F.cross_entropy(rows @ head.T, targets, reduction="none"))
            previous = hidden[-1:]
        return torch.cat(out).double()
