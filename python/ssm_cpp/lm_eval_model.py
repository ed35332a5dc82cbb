"""The model "ssm" of lm-evaluation-harness: lm_eval --model ssm --model_args pretrained=PATH --tasks ...

Requests are batched by length, as ragged batches without padding. What several continuations have as their context is
read once, and its state forked (multiple choice)."""

import itertools
import logging

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from . import _core, _options
from ._arrays import device_name
from .modeling import AutoModelForCausalLM
from .tokenizer import AutoTokenizer

_STATE_BYTES = 1 << 28  # of the states of a batch, at most


@register_model("ssm")
class SsmLM(TemplateLM):
    """pretrained: as for AutoModelForCausalLM. tokenizer: another one than the model's. max_length: what a text is cut
    to, or 0 for no limit (the state is of fixed size). batch_tokens: about so many are read at a time."""

    def __init__(
        self,
        pretrained=None,
        tokenizer=None,
        dtype="auto",
        device="cpu",
        revision=None,
        adapter=None,
        max_length=2048,
        max_gen_toks=256,
        batch_tokens=4096,
        batch_size=None,
        max_batch_size=None,
        add_bos_token=False,
        **options,
    ):
        super().__init__()
        _options.check("the model ssm", options, {"trust_remote_code", "use_fast_tokenizer"}, {"parallelize": False})
        if device_name(device) == "cuda" and _core.why_unavailable("cuda"):  # the harness asks for one unasked
            logging.getLogger(__name__).info("no CUDA here (%s): on the CPU", _core.why_unavailable("cuda"))
            device = "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(
            pretrained, dtype=dtype, device=device, revision=revision, tokenizer=tokenizer, adapter=adapter
        )
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer) if tokenizer else self.model.tokenizer()
        self.max_length, self.max_gen_toks = int(max_length) or 1 << 62, int(max_gen_toks)
        self.batch_tokens, self.add_bos_token = int(batch_tokens), bool(add_bos_token)
        rows = str(batch_size or "auto")
        self._rows = int(rows if rows.isdigit() else max_batch_size or 1 << 30)
        cache = self.model.new_cache(1)
        held = 4 * sum(x.size for x in [*cache.conv_states, *cache.ssm_states])
        self._rows = max(1, min(self._rows, _STATE_BYTES // held))

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self):
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.model.name_or_path

    def tok_encode(self, string, add_special_tokens=None, **_):
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, special)

    def tok_decode(self, tokens, skip_special_tokens=True):
        return self.tokenizer.decode(tokens, skip_special_tokens)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
        """[(log-probability, greedy)] of (strings, context ids, continuation ids)."""
        by_context: dict = {}
        for index, (_, context, continuation) in enumerate(requests):
            whole = (list(context) + list(continuation))[-(self.max_length + 1) :]
            ids = whole[len(whole) - len(continuation) :] if len(continuation) < len(whole) else whole[1:]
            key = tuple(whole[: len(whole) - len(ids)])
            by_context.setdefault(key, []).append((index, ids))
        # The longest first, so that what does not fit shows at once and times are over-estimated.
        groups = sorted(by_context.items(), key=lambda g: -len(g[0]) - max(len(ids) for _, ids in g[1]))
        results: list = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests")
        for batch in self._batches(groups):
            for index, result in self._score(batch):
                results[index] = result
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], result)
                bar.update()
        bar.close()
        return results

    def _batches(self, groups):
        """Groups with one context each, as many as fit; one of many continuations in parts."""
        batch, rows, tokens = [], 0, 0
        for context, items in groups:
            for part in _parts(items, self._rows):
                cost = len(context) + sum(len(ids) for _, ids in part)
                if batch and (rows + len(part) > self._rows or tokens + cost > self.batch_tokens):
                    yield batch
                    batch, rows, tokens = [], 0, 0
                batch.append((context, part))
                rows, tokens = rows + len(part), tokens + cost
        if batch:
            yield batch

    def _score(self, batch):
        """(index, (log-probability, greedy)) of each continuation."""
        core = self.model._core
        shared = [g for g in batch if len(g[1]) > 1 and len(g[0]) > 1]
        prefixes = _core.State(core, len(shared)) if shared else None
        if shared:
            read = [g[0][:-1] for g in shared]
            core.forward(_ids(read), None, [len(r) for r in read], prefixes, list(range(len(read))), False)
        rows, forked, flat = [], [], []
        for context, items in batch:
            fork = len(items) > 1 and len(context) > 1
            for index, ids in items:
                if fork:
                    forked.append(len(rows))
                rows.append((context[-1:] if fork else context) + tuple(ids[:-1]))
                flat.append((index, ids))
        state = _core.State(core, len(rows))
        if shared:
            state.assign(forked, prefixes, [i for i, (_, items) in enumerate(shared) for _ in items])
        lengths = [len(r) for r in rows]
        hidden, *_ = core.forward(_ids(rows), None, lengths, state, list(range(len(rows))), False)
        ends = np.cumsum(lengths)
        wanted = np.concatenate([np.arange(end - len(ids), end) for end, (_, ids) in zip(ends, flat, strict=True)])
        targets = _ids([ids for _, ids in flat])
        nll, best = core.nll(hidden, targets, rows=wanted.astype(np.int32))
        begin = 0
        for index, ids in flat:
            part = slice(begin, begin + len(ids))
            begin += len(ids)
            value = -float(nll[part].sum(dtype=np.float64))
            yield index, (value, bool((best[part] == targets[part]).all()))

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        windows, owners = [], []
        for owner, request in enumerate(requests):
            (string,) = request.args
            ids = self.tok_encode(string)
            longest = min(self.max_length, max(len(ids), 1))
            cut = get_rolling_token_windows(ids, self.prefix_token_id, longest, context_len=1)
            for window in map(make_disjoint_window, cut):
                windows.append((None, *window))
                owners.append(owner)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm)
        for owner, (value, _) in zip(owners, scores, strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm=False):
        by_options: dict = {}
        for index, request in enumerate(requests):
            context, options = request.args
            by_options.setdefault(repr(sorted(options.items())), []).append((index, context, options))
        results: list = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests")
        for group in by_options.values():
            rows = [(index, self.tok_encode(context), context) for index, context, _ in group]
            rows.sort(key=lambda row: -len(row[1]))
            for part in _parts(rows, self._rows):
                for (index, _, context), text in zip(part, self._continue(part, group[0][2]), strict=True):
                    results[index] = text
                    self.cache_hook.add_partial("generate_until", (context, group[0][2]), text)
                    bar.update()
        bar.close()
        return results

    def _continue(self, rows, options):
        new = int(options.get("max_gen_toks", options.get("max_new_tokens", self.max_gen_toks)))
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        room = self.max_length - new
        if room <= 0:
            raise ValueError(f"max_gen_toks is {new}, max_length {self.max_length}: no room for a prompt")
        prompts = [ids[-room:] or [self.prefix_token_id] for _, ids, _ in rows]
        temperature = float(options.get("temperature") or 0.0)
        sampled = options.get("do_sample", temperature > 0)
        done = _core.generate(
            self.model._core,
            prompts,
            new,
            temperature=temperature if sampled else 0.0,
            top_k=int(options.get("top_k") or 0),
            top_p=float(options.get("top_p") or 1.0),
            min_p=float(options.get("min_p") or 0.0),
            repetition_penalty=float(options.get("repetition_penalty") or 1.0),
            seed=int(options.get("seed", 0)),
            stop=[s for s in until if s],
        )
        return [text for _, text, _ in done]


def _ids(rows) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32)


def _parts(items, size):
    items = list(items)
    return [items[i : i + size] for i in range(0, len(items), size)]
