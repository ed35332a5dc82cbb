"""Models with Transformers' interface over the library. They run; training is in the blocks and ops for torch,
and in the trainer. What comes in as torch goes out as torch, anything else as NumPy."""

import json
import os

import numpy as np

from . import _core, hub
from ._arrays import device_name, dtype_name, is_torch, like, to_numpy, to_torch
from ._batch import Batch
from .cache import MambaCache
from .config import FalconMambaConfig, Mamba2Config, MambaConfig, PretrainedConfig
from .generation import GenerationConfig
from .outputs import BaseModelOutput, CausalLMOutput, GenerateOutput
from .tokenizer import Tokenizer


class PreTrainedModel:
    config_class = None

    def __init__(self, config, init: str = "huggingface", seed: int = 0, _loaded=None):
        """With new weights, initialised as Transformers does ("huggingface") or as mamba_ssm ("reference")."""
        self._core = _loaded or _core.Model.create(_config_text(config), init, seed)
        self.config = config
        self.generation_config = GenerationConfig.from_folder(self._core.folder or "/nonexistent")
        self.training = False
        self.name_or_path = self._core.folder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path=None,
        dtype=None,
        torch_dtype=None,
        device=None,
        device_map=None,
        revision=None,
        tokenizer=None,
        adapter=None,
        config=None,
        quantization_config=None,
        **_,
    ):
        """A folder of any layout, a name in the Hugging Face cache, or nothing for the bundled model. `dtype` is
        that of activations at matrix products; weights stay as they are stored, or are packed while they are
        read: quantization_config is "q4_k", "int8", ..., or torchao's config for weights alone. Options of
        Transformers that concern its own way of loading change nothing here."""
        folder = hub.resolve(pretrained_model_name_or_path, revision)
        loaded = _core.Model.load(
            folder,
            dtype_name(dtype if dtype is not None else torch_dtype),
            device_name(device if device is not None else device_map),
            str(tokenizer or ""),
            str(adapter or ""),
            *_quantization(quantization_config),
        )
        config = config or _config_of(loaded)
        if cls.config_class and not isinstance(config, cls.config_class):
            raise _core.Error(f"{folder}: is a {config.model_type} model, not one for {cls.__name__}")
        return cls(config, _loaded=loaded)

    def save_pretrained(self, folder, dtype=None, **_):
        """config.json, model.safetensors and the tokenizer's files, for this library and for Transformers."""
        self._core.save(str(folder), dtype_name(dtype))

    @property
    def device(self) -> str:
        return self._core.device

    @property
    def dtype(self) -> str:
        return {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[self._core.dtype]

    @property
    def vocab_size(self) -> int:
        return self._core.vocab_size

    def num_parameters(self, *_, **__) -> int:
        return self._core.num_parameters

    def state_dict(self) -> dict:
        """Parameters by name, the model's memory itself: NumPy arrays, or DLPack objects where NumPy lacks the
        type."""
        return self._core.parameters()

    def eval(self):
        self.training = False
        return self

    def to(self, *_, **__):
        """A model stays where from_pretrained(device=...) put it."""
        return self

    def tokenizer(self) -> Tokenizer:
        """The one in the model's folder."""
        core = self._core.tokenizer
        if core is None:
            raise _core.Error(f"{self._core.folder or 'this model'}: has no tokenizer")
        return Tokenizer(core, self._core.folder)

    def new_cache(self, batch_size: int = 1) -> MambaCache:
        return MambaCache(self, batch_size)

    def get_input_embeddings(self):
        """A function: ids of any shape -> embeddings [..., M]."""

        def embeddings(ids):
            flat = np.ascontiguousarray(to_numpy(ids, np.int32)).reshape(-1)
            out = _host(self._core.embed(flat)).reshape(*np.shape(ids), -1)
            return like(out, ids)

        return embeddings

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def _hidden(self, input_ids, inputs_embeds, attention_mask, cache, use_cache, layers):
        """(Batch, hidden states [T, M], those of each layer, cache)"""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds is needed")
        given = to_numpy(input_ids if inputs_embeds is None else inputs_embeds)
        if inputs_embeds is None and given.ndim == 1:
            given = given[None]
        if given.shape[1] == 0:
            raise ValueError("the sequences are empty")
        batch = Batch(given.shape[:2], attention_mask)
        if cache is None and use_cache:
            cache = MambaCache(self, batch.rows)
        if cache is not None and cache.max_batch_size != batch.rows:
            raise ValueError(f"a cache of {cache.max_batch_size} sequences for a batch of {batch.rows}")
        flat = batch.flat(given)
        ids = np.ascontiguousarray(flat, np.int32) if inputs_embeds is None else None
        embeddings = None if inputs_embeds is None else np.ascontiguousarray(flat, np.float32)
        slots = batch.slots
        hidden, by_layer = self._core.forward(
            ids,
            embeddings,
            [batch.lengths[i] for i in slots],
            cache._state if cache is not None else None,
            slots if cache is not None else list(range(len(slots))),
            layers,
        )
        if cache is not None:
            cache.seqlen_offset += batch.length
        return batch, hidden, by_layer, cache

    def _hidden_states(self, batch, hidden, by_layer, *sources):
        """After each layer, and after the last norm."""
        return tuple(like(batch.padded(_host(h)), *sources) for h in [*by_layer, hidden])


class _Backbone(PreTrainedModel):
    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        cache_params=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        attention_mask=None,
        **_,
    ):
        layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self.config.use_cache if use_cache is None else use_cache
        batch, hidden, by_layer, cache = self._hidden(
            input_ids, inputs_embeds, attention_mask, cache_params, use_cache, layers
        )
        source = input_ids if inputs_embeds is None else inputs_embeds
        out = BaseModelOutput(
            last_hidden_state=like(batch.padded(_host(hidden)), source),
            cache_params=cache if use_cache or cache_params is not None else None,
            hidden_states=self._hidden_states(batch, hidden, by_layer, source) if layers else None,
        )
        return out if self.config.return_dict and return_dict is not False else out.to_tuple()


class _CausalLM(PreTrainedModel):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        inputs_embeds=None,
        cache_params=None,
        labels=None,
        output_hidden_states=None,
        return_dict=None,
        use_cache=None,
        logits_to_keep: int = 0,
        num_last_tokens: int = 0,
        **_,
    ):
        """Logits [B, L, V] f32, zeros where padding is. `labels` are shifted inside and -100 counts as none; a
        token behind padding has no prediction and is left out of the loss."""
        layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = self.config.use_cache if use_cache is None else use_cache
        batch, hidden, by_layer, cache = self._hidden(
            input_ids, inputs_embeds, attention_mask, cache_params, use_cache, layers
        )
        source = input_ids if inputs_embeds is None else inputs_embeds
        keep = logits_to_keep or num_last_tokens
        if keep:
            last = batch.padded(_host(hidden))[:, -keep:]
            logits = _host(self._core.logits(np.ascontiguousarray(last).reshape(-1, last.shape[-1])))
            logits = logits.reshape(batch.rows, last.shape[1], -1)
        else:
            logits = batch.padded(_host(self._core.logits(hidden)))
        out = CausalLMOutput(
            loss=None if labels is None else self._loss(batch, hidden, to_numpy(labels), source),
            logits=like(logits, source),
            cache_params=cache if use_cache or cache_params is not None else None,
            hidden_states=self._hidden_states(batch, hidden, by_layer, source) if layers else None,
        )
        return out if self.config.return_dict and return_dict is not False else out.to_tuple()

    def _loss(self, batch, hidden, labels, source):
        targets = np.full(labels.shape, -1, np.int32)
        targets[:, :-1] = np.where(labels[:, 1:] == -100, -1, labels[:, 1:])
        if batch.mask is not None:
            targets[:, :-1][~batch.mask[:, 1:]] = -1
        targets = np.ascontiguousarray(batch.flat(targets))
        nll, _ = self._core.nll(hidden, targets)
        count = int((targets >= 0).sum())
        loss = np.float32(nll.sum(dtype=np.float64) / count if count else np.nan)
        return to_torch(np.asarray(loss).reshape(1))[0] if is_torch(source) else loss

    def token_logprobs(self, sequences) -> list:
        """The log-probability of each token after those before it, for a list of id sequences (of any lengths):
        an array each, NaN first. Logits are never in memory all at once."""
        rows = [np.ascontiguousarray(to_numpy(s), np.int32).reshape(-1) for s in sequences]
        ids = np.concatenate(rows)
        targets = np.concatenate([np.append(r[1:], -1) for r in rows]).astype(np.int32)
        lengths = [len(r) for r in rows]
        hidden, _ = self._core.forward(ids, None, lengths, None, list(range(len(rows))), False)
        nll, _ = self._core.nll(hidden, targets)
        ends = np.cumsum(lengths)
        return [
            np.concatenate([[np.float32("nan")], -nll[end - n : end - 1]]) for n, end in zip(lengths, ends, strict=True)
        ]

    def loglikelihood(self, context, continuation) -> tuple:
        """(log-probability of the continuation's ids after the context's, whether each is the best one)"""
        return self.loglikelihoods(context, [continuation])[0]

    def loglikelihoods(self, context, continuations) -> list:
        """The same for several continuations of one context, which is read once."""
        return loglikelihoods(self._core, context, continuations)

    def generate(
        self,
        inputs=None,
        attention_mask=None,
        generation_config=None,
        streamer=None,
        input_ids=None,
        tokenizer=None,
        inputs_embeds=None,
        cache_params=None,
        **options,
    ):
        """Prompts [B, L] (padding on either side, told by `attention_mask`) -> [B, L + new tokens]. Options by
        Transformers' names: GenerationConfig's fields. Greedy unless do_sample; a row that ended is filled with
        pad_token_id. Ctrl-C stops between tokens. `cache_params` holds what stands before the prompts."""
        if inputs_embeds is not None:
            raise ValueError("generate: inputs_embeds is not supported; read them with forward, and its cache")
        for ignored in ("use_cache", "synced_gpus", "assistant_model", "token_type_ids"):
            options.pop(ignored, None)
        source = inputs if inputs is not None else input_ids
        if source is None:
            raise ValueError("generate: input_ids is missing")
        g = (generation_config or self.generation_config).updated(**options)
        ids = to_numpy(source)
        ids = ids[None] if ids.ndim == 1 else ids
        prompts = Batch(ids.shape, attention_mask).split(ids)
        prompts = [p for p in prompts for _ in range(g.num_return_sequences)]
        results = self._run(prompts, g, _new_tokens(g, ids.shape[1]), streamer, tokenizer, ids)
        pad = g.pad_token_id
        pad = pad if pad is not None else getattr(self.config, "pad_token_id", None)
        sequences = _joined(np.repeat(ids, g.num_return_sequences, axis=0), [r[0] for r in results], pad or 0)
        sequences = like(sequences, source)
        if not g.return_dict_in_generate:
            return sequences
        return GenerateOutput(sequences, [r[2] for r in results], [r[1] for r in results])

    def _run(self, prompts, g, new_tokens, streamer, tokenizer, ids):
        on_token = None
        if streamer is not None:
            if len(prompts) > 1:
                raise ValueError("generate: a streamer takes one sequence")
            on_token = _stream_to(streamer, ids, tokenizer or getattr(streamer, "tokenizer", None))
        stop = [g.stop_strings] if isinstance(g.stop_strings, str) else list(g.stop_strings or [])
        eos = g.eos_token_id
        sampling = {"temperature": 0.0}
        if g.do_sample:
            sampling = {"temperature": g.temperature, "top_k": g.top_k, "top_p": g.top_p, "min_p": g.min_p or 0.0}
        results = _core.generate(
            self._core,
            prompts,
            new_tokens,
            **sampling,
            repetition_penalty=g.repetition_penalty,
            seed=g.seed if g.seed is not None else int.from_bytes(os.urandom(7), "little"),
            eos=None if eos is None else [eos] if isinstance(eos, int) else list(eos),
            stop=stop,
            on_token=on_token,
        )
        if streamer is not None:
            streamer.end()
        return results


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
    hidden, _ = core.forward(ids, None, lengths, forked, list(range(len(rows))), False)
    nll, best = core.nll(hidden, targets)
    out, begin = [], 0
    for n in lengths:
        part = slice(begin, begin + n)
        out.append((-float(nll[part].sum(dtype=np.float64)), bool((best[part] == targets[part]).all())))
        begin += n
    return out


class MambaModel(_Backbone):
    config_class = MambaConfig


class FalconMambaModel(_Backbone):
    config_class = FalconMambaConfig


class Mamba2Model(_Backbone):
    config_class = Mamba2Config


class MambaForCausalLM(_CausalLM):
    config_class = MambaConfig


class FalconMambaForCausalLM(_CausalLM):
    config_class = FalconMambaConfig


class Mamba2ForCausalLM(_CausalLM):
    config_class = Mamba2Config


class _Auto:
    @classmethod
    def from_config(cls, config, **options):
        return cls._classes[config.model_type](config, **options)

    @classmethod
    def from_pretrained(cls, name=None, **options):
        model = cls._base.from_pretrained(name, **options)
        kind = cls._classes[model.config.model_type]
        return kind(model.config, _loaded=model._core)


class AutoModelForCausalLM(_Auto):
    _base = _CausalLM
    _classes = {"mamba": MambaForCausalLM, "mamba2": Mamba2ForCausalLM, "falcon_mamba": FalconMambaForCausalLM}


class AutoModel(_Auto):
    _base = _Backbone
    _classes = {"mamba": MambaModel, "mamba2": Mamba2Model, "falcon_mamba": FalconMambaModel}


class MambaLMHeadModel(_CausalLM):
    """mamba_ssm's language model: either generation, and its generate()."""

    def generate(
        self,
        input_ids,
        max_length,
        top_k=1,
        top_p=0.0,
        min_p=0.0,
        temperature=1.0,
        repetition_penalty=1.0,
        return_dict_in_generate=False,
        output_scores=False,
        cg=False,
        enable_timing=False,
        vocab_size=None,
        eos_token_id=None,
        **options,
    ):
        """top_k=1 is greedy. `cg`, `enable_timing` and `vocab_size` change nothing: graphs are used where there
        are some, and padding of the vocabulary is never chosen."""
        if output_scores:
            raise ValueError("generate: output_scores is not supported")
        return super().generate(
            input_ids,
            max_length=max_length,
            do_sample=top_k != 1,
            top_k=top_k,
            top_p=top_p if top_p > 0 else 1.0,
            min_p=min_p,
            temperature=temperature,
            repetition_penalty=repetition_penalty,
            return_dict_in_generate=return_dict_in_generate,
            eos_token_id=eos_token_id if eos_token_id is not None else [],
            **options,
        )


Mamba2LMHeadModel = MambaLMHeadModel


def _config_text(config) -> str:
    return config.to_json_string() if isinstance(config, PretrainedConfig) else json.dumps(config.to_dict())


def _config_of(loaded) -> PretrainedConfig:
    """What the folder's config.json says, with what the library made of it (layout, defaults)."""
    fields = json.loads(loaded.config)
    path = os.path.join(loaded.folder, "config.json")
    if loaded.layout == "transformers" and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            fields = {**json.load(file), **fields}
    return PretrainedConfig.from_dict(fields)


def _quantization(config) -> tuple:
    """(type, group): a name of our own, or Int4WeightOnlyConfig(group_size=...) as such or in a TorchAoConfig."""
    if config is None or isinstance(config, str):
        return config or "", 64
    config = getattr(config, "quant_type", config)
    kind = type(config).__name__
    for bits in ("int4", "int8"):
        if kind.lower() == f"{bits}weightonlyconfig":
            return bits, int(getattr(config, "group_size", None) or 64)
    raise ValueError(f"quantization_config {kind}: expected a type's name or an Int4WeightOnlyConfig")


def _host(x) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else to_numpy(_from_device(x))


def _from_device(x):
    import torch

    return torch.from_dlpack(x)


def _new_tokens(g, prompt_length: int) -> int:
    if g.max_new_tokens is not None:
        return g.max_new_tokens
    if g.max_length is None:
        return 20
    if g.max_length <= prompt_length:
        raise ValueError(f"generate: max_length is {g.max_length}, the prompt has {prompt_length} tokens already")
    return g.max_length - prompt_length


def _joined(prompts, new, pad):
    width = max(map(len, new))
    out = np.full((len(new), prompts.shape[1] + width), pad, np.int64)
    out[:, : prompts.shape[1]] = prompts
    for row, ids in enumerate(new):
        out[row, prompts.shape[1] : prompts.shape[1] + len(ids)] = ids
    return out


def _stream_to(streamer, ids, tokenizer):
    if hasattr(streamer, "on_text"):
        if tokenizer is not None:
            streamer.prompt(tokenizer.decode(ids[0]))
        return lambda _, __, text: streamer.on_text(text)
    streamer.put(ids)  # Transformers' streamers take ids
    return lambda _, token, __: token < 0 or streamer.put(np.array([token])) is not False
