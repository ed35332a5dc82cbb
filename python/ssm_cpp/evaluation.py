"""What compute_metrics of a trainer is given: the logits of held-out texts beside their labels."""

from typing import NamedTuple

import numpy as np

from ._arrays import to_numpy

NO_LABEL = -100


class EvalPrediction(NamedTuple):
    """predictions[:, i] are of the token at i + 1: compare predictions[:, :-1] with label_ids[:, 1:]. -100 stands where
    nothing is learned, and in both where a text has ended."""

    predictions: np.ndarray  # [N, L, V], or what preprocess_logits_for_metrics has left of it
    label_ids: np.ndarray  # [N, L]


def predict(model, sequences, rows, preprocess=None) -> EvalPrediction:
    """sequences: (ids [T], targets [T]) of each text, a target being the next id or -1."""
    predictions, labels = [], []
    for begin in range(0, len(sequences), rows):
        part = sequences[begin : begin + rows]
        longest = max(len(ids) for ids, _ in part)
        ids, mask = np.zeros((2, len(part), longest), np.int32)
        label_ids = np.full((len(part), longest + 1), NO_LABEL, np.int64)
        for i, (some, targets) in enumerate(part):
            ids[i, : len(some)], mask[i, : len(some)] = some, 1
            label_ids[i, 1 : len(some) + 1] = np.where(targets < 0, NO_LABEL, targets)
        logits = model(ids, attention_mask=mask, use_cache=False).logits
        logits[mask == 0] = NO_LABEL
        logits = np.concatenate([logits, np.full_like(logits[:, :1], NO_LABEL)], 1)
        predictions.append(logits if preprocess is None else to_numpy(preprocess(logits, label_ids)))
        labels.append(label_ids)
    return EvalPrediction(_together(predictions), _together(labels))


def named(metrics: dict) -> dict:
    """As Transformers logs them: plain numbers, their names beginning with eval_."""
    names = {n: n if n.startswith("eval_") else f"eval_{n}" for n in metrics}
    return {names[n]: value.item() if hasattr(value, "item") else value for n, value in metrics.items()}


def _together(parts) -> np.ndarray:
    """[B, L, ...] of any L one after another, filled up with -100."""
    length = max(p.shape[1] for p in parts)
    out = np.full((sum(p.shape[0] for p in parts), length, *parts[0].shape[2:]), NO_LABEL, parts[0].dtype)
    row = 0
    for p in parts:
        out[row : row + p.shape[0], : p.shape[1]] = p
        row += p.shape[0]
    return out
