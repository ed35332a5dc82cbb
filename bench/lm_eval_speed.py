#!/usr/bin/env python3
"""lm-evaluation-harness on the CPU: the model `ssm` and the harness' own Transformers model, in turn in one process,
on the same multiple-choice questions in a local file.

    python3 bench/lm_eval_speed.py [MODEL] [--questions 32] [--rounds 3] [--threads 2] [--batch-size 8]

MODEL is a folder in Transformers' layout (absent: the bundled one). Needs ssm_cpp, lm-eval, torch and transformers.
Prints each round's times and their ratio, and the largest difference of a log-probability.
"""

import argparse
import json
import logging
import os
import pathlib
import random
import statistics
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORDS = ["the", "a", "of", "sea", "king", "house", "dog", "night", "little", "old", "wind", "ship", "ran", "saw"]
WORDS += ["said", "went", "home", "and", "then", "under", "over", "long"]


def questions(count: int, seed: int) -> list[dict]:
    draw = random.Random(seed)

    def sentence(n):
        return " ".join(draw.choices(WORDS, k=n))

    return [
        {"query": sentence(draw.randint(40, 120)) + ".", "choices": [sentence(draw.randint(3, 12)) for _ in range(4)]}
        for _ in range(count)
    ]


def task(folder: str, rows: list[dict]) -> str:
    data = pathlib.Path(folder) / "rows.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (pathlib.Path(folder) / "task.yaml").write_text(
        json.dumps(
            {
                "task": "timed",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{query}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": 0,
                "metric_list": [{"metric": "acc"}],
            }
        )
    )
    return "timed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default=str(ROOT / "models/tale-10m"))
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    a = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    logging.disable(logging.WARNING)
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import ssm_cpp
    from ssm_cpp.lm_eval_model import SsmLM

    torch.set_num_threads(a.threads)
    ssm_cpp.set_num_threads(a.threads)
    ours = SsmLM(pretrained=a.model, dtype="float32")
    theirs = HFLM(pretrained=a.model, dtype="float32", device="cpu", batch_size=a.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        name = task(folder, questions(a.questions, seed=1))
        manager = TaskManager(include_path=folder)

        def run(model):
            begin = time.perf_counter()
            said = lm_eval.simple_evaluate(model, tasks=[name], task_manager=manager, log_samples=True)
            seconds = time.perf_counter() - begin
            return seconds, [r[0][0] for s in said["samples"][name] for r in s["resps"]]

        run(ours)  # the harness' own first use
        ratios = []
        for i in range(a.rounds):
            (mine, scores), (other, wanted) = run(ours), run(theirs)
            ratios.append(other / mine)
            worst = max(abs(x - y) for x, y in zip(scores, wanted, strict=True))
            print(f"round {i + 1}: ssm {mine:7.2f} s   transformers {other:7.2f} s   {ratios[-1]:6.1f} times")
            print(f"         largest difference of {len(scores)} log-probabilities: {worst:.2e}")
    print(f"median: {statistics.median(ratios):.1f} times")


if __name__ == "__main__":
    main()
