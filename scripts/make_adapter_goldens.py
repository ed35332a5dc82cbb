#!/usr/bin/env python3
"""Makes tests/goldens/adapters: LoRA adapters on tiny models, and what PyTorch computes with them.

    python scripts/make_adapter_goldens.py [--out tests/goldens/adapters] [CASE ...]

The models are those of tests/goldens/models. Where PEFT accepts the targets, PEFT wrapped the model, wrote the folder
and computed everything, unmerged. It refuses out_proj and conv1d of Mamba models, and Transformers' Mamba-1 multiplies
by dt_proj.weight itself, so that a LoRA there has no effect unmerged: such adapters are written here under PEFT's
names, the logits are those of the model that NumPy merged, and gradients flow through torch.nn.utils.parametrize.

Everything is computed in float64 as in make_training_goldens.py, whose loss and optimizer these are. golden.safetensors
holds the logits of the golden prompt, the gradient of every trained tensor, the norms and losses of five AdamW steps,
and the largest relative error that PyTorch's own float32 makes in a gradient.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import peft  # noqa: E402
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import make_training_goldens as training  # noqa: E402
from goldens import hf  # noqa: E402

STEPS = 5
# What PEFT does by itself: the model and the arguments of LoraConfig.
PEFT_CASES = {
    "mamba-recipe": ("mamba-default", {"r": 4, "target_modules": ["x_proj", "embeddings", "in_proj"]}),
    "mamba-rslora": ("mamba-untied", {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["in_proj"]}),
    "mamba-bias": ("mamba-bias", {"r": 2, "bias": "lora_only", "target_modules": ["in_proj", "x_proj"]}),
    "mamba-head": ("mamba-default", {"r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}),
    "falcon-head": ("falcon-default", {"r": 4, "target_modules": ["x_proj", "lm_head", "embeddings"]}),
    "mamba2-recipe": ("mamba2-default", {"r": 4, "bias": "all", "target_modules": ["embeddings", "in_proj"]}),
    "mamba2-pattern": (
        "mamba2-groups2",
        {"r": 2, "target_modules": ["in_proj"], "rank_pattern": {"layers.1.mixer.in_proj": 5},
         "alpha_pattern": {"layers.0.mixer.in_proj": 6}},
    ),
}  # fmt: skip
# What it refuses: the model, LoRA targets, tensors that are trained whole.
PLAIN_CASES = {
    "mamba-out": ("mamba-default", ["in_proj", "out_proj", "dt_proj"], ["conv1d.weight", "conv1d.bias", "A_log", ".D"]),
    "mamba2-out": ("mamba2-default", ["out_proj"], ["conv1d.weight", "dt_bias", "norm.weight", "norm_f.weight"]),
    "falcon-out": ("falcon-default", ["out_proj", "dt_proj"], []),
}
RANK, ALPHA = 4, 12


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Every trained tensor gets values that matter: B is zero at first, and with it the gradient of A."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if p.requires_grad:
                noise = torch.randn(p.shape, generator=generator).to(p.dtype)
                p.copy_(noise * 0.3 if "lora" in name or "parametrizations" in name else p + noise * 0.1)


def loss_of(model, tokens, mode) -> torch.Tensor:
    return training.loss_of(model, tokens, mode)


def file_name(name: str) -> str:
    """A parameter's name without the wrapping of PEFT, or of parametrize."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".default", "")
    if "parametrizations" in name:
        module, which = name.split(".parametrizations.weight.0.")
        name = f"{module.removesuffix('.parametrizations.weight')}.lora_{which}.weight"
    return name.replace(".parametrizations.weight.original", ".weight")


def measure(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, gradients and losses; changes the model."""
    single = copy.deepcopy(model).float()
    loss_of(single, tokens, contextlib.nullcontext).backward()
    float32 = {n: p.grad for n, p in single.named_parameters() if p.requires_grad}
    model = model.double()
    with torch.no_grad(), hf.Float64():
        logits = model(tokens[None], use_cache=False).logits[0]
    out = {"logits": logits.float()}
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = loss_of(model, tokens, hf.Float64)
    loss.backward()
    out["float32_error"] = torch.tensor([max(training.relative_error(float32[n], p.grad) for n, p in named.items())])
    for name, p in named.items():
        out["gradient." + file_name(name)] = p.grad.float().clone()
    groups = [
        {"params": [p for n, p in named.items() if training.decays(file_name(n))], "weight_decay": training.DECAY},
        {"params": [p for n, p in named.items() if not training.decays(file_name(n))], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **training.ADAMW)
    losses, norms = [loss.item()], []
    for _ in range(STEPS):
        norms.append(torch.nn.utils.clip_grad_norm_(list(named.values()), training.CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        loss = loss_of(model, tokens, hf.Float64)
        loss.backward()
        losses.append(loss.item())
    return out | {"losses": torch.tensor(losses).float(), "norms": torch.tensor(norms).float()}


def make_with_peft(models: Path, case: str, out: Path) -> dict[str, torch.Tensor]:
    base, arguments = PEFT_CASES[case]
    config = peft.LoraConfig(task_type="CAUSAL_LM", **arguments)
    model = peft.get_peft_model(hf.load(models / base), config)
    randomise(model, seed=len(case))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    written = json.loads((out / "adapter_config.json").read_text())
    written["target_modules"].sort()  # PEFT's is a set
    (out / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    return measure(model, tokens_of(models / base))


class LowRank(torch.nn.Module):
    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.A = torch.nn.Parameter(torch.zeros(RANK, weight.shape[1]))
        self.B = torch.nn.Parameter(torch.zeros(weight.shape[0], RANK))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + ALPHA / RANK * (self.B @ self.A)


def make_plainly(models: Path, case: str, out: Path) -> dict[str, torch.Tensor]:
    base, targets, whole = PLAIN_CASES[case]
    model = hf.load(models / base)
    for name, p in model.named_parameters():
        p.requires_grad = any(name.endswith(end) for end in whole)
    for module in [m for n, m in model.named_modules() if n.rsplit(".", 1)[-1] in targets]:
        parametrize.register_parametrization(module, "weight", LowRank(module.weight))
        module.parametrizations.weight.original.requires_grad = False
    randomise(model, seed=len(case))
    adapter = {file_name(n): p.detach().numpy().copy() for n, p in model.named_parameters() if p.requires_grad}
    wrapped = {"base_model.model." + name: array for name, array in adapter.items()}
    safetensors.numpy.save_file(wrapped, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0,
              "target_modules": targets, "bias": "none", "base_model_name_or_path": base,
              "modules_to_save": sorted({w.removeprefix(".").split(".")[0] for w in whole}) or None}  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokens = tokens_of(models / base)
    result = measure(model, tokens)
    logits = merged_logits(models / base, adapter, ALPHA / RANK, tokens)
    assert np.abs(logits - result["logits"].numpy()).max() < 1e-5
    return result | {"logits": torch.from_numpy(logits).float()}


def merged_logits(folder: Path, adapter: dict[str, np.ndarray], scale: float, tokens: torch.Tensor) -> np.ndarray:
    """Of the model that NumPy merged, in float64."""
    model = hf.load(folder).double()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, array in adapter.items():
        module, kind = name.removesuffix(".weight").rsplit(".", 1)
        if kind == "lora_A":
            B = adapter[module + ".lora_B.weight"]
            state[module + ".weight"] = state[module + ".weight"] + scale * B.astype(np.float64) @ array
        elif kind != "lora_B":
            state[name] = array.astype(np.float64)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()})
    with torch.no_grad(), hf.Float64():
        return model(tokens[None], use_cache=False).logits[0].numpy()


def tokens_of(folder: Path) -> torch.Tensor:
    return safetensors.torch.load_file(folder / "golden.safetensors")["tokens"]


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=root / "tests/goldens/adapters")
    parser.add_argument("cases", nargs="*", default=[*PEFT_CASES, *PLAIN_CASES])
    arguments = parser.parse_args()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    for case in arguments.cases:
        out = arguments.out / case
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        torch.manual_seed(0)
        make = make_with_peft if case in PEFT_CASES else make_plainly
        tensors = make(root / "tests/goldens/models", case, out)
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {key: value.split("+")[0] for key, value in versions.items()}
        safetensors.torch.save_file(tensors, out / "golden.safetensors", metadata=metadata)
        print(case, [round(x, 4) for x in tensors["losses"].tolist()], f"{tensors['float32_error'].item():.1e}")


if __name__ == "__main__":
    main()
