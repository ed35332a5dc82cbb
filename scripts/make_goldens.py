#!/usr/bin/env python3
"""Makes the tiny models under tests/goldens/models and what they must compute.

    python scripts/make_goldens.py [CASE...] [--out tests/goldens]

For every case a seed is searched whose model cannot be got right by luck: no near ties, no padded or end token in the
greedy continuation, and every single mistake (a tensor ignored, B and C swapped, ...) moves the logits. Transformers
in float64 and the reference recurrence must then agree to 1e-7, and Transformers in float32 to 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np  # noqa: E402
import safetensors  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

from goldens import configs, hf, layouts, readme  # noqa: E402
from goldens.cases import CASES, Case  # noqa: E402
from goldens.reference import Config, Model  # noqa: E402
from goldens.weights import random_weights, weakest_mistake  # noqa: E402

GREEDY, MARGIN, MISTAKE = 24, 1e-3, 1e-2
SAME = 1e-7  # in float64; torch takes softplus(x) = x above 20, which alone costs 2e-9


def reference_config(case: Case) -> Config:
    if case.layout == "hf":
        return configs.from_hf(case.config)
    if case.layout == "original":
        return configs.from_original(case.config)
    return configs.from_mistral(case.config, **case.dims)


class Sample:
    """One seed's model, prompt and the reference's answers."""

    def __init__(self, case: Case, config: Config, seed: int):
        rng = np.random.default_rng([seed, *case.name.encode()])
        self.case, self.config, self.seed = case, config, seed
        embed = case.embed_scale or (1.5 / np.sqrt(config.hidden) if config.tied else 0.3)
        self.tensors = layouts.to_tensors(random_weights(config, rng, embed, case.x_scale), case.dtype)
        self.weights = {name: tensor.double().numpy() for name, tensor in self.tensors.items()}
        self.real_vocab = case.config["vocab_size"]
        self.prompt = rng.integers(0, self.real_vocab, case.prompt)
        self.model = Model(config, self.weights)
        self.logits, state = self.model.run(self.prompt)
        self.greedy, self.states, rows = [], [state], [self.logits[-1:]]
        for _ in range(GREEDY):
            self.greedy.append(int(np.argmax(rows[-1])))
            row, state = self.model.run(self.greedy[-1:], state)
            rows.append(row)
            self.states.append(state)
        self.greedy_logits = np.concatenate(rows[1:])  # row i: after greedy[i]
        self.prefixes = {n: self.model.run(self.prompt[:n])[1] for n in case.prefixes}

    def is_good(self) -> bool:
        rows = np.concatenate([self.logits, self.greedy_logits])
        best = np.sort(rows, axis=1)[:, -2:]
        ends = {0, 2, self.case.config.get("eos_token_id")}
        return bool(
            (best[:, 1] - best[:, 0]).min() > MARGIN
            and rows.argmax(axis=1).max() < self.real_vocab
            and not ends & set(self.greedy)
            and len(set(self.greedy)) >= 6
            and np.std(self.logits) > 1.0
        )


def find_sample(case: Case, config: Config) -> tuple[Sample, float, str]:
    for seed in range(2000):
        sample = Sample(case, config, seed)
        if sample.is_good():
            change, name = weakest_mistake(config, sample.weights, sample.prompt[:37], sample.logits[:37])
            if change > MISTAKE:
                return sample, change, name
    raise RuntimeError(f"{case.name}: no seed gives a good model")


def write_model(folder: Path, case: Case, config: Config, tensors: dict) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if case.layout == "mistral":
        layouts.write_json(folder / "params.json", case.config)
        layouts.write_mistral(folder, tensors, prefix_all=case.style != "two")
        return
    layouts.write_json(folder / "config.json", case.config)
    if case.layout == "original":
        layouts.write_original(folder, tensors, config.tied, case.style)
    elif case.file == "bin":
        layouts.write_bin(folder, tensors, case.shards)
    else:
        layouts.write_safetensors(folder, tensors, case.shards)


def difference(left: np.ndarray, right: np.ndarray) -> float:
    assert left.shape == right.shape, (left.shape, right.shape)
    return float(np.abs(left - right).max())


def state_difference(left: list, right: list) -> float:
    return max(difference(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True))


def check_against_transformers(sample: Sample, folder: Path) -> tuple[hf.Result | None, dict[str, str]]:
    """Asserts the agreement; returns the float64 result where Transformers is right all the way."""
    case, config = sample.case, sample.config
    reference = sample
    if config.d_has_hdim or config.norm_before_gate:  # compare the nearest model that Transformers can run
        weights = {n: per_head(config, w) if n.endswith(".D") else w for n, w in sample.weights.items()}
        config = replace(config, d_has_hdim=False, norm_before_gate=False)
        reference = Neighbour(sample, config, weights)
    try:
        arguments = configs.to_hf(config)
    except ValueError:
        return None, {"transformers": "not compared"}
    tensors = {name: torch.from_numpy(value) for name, value in reference.weights.items()}
    build = hf.build if case.layout != "hf" else lambda *_: hf.load(folder)
    single = hf.run(build(config.family, arguments, tensors), sample.prompt, double=False)
    model = build(config.family, arguments, tensors)
    float32 = difference(single.logits, reference.logits)
    assert float32 < 1e-4, (case.name, "float32", float32)
    result = hf.run(model, sample.prompt, sample.greedy)
    assert difference(result.logits[: case.prompt], reference.logits) < SAME, (case.name, "prefill")
    assert state_difference(result.states[0], reference.states[0]) < SAME, (case.name, "prefill state")
    facts = {"max_difference_float32": f"{float32:.1e}"}
    whole = hf.run(model, [*sample.prompt, *sample.greedy])
    assert difference(whole.logits[case.prompt :], reference.greedy_logits) < SAME, (case.name, "longer prefill")
    for n, state in sample.prefixes.items():
        assert state_difference(hf.run(model, sample.prompt[:n]).states[0], state) < SAME, (case.name, n)
    step = difference(result.logits[case.prompt :], reference.greedy_logits)
    if np.isfinite(config.dt_limit[1]):
        assert step > 1e-3, "Transformers' single step now clamps dt: drop the exception"
        return None, facts | {"transformers_step_error": f"{step:.1e}"}
    assert step < SAME, (case.name, "steps", step)
    for mine, theirs in zip(reference.states, result.states, strict=True):
        assert state_difference(mine, theirs) < SAME, (case.name, "step state")
    return (result if reference is sample else None), facts | {"max_difference_float64": "below 1e-7"}


class Neighbour(Sample):
    """The sample's tokens through a slightly different model."""

    def __init__(self, sample: Sample, config: Config, weights: dict):
        self.weights = weights
        model = Model(config, weights)
        self.logits, state = model.run(sample.prompt)
        self.states, rows = [state], []
        for token in sample.greedy:
            row, state = model.run([token], state)
            rows.append(row)
            self.states.append(state)
        self.greedy_logits = np.concatenate(rows)


def per_head(config: Config, d: np.ndarray) -> np.ndarray:
    return d.reshape(config.heads, -1).mean(axis=1).astype(np.float32).astype(np.float64)


def versions() -> str:
    packages = {"transformers": transformers, "torch": torch, "numpy": np, "safetensors": safetensors}
    found = {name: module.__version__.split("+")[0] for name, module in packages.items()}
    return json.dumps(found | {"python": platform.python_version()})


def make(case: Case, out: Path) -> dict:
    config = reference_config(case)
    sample, change, mistake = find_sample(case, config)
    folder = out / case.name
    write_model(folder, case, config, sample.tensors)
    result, facts = check_against_transformers(sample, folder)
    trusted = result is not None and not case.reference_because
    assert trusted != bool(case.reference_because), case.name
    logits, states = (result.logits[: case.prompt], result.states) if trusted else (sample.logits, sample.states)
    arrays = {"tokens": sample.prompt.astype(np.int64), "logits": logits, "greedy": np.array(sample.greedy)}
    named = {f"state.{step}": states[step] for step in case.state_steps}
    named |= {f"prefix.{n}": state for n, state in sample.prefixes.items()}
    for key, state in named.items():
        for i, (conv, ssm) in enumerate(state):
            arrays |= {f"{key}.layer.{i}.conv": conv, f"{key}.layer.{i}.ssm": ssm}
    arrays = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in arrays.items()}
    why = case.reference_because.format(version=transformers.__version__)
    if config.family == "mamba2" and config.groups > 1 and trusted:
        why = "the gated norm is per group, in Transformers too since its MambaRMSNormGated has a group_size"
    metadata = facts | {
        "case": case.note,
        "layout": case.layout,
        "family": config.family,
        "stored": case.dtype,
        "oracle": "transformers" if trusted else "reference",
        "why": why or "Transformers' torch path and the reference agree",
        "computed_in": "float64, from the weights as stored; rounded to float32 at the end",
        "seed": str(sample.seed),
        "weakest_mistake": f"{mistake}: {change:.3f}",
        "versions": versions(),
    }
    layouts.write_golden(folder / "golden.safetensors", arrays, metadata)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{case.name:28} {metadata['oracle']:12} {size / 1e3:6.1f} kB  seed {sample.seed:4}  {mistake}: {change:.3f}")
    return metadata | {"name": case.name, "size": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="names; none means all, and then the README is rewritten too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "tests" / "goldens")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    chosen = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    made = [make(case, arguments.out / "models") for case in chosen]
    print(f"{len(made)} models, {sum(m['size'] for m in made) / 1e6:.2f} MB")
    if not arguments.cases:
        (arguments.out / "README.md").write_text(readme.text(made, versions()))


if __name__ == "__main__":
    main()
