"""The harness' own task definitions (prompts, choices, metrics), one of each kind that model cards name, over rows in
local files: each request's score against a forward call over the whole text."""

import json
import pathlib

import numpy as np
import pytest

from conftest import BUNDLED

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")

STORY = "Once upon a time there was a little dog who lived by the sea"
PROBLEMS = [
    {"question": "What did the dog like?", "answer": "B", "options": ["Rain", "The sea", "Cats", "Books"]},
    {"question": "It lived  _  .", "answer": "A", "options": ["by the sea", "in town", "alone", "nowhere"]},
    {"question": "Who came?", "answer": "D", "options": ["A king", "A cat", "Nobody", "A friend of the dog"]},
]
CHOICES = {"text": ["by the sea", "in a house on the hill", "it", "nowhere at all"], "label": list("ABCD")}
MMLU = {"question": "Where did the dog live?", "choices": CHOICES["text"], "answer": 0}
ENDINGS = ["goes home.", "barks [title] at the sea.", "sleeps and dreams of the sea.", "is happy."]
TRUTH = {"choices": ["Near the sea.", "By the sea.", "In town.", "I do not know where it lived."]}

# task: (folder of the harness, its file, rows)
TASKS = {
    "lambada_openai": ("lambada", "lambada_openai", [{"text": STORY}, {"text": "He went home and slept"}]),
    "hellaswag": (
        "hellaswag",
        "hellaswag",
        [{"activity_label": "Dogs", "ctx_a": STORY, "ctx_b": "the dog", "endings": ENDINGS, "label": "2"}],
    ),
    "piqa": ("piqa", "piqa", [{"goal": "Wash a dog", "sol1": "Use water.", "sol2": "Use sand.", "label": 0}]),
    "arc_easy": ("arc", "arc_easy", [{"question": "Where?", "choices": CHOICES, "answerKey": "A"}]),
    "arc_challenge": ("arc", "arc_challenge", [{"question": "Where then?", "choices": CHOICES, "answerKey": "D"}]),
    "winogrande": (
        "winogrande",
        "default",
        [{"sentence": "The dog saw the cat because _ was loud.", "option1": "it", "option2": "the cat", "answer": "2"}],
    ),
    "boolq": ("super_glue/boolq", "default", [{"passage": STORY + ".", "question": "is it a cat", "label": 0}]),
    "openbookqa": ("openbookqa", "openbookqa", [{"question_stem": STORY, "choices": CHOICES, "answerKey": "A"}]),
    "race": ("race", "race", [{"article": STORY, "problems": str(PROBLEMS)}]),
    "truthfulqa_mc2": (
        "truthfulqa",
        "truthfulqa_mc2",
        [{"question": "Where?", "mc1_targets": TRUTH, "mc2_targets": {**TRUTH, "labels": [1, 1, 0, 0]}}],
    ),
    "mmlu": ("mmlu/default", "_default_template_yaml", [MMLU, {**MMLU, "answer": 3}]),
    "wikitext": ("wikitext", "wikitext", [{"page": STORY + " .\n" + STORY + " ."}]),
    "generate": (None, None, [{"question": STORY, "answer": " and the sea was blue"}]),
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(the model, what the harness says of all tasks)"""
    from lm_eval.tasks import TaskManager

    from ssm_cpp.lm_eval_model import SsmLM

    folder = tmp_path_factory.mktemp("tasks")
    home = pathlib.Path(lm_eval.__file__).parent / "tasks"
    for name, (where, file, rows) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(r) + "\n" for r in rows))
        task = {"task": f"local_{name}", "dataset_path": "json", "dataset_name": None, "tag": None}
        task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        task.update({"test_split": "test", "validation_split": None, "training_split": None})
        if where is None:
            task.update(GENERATE)
        else:
            path = home / where / file
            task["include"] = str(path if path.is_file() else path.with_suffix(".yaml"))
        if name == "mmlu":
            task.update({"fewshot_split": "test", "num_fewshot": 1})
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    model = SsmLM(pretrained=str(BUNDLED), dtype="float32", batch_tokens=256)
    manager = TaskManager(include_path=str(folder))
    names = [f"local_{name}" for name in TASKS]
    return model, lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, log_samples=True)


def whole(model, context, ending):
    """By one forward call over the text."""
    alone = ([model.prefix_token_id], model.tok_encode(ending))
    before, after = model._encode_pair(context, ending) if context else alone
    logits = model.model(np.array([before + after])).logits[0, len(before) - 1 : -1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(after)), after].sum(), bool((logits.argmax(-1) == after).all())


@pytest.mark.parametrize("name", TASKS)
def test_task(results, name):
    model, said = results
    samples = said["samples"][f"local_{name}"]
    assert len(samples) == len(TASKS[name][2])
    for metric, value in said["results"][f"local_{name}"].items():
        if isinstance(value, float) and "stderr" not in metric:
            assert np.isfinite(value), metric
    asked = [pair for s in samples for pair in zip(s["arguments"], s["resps"], strict=True)]
    assert asked
    for arguments, (response,) in asked:
        if name == "generate":
            ids = model.tok_encode(arguments[0])
            text = model.tok_decode(model.model.generate([ids], max_new_tokens=12)[0, len(ids) :])
            assert response == text.split(".")[0].split("\n")[0]
        elif name == "wikitext":
            assert response == pytest.approx(whole(model, "", arguments[0])[0], abs=2e-3)
        else:
            wanted, greedy = whole(model, *arguments)
            assert response[0] == pytest.approx(wanted, abs=1e-3) and response[1] == greedy
    if name == "mmlu":  # answered examples stand before the question, and the choices are letters
        assert all(a[0].count("Answer:") == 2 and a[1] in (" A", " B", " C", " D") for a, _ in asked)
