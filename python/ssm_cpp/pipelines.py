"""pipeline("text-generation"): text in, text out."""

import os

from .modeling import AutoModelForCausalLM
from .tokenizer import AutoTokenizer


class TextGenerationPipeline:
    task = "text-generation"

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, text, return_full_text: bool = True, **options):
        """A text, or a list of them, read together. [{"generated_text": ...}] for each."""
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.tokenizer(t)["input_ids"] for t in texts]
        width = max(map(len, rows))
        ids = [[0] * (width - len(r)) + r for r in rows]
        mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
        count = options.get("num_return_sequences") or 1
        out = self.model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
        new = [{"generated_text": (texts[i // count] if return_full_text else "") + t} for i, t in enumerate(out.texts)]
        groups = [new[i : i + count] for i in range(0, len(new), count)]
        return groups[0] if isinstance(text, str) else groups


def pipeline(task="text-generation", model=None, tokenizer=None, **options) -> TextGenerationPipeline:
    if task != "text-generation":
        raise ValueError(f"task {task!r}: only text-generation is supported")
    where = {k: v for k, v in options.items() if k in ("revision", "token", "local_files_only", "subfolder")}
    if model is None or isinstance(model, str | os.PathLike):
        model = AutoModelForCausalLM.from_pretrained(model, **options)
    elif options:
        raise TypeError(f"pipeline: {', '.join(options)} is for a model that is named, this one is there already")
    if tokenizer is None:
        tokenizer = model.tokenizer()
    elif isinstance(tokenizer, str | os.PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer, **where)
    return TextGenerationPipeline(model, tokenizer)
