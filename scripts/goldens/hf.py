"""Runs a model through Transformers' plain PyTorch path, in float32 as it is or in true float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

CLASSES = {
    "mamba": (MambaConfig, MambaForCausalLM),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM),
    "falcon_mamba": (FalconMambaConfig, FalconMambaForCausalLM),
}


class Float64(TorchFunctionMode):
    """model.double() is not enough: the modelling code casts to float32 at norms, residuals, scans and logits.
    Inside this mode each of those casts goes to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double

        def swap(value):
            return torch.float64 if value is torch.float32 else value

        return func(*map(swap, args), **{key: swap(value) for key, value in (kwargs or {}).items()})


@dataclass
class Result:
    logits: np.ndarray  # (T,V)
    states: list  # after the prompt and after each single step: [layer][conv, ssm]


def build(family: str, config: dict, tensors: dict):
    config_class, model_class = CLASSES[family]
    model = model_class(config_class(**config))
    tensors = dict(tensors)
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"]
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    return model.eval()


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def run(model, prompt, steps=(), double: bool = True) -> Result:
    """`prompt` in one forward, then `steps` token by token on its cache."""
    model = model.double() if double else model.float()
    if double:
        with Float64():
            return forward(model, prompt, steps)
    return forward(model, prompt, steps)


def forward(model, prompt, steps) -> Result:
    out = model(torch.tensor([list(map(int, prompt))]), use_cache=True)
    logits, cache = [out.logits[0]], out.cache_params
    states = [snapshot(cache)]
    for token in steps:
        out = model(torch.tensor([[int(token)]]), cache_params=cache, use_cache=True)
        logits.append(out.logits[0])
        states.append(snapshot(cache))
    return Result(torch.cat(logits).numpy(), states)


def snapshot(cache):
    return [
        [layer.conv_states[0][0].numpy().copy(), layer.recurrent_states[0][0].numpy().copy()] for layer in cache.layers
    ]
