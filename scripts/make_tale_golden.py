#!/usr/bin/env python3
"""Facts of the bundled model in float32 -> tests/goldens/tale-10m.json.

    python scripts/make_tale_golden.py TEXT [--out tests/goldens/tale-10m.json]

TEXT is any UTF-8 text, scored as one sequence. The text itself is not kept, only its hash and its scores are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from goldens import configs, hf  # noqa: E402
from goldens.ssd import ChunkedMamba2  # noqa: E402

ROOT = Path(__file__).parents[1]
PROMPT = "Once upon a time"
SENTENCE = "The old king looked out of the window, and saw that the snow had begun to fall upon the forest."


def token_nll(logits, tokens):
    return F.cross_entropy(logits[:-1], tokens[1:], reduction="none").double()


@torch.no_grad()
def greedy(model, ids, count):
    out = model(torch.tensor([ids]), use_cache=True)
    new, gaps = [], []
    while len(new) < count:
        best = out.logits[0, -1].topk(2)
        new.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        out = model(torch.tensor([new[-1:]]), cache_params=out.cache_params, use_cache=True)
    return new, min(gaps)


@torch.no_grad()
def hf_carried_nll(model, tokens, segment):
    """Transformers with its cache carried from segment to segment."""
    cache, last, out = None, None, []
    for part in tokens.split(segment):
        result = model(part[None], cache_params=cache, use_cache=True)
        cache, rows = result.cache_params, result.logits[0]
        rows = rows if last is None else torch.cat([last, rows])
        out.append(F.cross_entropy(rows[:-1], part if last is not None else part[1:], reduction="none"))
        last = rows[-1:]
    return torch.cat(out).double()


@torch.no_grad()
def windowed(model, tokens, length, batch=8):
    """Mean nll of independent windows of `length` tokens, each starting from nothing, and the number of targets."""
    whole = tokens[: len(tokens) // length * length].view(-1, length)
    total = 0.0
    for rows in whole.split(batch):
        logits = model(rows, use_cache=False).logits[:, :-1]
        total += float(F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").double().sum())
    return total / (whole.shape[0] * (length - 1)), whole.shape[0] * (length - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "goldens" / "tale-10m.json")
    parser.add_argument("--windows", type=int, nargs="*", default=[1024], help="lengths of independent windows")
    arguments = parser.parse_args()
    folder = ROOT / "models" / "tale-10m"
    model, tokenizer = hf.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    def say(*parts):
        print(f"{time.perf_counter():7.0f} s", *parts, file=sys.stderr, flush=True)

    new, gap = greedy(model, ids(PROMPT), 32)
    sentence = torch.tensor(ids(SENTENCE))
    with torch.no_grad():
        logits = model(sentence[None]).logits[0]
    first = logits[-1].log_softmax(-1)
    result = {
        "model": "tale-10m",
        "how": f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, CPU, float32 "
        "activations over the bf16 file",
        "greedy": {
            "prompt": PROMPT,
            "prompt_ids": ids(PROMPT),
            "ids": new,
            "text": tokenizer.decode(new, skip_special_tokens=False),
            "smallest_top2_gap": gap,
        },
        "score": {
            "text": SENTENCE,
            "ids": sentence.tolist(),
            "logprobs": [None, *(-token_nll(logits, sentence)).tolist()],
            "argmax": logits.argmax(-1).tolist(),
            "next_token_logprobs_of_ids_0_to_4": first[:5].tolist(),
        },
    }
    say("greedy and sentence done:", result["greedy"]["text"])

    data = arguments.text.read_bytes()
    tokens = torch.tensor(ids(data.decode()))
    config = configs.from_hf(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    chunked = ChunkedMamba2(config, weights)
    with torch.no_grad():
        whole4k = token_nll(model(tokens[None, :4096]).logits[0], tokens[:4096])
    mine4k = chunked.nll(tokens[:4096])
    exact4k = ChunkedMamba2(config, weights, torch.float64).nll(tokens[:4096])
    worst = float((whole4k - mine4k).abs().max())
    say("first 4096 tokens, largest difference of a token:", worst, float((mine4k - exact4k).abs().max()))
    assert worst < 1e-3 and abs(float((whole4k - mine4k).mean())) < 1e-6
    nll = chunked.nll(tokens)
    say("chunked:", nll.mean())
    for block in model.backbone.layers:  # the chunk changes speed and memory only
        block.mixer.chunk_size = 64
    carried = hf_carried_nll(model, tokens, 8192)
    say("transformers, carried:", carried.mean())
    total = float(nll.sum())
    result["text"] = {
        "name": arguments.text.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "tokens": len(tokens),
        "nll": total,
        "nats_per_token": total / (len(tokens) - 1),
        "perplexity": math.exp(total / (len(tokens) - 1)),
        "bits_per_byte": total / math.log(2) / len(data),
        "how": "one sequence, no token added, the first token not scored (tokens-1 terms; bits over all bytes): "
        "chunked SSD in float32 (scripts/goldens/ssd.py) with the state carried",
    }
    checks = {
        "first_4096_tokens": {
            "transformers_one_forward": float(whole4k.sum()),
            "chunked_float32": float(mine4k.sum()),
            "chunked_float64": float(exact4k.sum()),
            "largest_token_difference": worst,
        },
        "transformers_cache_carried_every_8192": {
            "nll": float(carried.sum()),
            "largest_token_difference": float((carried - nll).abs().max()),
        },
    }
    with torch.no_grad():
        whole32k = token_nll(model(tokens[None, :32768]).logits[0], tokens[:32768])
    checks["first_32768_tokens"] = {
        "transformers_one_forward": float(whole32k.sum()),
        "chunked_float32": float(nll[:32767].sum()),
        "largest_token_difference": float((whole32k - nll[:32767]).abs().max()),
    }
    say("first 32768 tokens done")
    result["checks"] = checks
    result["independent_windows"] = {}
    for length in arguments.windows:
        mean, count = windowed(model, tokens, length, max(1, 4096 // length))
        result["independent_windows"][str(length)] = {"nats_per_token": mean, "targets": count}
        say(f"windows of {length}: {mean:.5f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
