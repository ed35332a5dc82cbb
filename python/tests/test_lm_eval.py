"""The model "ssm" of lm-evaluation-harness: every kind of request on local task files, against plain scoring and,
where it is installed, Transformers."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

import ssm_cpp
from conftest import BUNDLED

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval.api.instance import Instance  # noqa: E402

TEXTS = [
    "The old man went down to the harbour and looked for his boat.",
    "She said nothing, and the door closed behind her.",
    "When the winter came, all the birds had gone.",
]
CHOICES = [" the sea.", " a house on the hill", " nothing at all, and then", " it"]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def lm():
    from ssm_cpp.lm_eval_model import SsmLM

    return SsmLM(pretrained=str(BUNDLED), dtype="float32", batch_tokens=64)


def pairs():
    out = [(text, choice) for text in TEXTS for choice in CHOICES]
    out += [("", TEXTS[0]), (TEXTS[0] + " ", "It was"), (TEXTS[1], " and")]
    return out


def plain(lm, context, continuation):
    """By one forward call over the whole text."""
    alone = ([lm.prefix_token_id], lm.tok_encode(continuation))
    ctx, cont = lm._encode_pair(context, continuation) if context else alone
    logits = lm.model(np.array([ctx + cont])).logits[0, len(ctx) - 1 : -1].astype(np.float64)
    logp = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logp -= logits.max(-1, keepdims=True)
    return logp[np.arange(len(cont)), cont].sum(), bool((logits.argmax(-1) == cont).all())


def test_loglikelihood(lm):
    results = lm.loglikelihood(instances("loglikelihood", pairs()), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs(), results, strict=True):
        wanted, best = plain(lm, context, continuation)
        assert value == pytest.approx(wanted, abs=1e-3) and greedy == best
    ids = lm.tok_encode(TEXTS[0])
    ending = lm.tok_decode([int(lm.model(np.array([ids])).logits[0, -1].argmax())])
    assert lm.loglikelihood(instances("loglikelihood", [(TEXTS[0], ending)]), disable_tqdm=True)[0][1]


def test_rolling(lm):
    text = " ".join(TEXTS * 4)
    whole = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)[0]
    assert whole == pytest.approx(plain(lm, "", text)[0], abs=2e-3)
    lm.max_length, kept = 16, lm.max_length
    try:
        cut = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]), disable_tqdm=True)[0]
    finally:
        lm.max_length = kept
    assert cut < whole


def test_generate_until(lm):
    options = {"until": ["."], "max_gen_toks": 24, "do_sample": False}
    asked = [(TEXTS[0], options), (TEXTS[2], {"until": [], "max_gen_toks": 5}), ("Once", options)]
    out = lm.generate_until(instances("generate_until", asked), disable_tqdm=True)
    for (context, o), text in zip(asked, out, strict=True):
        ids = lm.model.generate([lm.tok_encode(context)], max_new_tokens=o["max_gen_toks"])
        wanted = lm.tok_decode(ids[0, len(lm.tok_encode(context)) :]).split("." if o["until"] else "\0")[0]
        assert text == wanted


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_against_transformers(family, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from lm_eval.models.huggingface import HFLM

    from ssm_cpp.lm_eval_model import SsmLM

    sizes = {"vocab_size": 6144, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    config = (
        ssm_cpp.MambaConfig(**sizes)
        if family == "mamba"
        else ssm_cpp.Mamba2Config(**sizes, num_heads=4, head_dim=16, n_groups=1, chunk_size=16)
    )
    ssm_cpp.AutoModelForCausalLM.from_config(config, seed=1).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((BUNDLED / name).read_bytes())
    ours = SsmLM(pretrained=str(tmp_path), batch_tokens=100)
    torch.set_num_threads(2)
    theirs = HFLM(pretrained=str(tmp_path), dtype="float32", device="cpu", batch_size=4)
    for kind, asked in (("loglikelihood", pairs()), ("loglikelihood_rolling", [(t,) for t in TEXTS])):
        a = getattr(ours, kind)(instances(kind, asked), disable_tqdm=True)
        b = getattr(theirs, kind)(instances(kind, asked), disable_tqdm=True)
        for x, y in zip(a, b, strict=True):
            if kind == "loglikelihood":
                assert x[1] == y[1]
                x, y = x[0], y[0]
            assert x == pytest.approx(y, abs=1e-3)


TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_word": {  # lambada's kind
        "output_type": "loglikelihood",
        "doc_to_text": "{{question.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' '+question.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "local_text": {  # wikitext's kind
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "local_generate": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{question}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def test_the_command(tmp_path):
    if "ssm_cpp_lm_eval_hook" not in sys.modules:
        pytest.skip("not installed: the package's .pth file is what lm_eval finds the model by")
    rows = [{"question": t, "choices": [c.strip() for c in CHOICES], "answer": i} for i, t in enumerate(TEXTS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
        whole = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", **task}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(whole))
    command = [sys.executable, "-m", "lm_eval", "--model", "ssm", "--model_args", f"pretrained={BUNDLED}"]
    command += ["--tasks", ",".join(TASKS), "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert set(results) == set(TASKS)
    assert np.isfinite(results["local_text"]["word_perplexity,none"])
    assert 0 <= results["local_choice"]["acc,none"] <= 1
