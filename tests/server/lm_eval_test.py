"""lm-evaluation-harness itself, by its model local-completions, on a local task: log-likelihoods are `ssm score`'s."""

import json
import logging
import pathlib
import subprocess
import tempfile
import unittest

from process import COMMAND, ROOT, Server

QUESTIONS = [
    {"query": "The little boat went out to", "choices": [" sea", " the moon", " breakfast"]},
    {"query": "The king sat upon his", "choices": [" throne", " hat and his horse", " of"]},
    {"query": "Once upon a", "choices": [" time", " time there was"]},
]


def score(ids):
    command = [COMMAND, "score", "--dtype", "f32", "--tokens", ",".join(map(str, ids)), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def ids_of(text):
    done = subprocess.run([COMMAND, "tokenize", "--json"], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["ids"]


class Harness(unittest.TestCase):
    def evaluate(self, folder):
        import lm_eval
        from lm_eval.tasks import TaskManager

        rows = pathlib.Path(folder, "rows.jsonl")
        rows.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
        task = {
            "task": "local_questions",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": 0,
            "target_delimiter": "",
        }
        pathlib.Path(folder, "task.yaml").write_text(json.dumps(task))
        with Server("--dtype", "f32") as server:
            arguments = f"base_url={server.url}/v1/completions,model=any,tokenizer={ROOT / 'models/tale-10m'}"
            return lm_eval.simple_evaluate(
                "local-completions",
                model_args=arguments + ",tokenized_requests=True,num_concurrent=2",
                tasks=["local_questions"],
                task_manager=TaskManager(include_path=folder, include_defaults=False),
                log_samples=True,
            )

    def test_log_likelihoods_are_those_of_score(self):
        with tempfile.TemporaryDirectory() as folder:
            result = self.evaluate(folder)
        samples = sorted(result["samples"]["local_questions"], key=lambda s: s["doc_id"])
        self.assertEqual(len(samples), len(QUESTIONS))
        for sample, question in zip(samples, QUESTIONS, strict=True):
            for answer, choice in zip(sample["filtered_resps"], question["choices"], strict=True):
                value, greedy = float(answer[0]), str(answer[1]) == "True"
                context, whole = ids_of(question["query"]), ids_of(question["query"] + choice)
                self.assertEqual(whole[: len(context)], context)
                expected = score(whole)
                self.assertAlmostEqual(value, sum(expected["logprobs"][len(context) :]), places=4)
                best = expected["argmax"][len(context) - 1 : len(whole) - 1]
                self.assertEqual(greedy, best == whole[len(context) :])


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    unittest.main()
