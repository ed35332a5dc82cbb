"""Log-probabilities of endings."""

import numpy as np

from . import _core


def loglikelihoods(core, context, continuations) -> list:
    """[(log-probability, greedy)] of id sequences after the ids of a context, whose state is shared. Over the
    model's whole vocabulary, as Transformers has it."""
    context = [int(i) for i in context]
    if not context:
        raise ValueError("loglikelihood: the context is empty")
    state, tail = _core.State(core, 1), context[-1:]
    if len(context) > 1:
        core.forward(np.array(context[:-1], np.int32), None, [len(context) - 1], state, [0], False)
    rows = [tail + [int(i) for i in c] for c in continuations]
    ids = np.concatenate([np.array(r[:-1], np.int32) for r in rows])
    targets = np.concatenate([np.array(r[1:], np.int32) for r in rows])
    lengths = [len(r) - 1 for r in rows]
    forked = state.select([0] * len(rows))
    hidden, *_ = core.forward(ids, None, lengths, forked, list(range(len(rows))), False)
    nll, best = core.nll(hidden, targets)
    out, begin = [], 0
    for n in lengths:
        part = slice(begin, begin + n)
        out.append((-float(nll[part].sum(dtype=np.float64)), bool((best[part] == targets[part]).all())))
        begin += n
    return out
