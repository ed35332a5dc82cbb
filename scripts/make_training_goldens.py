#!/usr/bin/env python3
"""Makes tests/goldens/training: what one backward and ten AdamW steps of PyTorch give on tiny models.

    python scripts/make_training_goldens.py [--out tests/goldens/training]

The models are those of tests/goldens/models. Transformers runs them in float64 on two sequences, the golden prompt cut
in two; the loss is the mean over all next tokens. Then ten steps of torch.optim.AdamW with the gradient clipped at
norm 1: matrices, embeddings and convolutions decay, A_log, D, dt_bias, norms and biases do not. Each file holds the
gradient of every parameter, the gradient's norm and eleven losses; and the largest relative error that the gradient
has when PyTorch computes it in float32, which is what float32 is good for on this model.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

from goldens import hf  # noqa: E402

CASES = [
    "mamba-default",
    "mamba-bias",
    "mamba-conv3",
    "mamba-state5",
    "mamba-untied",
    "falcon-default",
    "mamba2-default",
    "mamba2-bias",
    "mamba2-groups2",
    "mamba2-head12",
    "mamba2-limit",
    "mamba2-state9",
    "neox-default",
    "neox-serial",
]
CUT, STEPS = 20, 10
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
DECAY, CLIP = 0.1, 1.0


def loss_of(model, tokens: torch.Tensor, mode=hf.Float64) -> torch.Tensor:
    total, count = torch.zeros(()), 0
    for ids in (tokens[:CUT], tokens[CUT:]):
        with mode():
            logits = model(ids[None], use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        count += len(ids) - 1
    return total / count


def decays(name: str) -> bool:
    single = ("A_log", ".D", "dt_bias", ".bias", "norm.weight", "norm_f.weight")
    return not name.endswith(single)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """As ssm/ops/test_util.h has it."""
    return ((a.double() - b).abs() / (b.abs() + b.square().mean().sqrt() + 1e-30)).max().item()


def in_files(case: str, name: str) -> str:
    """Transformers 5 calls GPT-NeoX's head otherwise in memory than in files."""
    return "embed_out.weight" if case.startswith("neox") and name == "lm_head.weight" else name


def make(models: Path, case: str) -> dict[str, torch.Tensor]:
    model = hf.load(models / case).double()
    tokens = safetensors.torch.load_file(models / case / "golden.safetensors")["tokens"]
    named = dict(model.named_parameters())
    loss = loss_of(model, tokens)
    loss.backward()
    single = hf.load(models / case)
    loss_of(single, tokens, contextlib.nullcontext).backward()
    errors = [relative_error(p.grad, named[name].grad) for name, p in single.named_parameters()]
    out = {f"gradient.{in_files(case, name)}": p.grad.float().clone() for name, p in named.items()}
    groups = [
        {"params": [p for n, p in named.items() if decays(n)], "weight_decay": DECAY},
        {"params": [p for n, p in named.items() if not decays(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, **ADAMW)
    losses, norms = [loss.item()], []
    for _ in range(STEPS):
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        loss = loss_of(model, tokens)
        loss.backward()
        losses.append(loss.item())
    return out | {
        "losses": torch.tensor(losses).float(),
        "norms": torch.tensor(norms).float(),
        "float32_error": torch.tensor([max(errors)]).float(),
    }


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=root / "tests/goldens/training")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for case in CASES:
        tensors = make(root / "tests/goldens/models", case)
        versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
        safetensors.torch.save_file(tensors, out / f"{case}.safetensors", metadata=versions)
        print(case, [round(x, 4) for x in tensors["losses"].tolist()], [round(x, 2) for x in tensors["norms"].tolist()])


if __name__ == "__main__":
    main()
