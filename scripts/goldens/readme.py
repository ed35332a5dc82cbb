"""Writes tests/goldens/README.md."""

from __future__ import annotations

import json

HEAD = """# Goldens
Tiny random checkpoints in every layout and what they must compute. Written by `scripts/make_goldens.py`, this page too;
do not edit by hand.

    python scripts/make_goldens.py                      # all models and this page; byte for byte the same again
    python scripts/make_goldens.py mamba-eps            # one
    python scripts/make_tale_golden.py TEXT             # tale-10m.json: the bundled model, and its score of a text

Made with {versions}.

## A case: `models/<name>/`
The model folder as a user has it, and `golden.safetensors`:

| tensor | what |
|---|---|
| `tokens` i64 [T] | the prompt |
| `logits` f32 [T,V] | of the whole prompt; V is the padded vocabulary |
| `greedy` i64 [24] | the most likely next tokens, one after another |
| `state.{{s}}.layer.{{i}}.conv` [C,K], newest column last | after the prompt and s greedy tokens |
| `state.{{s}}.layer.{{i}}.ssm` [E,N] or [H,P,N] | the same |
| `prefix.{{n}}.layer.{{i}}.conv`, `.ssm` | in some cases: after the first n prompt tokens |

All of it is computed in float64 from the weights as stored and rounded to float32 at the end. The metadata tells the
oracle and why, the seed, how far Transformers in float32 is away (`max_difference_float32`), and the mildest mistake:
of all runs with one tensor ignored, B and C or x and z swapped, an option missed and the like, the one that moves the
logits least, and by how much. No two best logits are nearer than 1e-3 at any position, the continuation holds no end
token and no padded id, so `greedy` is the same with or without those rules.

## Oracles
"transformers": the plain PyTorch path, its float32 casts turned into float64 ones, in one forward over the prompt and
then step by step on its cache; the reference agrees within 1e-7 in every logit and state, and so does one forward over
prompt and continuation together. "reference": `scripts/goldens/reference.py`, a sequential float64 recurrence, where
Transformers is wrong or has no such option (the metadata says which). Seen in Transformers {transformers}:

 - Mamba-2's single step does not clamp dt to `time_step_limit`; prefill does. mamba_ssm's step() does not either.
 - Mamba-1 and FalconMamba start the scan from zero when several tokens come on top of a cache. The
   goldens never do that.
 - The gated norm is per group at inference too. Versions without a `group_size` in MambaRMSNormGated (4.57) are wrong
   for n_groups > 1 and must not be used to make these files.

For `original-mamba2-hdim` and `-norm-first` the nearest model that Transformers has is compared instead; for `-no-norm`
and `-mlp` (d_ssm) the PyTorch lines of mamba_ssm's Mamba2.step, run once in float64, gave the same to 3e-7.

## Models with attention
`neox-*` and `hybrid-*` are made by `scripts/make_attention_goldens.py`, in the same way and with the same files, but
for the states: of a layer that attends `state.{{s}}.layer.{{i}}.keys` and `.values` [T,Hk,D], keys with their positions
in them, and where a convolution stands before it `.conv`. GPT-NeoX's oracle is Transformers in float64 (its frequencies
of the positions too, which are float32 there), in one forward and step by step on its cache; the formulas of
`scripts/goldens/attention.py` agree within 1e-7 in logits, keys and values. For the hybrids, which Transformers does
not have, these formulas are the oracle.

## Cases
"mixed" is bf16 with A_log, D, dt_bias and the norms in f32.

| name | what | stored as | oracle | float32 distance | kB |
|---|---|---|---|---|---|
"""


def text(made: list[dict], versions: str) -> str:
    found = json.loads(versions)
    head = HEAD.format(versions=", ".join(f"{k} {v}" for k, v in found.items()), transformers=found["transformers"])
    cells = [
        (m["name"], m["case"], m["stored"], m["oracle"], m.get("max_difference_float32", "-"), f"{m['size'] / 1e3:.0f}")
        for m in made
    ]
    rows = [f"| {' | '.join(row)} |" for row in cells]
    return head + "\n".join(rows) + "\n"
